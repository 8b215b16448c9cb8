"""A plan in words, for --dry-run."""

import jax

from jaxdiff.builders import build_times
from jaxdiff.config import Config
from jaxdiff.config_files import to_json
from jaxdiff.plan.flops import count_flops
from jaxdiff.plan.memory import step_memory
from jaxdiff.program import Program
from jaxdiff.training.sources import open_dataset


def describe(config: Config) -> str:
    """What a config resolves to and will cost, for --dry-run: compiles the step, computes and writes nothing."""
    data, batch_size = config.data, config.train.batch_size
    source = open_dataset(data.name, data.path, data.split, data.resize, data.on_error)
    program = Program(config, source)
    flops = count_flops(program.plain_step, program.abstract, program.batch, program.keys["train"])
    memory = step_memory(program.lower().compile())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params))
    times = " ".join(f"{t:.3f}" for t in build_times(config, config.sampling))
    mebibytes = [f"{size / 2**20:.1f}" for size in (*memory, memory.total)]
    return to_json(config) + "\n".join(
        (
            f"data        {len(source)} images of {source.shape}, {source.num_classes} classes",
            f"parameters  {parameters:,}",
            f"a step      {flops / 1e9:.2f} GFLOP, {flops / batch_size / 1e6:.1f} MFLOP an image",
            "memory      {} MiB of arguments + {} outputs + {} temporaries = {} a device".format(*mebibytes),
            f"devices     {jax.device_count()} {jax.devices()[0].platform}",
            f"time grid   {config.sampling.steps} steps, {config.sampling.spacing}: {times}",
        )
    )
