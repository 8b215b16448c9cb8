"""Few steps on hard data: no deterministic method is worse than DDIM, float32 is float64, types follow x."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from benchmarks.proof_cases import CONTINUOUS, GRIDS
from jaxdiff.denoisers import Prediction
from jaxdiff.samplers import exponential
from tests.oracles import GAUSSIAN, HARD
from tests.samplers import convergence as c
from tests.samplers import few_steps as f

SCHEDULES = {name: CONTINUOUS[name] for name in ("continuous_vp", "edm", "flow", "shifted_cosine")}
CASES = f.cases_of(SCHEDULES, GRIDS, (5, 10, 20))
METHODS = tuple(name for name in c.METHODS if name != "ddim")
QUICK = ("heun", "dpm_solver_2", "dpmpp_2m", "dpmpp_3m", "unipc 2", "deis 3", "plms")  # the others are slow tests
FLOW, EDM = SCHEDULES["flow"], SCHEDULES["edm"]


@functools.cache
def ends(name, by_x_0=False):
    """x at the end of all cases, in the float type that JAX is in."""
    index, times, x_T, _ = f.setting(SCHEDULES, GRIDS, CASES)
    dtype = jnp.result_type(float)
    return np.asarray(f.program(c.METHODS[name].make, SCHEDULES, by_x_0)(index, times.astype(dtype), x_T.astype(dtype)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_no_worse_than_ddim_and_float32_is_float64(name):
    """5 steps or more, every grid: at most 1.1 times DDIM's error; and in float32 the same within 1 % of the data."""
    with jax.enable_x64(True):
        exact = f.setting(SCHEDULES, GRIDS, CASES)[3]
        x, ddim = ends(name), ends("ddim")
    size = f.rms(exact)
    ratio = f.rms(x - exact) / (f.rms(ddim - exact) + 1e-6 * size)
    worse = {(*CASES[i], list(HARD)[j]): round(float(ratio[i, j]), 2) for i, j in np.argwhere(~(ratio <= 1.1))}
    assert not worse
    with jax.enable_x64(False):
        low = ends.__wrapped__(name, by_x_0=True)
    assert low.dtype == np.float32
    off = f.rms(low - x) / size
    assert not {(*CASES[i], list(HARD)[j]): float(off[i, j]) for i, j in np.argwhere(~(off <= 0.01))}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_all_schedules_no_worse_than_ddim_but_where_the_page_says_so(name):
    """Every schedule, 5 to 50 steps: the cases beyond 1.1 are those that docs/proof.md names."""
    from benchmarks import proof_page
    from benchmarks.proof_few import few_rows

    def worse(rows):
        return {tuple(r["case"]) for r in rows if r["sampler"] == name and r.get("ratio", 0.0) > 1.1}

    with jax.enable_x64(True):
        assert worse(few_rows([name])) <= worse(proof_page.load()["few steps"]["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in f.SDE if name != "ddim eta=1"])
def test_stochastic_methods_spread_no_further_than_ddim(name):
    """The samples' spread is off by at most 1.15 times what DDIM's is at eta = 1; 0.05 is the luck of 128 points."""
    with jax.enable_x64(True):
        index, times, x_T, _ = f.setting(SCHEDULES, GRIDS, CASES, f.SDE_POINTS)
        run = [f.program(f.SDE[n], SCHEDULES) for n in (name, "ddim eta=1")]
        off, ddim = (np.abs(f.spread(np.asarray(one(index, times, x_T)))) for one in run)
    worse = {(*CASES[i], list(HARD)[j]): off[i, j] for i, j in np.argwhere(off > 1.15 * (ddim + 0.05))}
    assert not worse


def best(schedule):
    """The best x_0 of Gaussian data; its noise is what x_0 leaves, as a network that predicts x_0 has it."""

    def denoise(x, t):
        x_0 = GAUSSIAN.denoiser(schedule)(x, t).x_0.astype(x.dtype)
        return Prediction(x_0, jd.to_x0_noise("x_0", x_0, x, schedule(t))[1])

    return denoise


@pytest.mark.parametrize("t_min", [None, 1e-3], ids=["default", "far too clean"])
def test_heun_in_float32_on_edm(t_min):
    """Its weight e^h/2 multiplies the rounding of x_0: 1e10 at 5 steps to sigma = 8e-20, unbounded."""
    keys = jd.sample_keys(jax.random.key(0), 64)
    for steps in (5, 18, 50):
        times = jd.time_grid(EDM, steps, "linspace", t_min=t_min)
        run = functools.partial(jd.sample, keys, best(EDM), jd.samplers.heun(), shape=(2,), times=times, schedule=EDM)
        assert float(jnp.abs(run()).max()) < 5.0


def test_heun_is_the_trapezoid_in_t_on_rectified_flow():
    """x_s = x_t + (s - t)/2 (v_t + v_s), v = noise - x_0, from t = 1 on; Euler to t = 0."""
    with jax.enable_x64(True):
        times, x = np.array([1.0, 0.7, 0.45, 0.2, 0.0]), np.linspace(-2.0, 2.0, 8).reshape(4, 2)
        denoise, keys = GAUSSIAN.denoiser(FLOW), jd.sample_keys(jax.random.key(0), 4)
        found = jd.sample(keys, denoise, jd.samplers.heun(), times=times, schedule=FLOW, x_T=jnp.asarray(x))

        def v(x, t):
            p = denoise(jnp.asarray(x), t)
            return np.asarray(p.noise - p.x_0)

        for t, s in itertools.pairwise(times):
            euler = x + (s - t) * v(x, t)
            x = x + 0.5 * (s - t) * (v(x, t) + v(euler, s)) if s > 0 else euler
    np.testing.assert_allclose(found, x, atol=1e-12)


def test_an_order_falls_before_a_leap_and_only_there():
    """The step is several times the one before, or long in itself; with full_order, as released, never."""
    past = exponential.History.empty(jnp.zeros(1), 2)
    past = past.push(jnp.zeros(1), jnp.float32(-0.6)).push(jnp.zeros(1), jnp.float32(-0.3))
    counts = [int(past.usable(jnp.float32(0.0), jnp.float32(h))) for h in (0.1, 0.3, 0.59, 0.61, 0.74, 0.76, 1.1)]
    assert counts == [2, 2, 2, 1, 1, 0, 0]
    assert int(past.usable(jnp.float32(0.0), jnp.float32(9.0), full_order=True)) == 2
    x = {}
    for full in (False, True):
        sampler, keys = jd.samplers.dpmpp_2m(full_order=full), jd.sample_keys(jax.random.key(0), 1)
        times = np.array([0.6, 0.5, 0.002, 0.0], np.float32)  # a leap of log-SNR
        start = jnp.full((1, 2), 1.5)
        x[full] = jd.sample(keys, GAUSSIAN.denoiser(FLOW), sampler, times=times, schedule=FLOW, x_T=start)
    ddim = jd.sample(keys, GAUSSIAN.denoiser(FLOW), jd.samplers.ddim(), times=times, schedule=FLOW, x_T=start)
    np.testing.assert_allclose(x[False], ddim, atol=1e-6)
    assert np.abs(x[True] - ddim).max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_types_follow_x_under_x64(dtype):
    """Every sampler, whatever the type of the denoiser; the network sees x in its own type (float32 at least)."""
    with jax.enable_x64(True):
        wide, seen, keys = jnp.promote_types(dtype, jnp.float32), set(), jd.sample_keys(jax.random.key(0), 2)

        def predict(x, t, cond):
            seen.add(x.dtype)
            return jnp.tanh(x)

        network = jd.as_denoiser(predict, schedule=FLOW, prediction="v")
        for make in (*jd.samplers.METHODS.values(), lambda: jd.samplers.heun(churn=0.1), lambda: jd.samplers.ddim(0.5)):
            sampler, x_T = make(), jnp.ones((2, 2), dtype)
            for denoise in (network, GAUSSIAN.denoiser(FLOW)):
                run = functools.partial(
                    jd.sample, keys, denoise, sampler, times=np.linspace(1, 0, 5), schedule=FLOW, x_T=x_T
                )
                assert jax.eval_shape(run).dtype == wide
            x, t, s = x_T.astype(wide), jnp.array(0.8), jnp.array(0.5)
            step = functools.partial(sampler.step, keys, network, schedule=FLOW)
            assert jax.eval_shape(step, x, sampler.init(x), t, s)[0].dtype == wide, make
        assert seen == {jnp.dtype(wide)}
