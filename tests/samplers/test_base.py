"""The loop itself: what compiles again (nothing), what memory, dtypes and gradients do, and what is refused."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.denoisers import Prediction
from tests.oracles import GAUSSIAN, MIXTURE
from tests.samplers.convergence import POINT

FLOW, COSINE = jd.schedules.flow(), jd.schedules.cosine()
WITH_ETA = ("ddim", "dpmpp_sde", "dpmpp_2m_sde")


@contextlib.contextmanager
def counted_compilations():
    """A list that grows by one for each program that XLA compiles, jitted by hand or by JAX itself."""
    seen, open_now = [], [True]

    def listen(event, duration, **_):
        if open_now[0] and event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        open_now[0] = False


def test_values_compile_nothing_again():
    """Other steps, eta, guidance and seed: one program, for every method that takes them; and the counter counts."""
    cond, uncond = GAUSSIAN.denoiser(COSINE), MIXTURE.denoiser(COSINE)

    @jax.jit
    def run(key, times, eta, guidance):
        denoise = jd.classifier_free(cond, uncond, guidance)
        samplers = [jd.samplers.by_name(name, eta=eta) for name in WITH_ETA] + [jd.samplers.dpmpp_3m()]
        keys = jd.sample_keys(key, 2)
        return [jd.sample(keys, denoise, s, shape=(2,), times=times, schedule=COSINE) for s in samplers]

    def arguments(seed, steps, spacing, eta, guidance):
        times = jd.time_grid(COSINE, steps, spacing, max_steps=64)
        return jax.random.key(seed), times, np.float32(eta), np.float32(guidance)

    with counted_compilations() as seen:
        first = jax.block_until_ready(run(*arguments(0, 64, "trailing", 0.0, 1.0)))
        assert seen
        seen.clear()
        later = [
            run(*arguments(*values))
            for values in ((1, 1, "trailing", 1.0, 7.5), (2, 10, "leading", 0.3, 0.0), (3, 63, "quadratic", 1.0, 2.0))
        ]
        assert not seen
    assert all(np.all(np.isfinite(x)) for result in later for x in result)
    assert not np.array_equal(first[0], later[0][0])


def test_padding_changes_nothing():
    """Ten steps of a program made for 64 are ten steps: the same numbers as from one made for ten."""
    keys, denoise = jd.sample_keys(jax.random.key(0), 3), MIXTURE.denoiser(COSINE)

    @jax.jit
    def run(times):
        samplers = (jd.samplers.ddim(1.0), jd.samplers.unipc(3))
        return [jd.sample(keys, denoise, s, shape=(2,), times=times, schedule=COSINE) for s in samplers]

    for exact, padded in zip(run(jd.time_grid(COSINE, 10)), run(jd.time_grid(COSINE, 10, max_steps=64)), strict=True):
        np.testing.assert_allclose(padded, exact, atol=2e-6)


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_memory_does_not_grow_with_the_steps(name):
    """What XLA allots to 10 and to 1000 steps differs by the list of times; a trajectory costs its size."""
    size = 4 * 8192  # bytes of x

    def memory(steps, trajectory):
        def run(times, x_T):
            keys = jd.sample_keys(jax.random.key(0), 1)
            denoise, sampler = lambda x, t: Prediction(jnp.tanh(x), x - jnp.tanh(x)), jd.samplers.by_name(name)
            return jd.sample(keys, denoise, sampler, times=times, schedule=FLOW, x_T=x_T, trajectory=trajectory)

        arrays = jax.ShapeDtypeStruct((steps + 1,), jnp.float32), jax.ShapeDtypeStruct((1, 8192), jnp.float32)
        analysis = jax.jit(run).lower(*arrays).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    few, many = memory(10, False), memory(1000, False)
    assert many - few < size  # 3 numbers of 4 bytes a step, twice
    assert few < 16 * size
    if name == "ddim":
        assert memory(1000, True) > many + 2 * 1000 * size


def test_networks_in_bfloat16_have_float32_states():
    """x and every number that a method remembers stay float32; so does x_T given in bfloat16."""
    seen = []

    def predict(x_t, t, cond):
        seen.append((x_t.dtype, t.dtype))
        return jnp.tanh(x_t.astype(jnp.bfloat16))

    denoise = jd.as_denoiser(predict, schedule=FLOW, prediction="v")
    keys, t, s = jd.sample_keys(jax.random.key(0), 2), jnp.float32(0.8), jnp.float32(0.6)
    x = jnp.ones((2, 3))
    for make in jd.samplers.METHODS.values():
        sampler = make()
        step = functools.partial(sampler.step, keys, denoise, schedule=FLOW)
        after = jax.eval_shape(lambda x, step=step, sampler=sampler: step(x, sampler.init(x), t, s), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("float32"))}

    run = functools.partial(jd.sample, keys, denoise, jd.samplers.ddim(), times=np.float32([1, 0.5, 0]), schedule=FLOW)
    half = jnp.asarray([[0.5, -1.0, 2.0]] * 2, jnp.bfloat16)  # exact in both types
    low, full = run(x_T=half), run(x_T=half.astype(jnp.float32))
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, full)


@pytest.mark.parametrize(
    "names",
    [
        ("dpm_solver_2", "unipc", "dpmpp_2m_sde"),
        pytest.param(
            tuple(n for n in jd.samplers.METHODS if n not in ("euler", "dpm_solver_1")), marks=pytest.mark.slow
        ),
    ],
    ids=["some", "all"],
)
def test_gradient_through_ten_steps_is_that_of_finite_differences(names):
    """Of the data that the denoiser knows, of guidance, eta and x_T at once; euler and dpm_solver_1 are ddim."""
    with jax.enable_x64(True):
        times = np.linspace(1.0, 0.0, 11)
        keys, x_T = jd.sample_keys(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (3, 2), jnp.float64)

        def moved(data, shift):
            def denoise(x_t, t):
                m = FLOW(t).like(x_t)
                p = data.denoiser(FLOW)(x_t - m.alpha * shift, t)
                return Prediction(p.x_0 + shift, p.noise)

            return denoise

        def results(h):
            denoise = jd.classifier_free(moved(MIXTURE, h), moved(GAUSSIAN, -h), 1.5 + h)
            x = x_T + h * jnp.cos(jnp.arange(6.0)).reshape(3, 2)
            run = functools.partial(jd.sample, keys, denoise, times=times, schedule=FLOW, x_T=x)
            found = [run(sampler=jd.samplers.by_name(name)) for name in names]
            return jnp.stack([jnp.sum(jnp.sin(x)) for x in [*found, run(sampler=jd.samplers.ddim(0.5 + h))]])

        quick = {"xla_backend_optimization_level": 0}
        weights = np.sqrt(np.arange(1.0, len(names) + 2.0))  # one backward pass for all
        slope = jax.jit(jax.grad(lambda h: weights @ results(h)), compiler_options=quick)(0.0)
        forward, h = jax.jit(results, compiler_options=quick), 1e-6
        expected = np.asarray((forward(h) - forward(-h)) / (2 * h))
    assert np.all(np.abs(expected) > 1e-3)
    assert float(slope) == pytest.approx(float(weights @ expected), rel=1e-7)


def test_example_i_depends_on_its_own_key_alone():
    keys, denoise = jd.sample_keys(jax.random.key(0), 6), MIXTURE.denoiser(FLOW)

    @jax.jit
    def run(keys):
        times = np.float32([1.0, 0.7, 0.3, 0.0])
        makers = (jd.samplers.ddpm, jd.samplers.dpmpp_sde, jd.samplers.dpmpp_2m_sde, jd.samplers.lcm)
        samplers = [make() for make in makers] + [jd.samplers.heun(churn=0.3)]
        return [jd.sample(keys, denoise, s, shape=(2,), times=times, schedule=FLOW) for s in samplers]

    for whole, part in zip(run(keys), run(keys[3:5]), strict=True):
        np.testing.assert_allclose(part, whole[3:5], atol=2e-6)
        assert len(np.unique(np.asarray(whole))) == whole.size


def test_x_T_is_sigma_noise_and_the_trajectory_is_the_walk():
    """In one network call a step: the estimates shown are those that were used."""
    schedule = jd.schedules.edm(sigma_max=20.0)
    keys, denoise = jd.sample_keys(jax.random.key(0), 4000), POINT.denoiser(schedule)
    times = np.float32([0.9, 0.5, 0.2])
    run = functools.partial(jd.sample, keys, denoise, jd.samplers.ddim(), times=times, schedule=schedule)
    x, walk = run(shape=(2,), trajectory=True)
    assert walk.x_t.shape == (3, 4000, 2) and walk.x_0.shape == (2, 4000, 2)
    np.testing.assert_array_equal(walk.x_t[-1], x)
    np.testing.assert_allclose(x, run(shape=(2,)), atol=1e-5)
    np.testing.assert_allclose(walk.x_0, np.broadcast_to(POINT.means, walk.x_0.shape), atol=1e-6)
    sigma = 20.0 * 0.9**7
    assert float(walk.x_t[0].std()) == pytest.approx(sigma, rel=4 / np.sqrt(2 * 8000))

    weights = jnp.eye(2)
    counted = jax.jit(
        lambda x: jd.sample(
            keys[:4],
            lambda x, t: Prediction(jnp.dot(x, weights + t), x),
            jd.samplers.ddim(),
            times=times,
            schedule=schedule,
            x_T=x,
            trajectory=True,
        )
    )
    assert counted.lower(jnp.ones((4, 2))).compile().as_text().count(" dot(") == 1


def test_multistep_pasts_start_empty():
    """Trap 20: nothing of one walk is seen by the next; a Sampler is used twice, the second time as if it were new."""
    for make in (jd.samplers.dpmpp_3m, jd.samplers.unipc, jd.samplers.deis, jd.samplers.plms):
        sampler = make()
        leaves = jax.tree.leaves(sampler.init(jnp.full((2, 3), 7.0)))
        again = jax.tree.leaves(sampler.init(jnp.full((2, 3), 7.0)))
        for a, b in zip(leaves, again, strict=True):
            np.testing.assert_array_equal(a, b)
        counts = [leaf for leaf in leaves if leaf.dtype == jnp.int32]
        assert counts and all(int(count) == 0 for count in counts)


def broken(at_step, times):
    """A denoiser that says NaN for one example from one step on."""

    def denoise(x_t, t):
        bad = (t <= times[at_step] + 1e-6) & (jnp.arange(len(x_t)) == 1)[:, None]
        return Prediction(jnp.where(bad, jnp.nan, 0.5 * x_t), x_t)

    return denoise


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_watch_names_the_first_step_with_nan(name):
    times = jd.time_grid(FLOW, 8, max_steps=12)
    keys = jd.sample_keys(jax.random.key(0), 3)
    sampler = jd.samplers.watch(jd.samplers.by_name(name))
    run = functools.partial(jd.sample, keys, sampler=sampler, shape=(2,), times=times, schedule=FLOW)
    # Heun's second evaluation sees the next time: NaN is found one step earlier, with that time
    step, t = {"ddim": ("step 5", "t = 0.375"), "heun": ("step 4", "t = 0.375")}[name]
    with pytest.raises(Exception, match=f"not finite at {step}, {t}"):
        jax.block_until_ready(run(denoise=broken(5, times)))
        jax.effects_barrier()
    fine = run(denoise=GAUSSIAN.denoiser(FLOW))
    jax.effects_barrier()
    plain = jd.sample(keys, GAUSSIAN.denoiser(FLOW), jd.samplers.by_name(name), shape=(2,), times=times, schedule=FLOW)
    np.testing.assert_allclose(fine, plain, atol=1e-6)


REFUSED = {
    "name": (lambda: jd.samplers.by_name("ddmi"), r"unknown sampler 'ddmi'; choose one of ddpm, ddim, .*, lcm"),
    "option": (lambda: jd.samplers.by_name("heun", eta=1.0), r"heun has no option 'eta'; it takes churn, s_tmin"),
    "no option": (lambda: jd.samplers.by_name("lcm", eta=1.0), r"lcm has no option 'eta'; it takes none"),
    "eta": (lambda: jd.samplers.ddim(1.1), r"eta must lie in \[0, 1\], got 1.1"),
    "eta nan": (lambda: jd.samplers.dpmpp_sde(float("nan")), r"eta must lie in \[0, 1\], got nan"),
    "eta negative": (lambda: jd.samplers.dpmpp_2m_sde(-0.1), r"eta must lie in \[0, 1\], got -0.1"),
    "variance": (lambda: jd.samplers.ddpm("big"), r"unknown variance 'big'; choose one of small, large, learned"),
    "churn": (lambda: jd.samplers.heun(churn=0.5), r"churn must lie in \[0, 0.4142\].*got 0.5"),
    "churn in JAX": (lambda: jd.samplers.heun(churn=jnp.array(-0.1)), r"churn must lie in \[0, 0.4142\].*got -0.1"),
    "s_noise": (lambda: jd.samplers.heun(s_noise=-1.0), r"s_noise must be finite, >= 0 \(1 is the usual\), got -1.0"),
    "s_tmin": (lambda: jd.samplers.heun(s_tmin=2.0, s_tmax=1.0), r"s_tmin must not exceed s_tmax, got 2.0 and 1.0"),
    "deis": (lambda: jd.samplers.deis(5), r"order 1, 2, 3 or 4, got 5"),
    "unipc": (lambda: jd.samplers.unipc(0), r"must be 1, 2 or 3, got 0"),
    "coefficients": (lambda: jd.samplers.unipc(2, "bh3"), r"'bh3'; choose one of exact, bh1, bh2"),
    "iterations": (lambda: jd.samplers.ddim_inversion(0), r"iterations must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_factories_refuse_with_the_legal_range(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([0.5], {}, r"2 or more numbers in \[0, 1\]"),
        ([1.2, 0.0], {}, r"in \[0, 1\]"),
        ([0.5, -0.1], {}, r"in \[0, 1\]"),
        ([0.9, 0.2, 0.4], {}, "strictly descending"),
        ([0.9, 0.5, 0.5, 0.0], {}, "strictly descending"),
        ([0.9, 0.0, 0.0], {"trajectory": True}, "none with trajectory"),
        ([np.nan, 0.0], {}, r"in \[0, 1\]"),
        ([0.9, 0.0], {"x_T": jnp.zeros((3, 2))}, "one key per sample: got 2 keys for 3 samples"),
    ],
)
def test_sample_refuses(times, options, message):
    keys = jd.sample_keys(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=message):
        run = functools.partial(jd.sample, keys, GAUSSIAN.denoiser(FLOW), jd.samplers.ddim(), shape=(2,), schedule=FLOW)
        run(times=np.array(times), **options)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_one_key_for_all_samples_is_refused(key):
    with pytest.raises(ValueError, match=r"keys must be one per sample, as sample_keys\(key, num\) makes them"):
        jd.sample(key, GAUSSIAN.denoiser(FLOW), jd.samplers.ddim(), shape=(2,), times=np.array([0.9, 0]), schedule=FLOW)
