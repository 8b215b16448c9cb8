"""Settings of every test and doctest: eight simulated CPUs, no silent rank promotion, programs compiled once."""

import gc
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# LLVM's optimisations take longer than what they save here. Processes of tests/faults have them all.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and whatever tests start share one cache, new at each run
    cache = tempfile.TemporaryDirectory(prefix="jaxdiff-cache-")
    os.environ["XDG_CACHE_HOME"] = cache.name

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ["XDG_CACHE_HOME"] + "/jaxdiff/xla")  # the commands' own
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

gc.set_threshold(100_000, 20, 50)  # tracing makes many objects; looking them over took a tenth of the time

hypothesis.settings.register_profile("jaxdiff", deadline=None, derandomize=True)  # the first example compiles
hypothesis.settings.load_profile("jaxdiff")


def pytest_xdist_auto_num_workers(config):
    """Two for either part of the suite, most of which is compiling on one core; none where files are named."""
    return 2 if config.args == config.getini("testpaths") else 0
