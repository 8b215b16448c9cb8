"""Memory: one state and no copy of it, and sampling that does not grow with its steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config, Data, Model, Train
from jaxdiff.data.description import Expected
from jaxdiff.plan import planning, step_memory

MODEL = Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=())
SCRIPT = """
import json
from benchmarks.memory import *
from jaxdiff.config import *
model = Model(channels=384, channel_mults=(1,), blocks=1, attention_resolutions=())
config = Config(data=Data(name="folder"), model=model, train=Train(batch_size=4, posthoc_ema=(0.1,)))
print(json.dumps(measured(config, Expected((4, 4, 1), 0))))
"""


def test_steps_reuse_the_buffers_of_the_whole_state():
    """Parameters, average, moments and tracked averages: all aliased, so that none is there twice."""
    train = Train(batch_size=8, posthoc_ema=(0.1,), steps_per_call=2)
    program = assemble(Config(data=Data(name="folder"), model=MODEL, train=train), Expected((4, 4, 1), 0)).program
    compiled = program.lower().compile({"xla_backend_optimization_level": 0})
    state = planning.state_bytes(program.abstract)
    assert compiled.memory_analysis().alias_size_in_bytes >= state > 0
    assert step_memory(compiled).outputs < 16 * (len(jax.tree.leaves(program.abstract)) + 8)  # a table, and metrics


def test_a_thousand_steps_of_ddim_take_the_memory_of_ten():
    schedule, model = jd.schedules.linear(1000), jd.samplers.ddim()

    def temporaries(steps, trajectory=False):
        times = jd.time_grid(schedule, steps)

        def draw(keys, weights):
            predict = lambda x, t, cond: jnp.tanh(x @ weights)  # noqa: E731
            denoise = jd.as_denoiser(predict, schedule=schedule)
            options = {"times": times, "schedule": schedule, "trajectory": trajectory}
            return jd.sample(keys, denoise, model, shape=(64,), **options)

        compiled = jax.jit(draw).lower(jd.sample_keys(jax.random.key(0), 32), jnp.zeros((64, 64))).compile()
        return sum(step_memory(compiled)[1:])

    few, many = temporaries(10), temporaries(1000)
    assert many - few <= 2 * 4 * 1000  # the times themselves, where they are kept
    assert temporaries(1000, trajectory=True) > few + 1000 * 32 * 64 * 4  # what growing would look like


@pytest.mark.slow
def test_steps_take_what_xla_has_planned():
    """Within 10 % of the plan, measured on a process of its own; a second average would be 20 %."""
    root = Path(__file__).parent.parent
    alone = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=root, env=alone
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["state"] > 200 * 2**20
    assert np.isclose(found["measured"], found["plan"], rtol=0.1), found
