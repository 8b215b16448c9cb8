"""Settings of every test and doctest: CPU only, eight simulated devices, no silent rank promotion; two processes."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("jaxdiff", deadline=None, derandomize=True)  # the first example compiles
hypothesis.settings.load_profile("jaxdiff")


def pytest_xdist_auto_num_workers(config):
    """Two for the whole suite, most of which is compiling on one core; none where files are named, to start at once."""
    return 2 if config.args == config.getini("testpaths") and config.option.markexpr == "not slow" else 0
