"""diffusers' scheduler_config.json as our schedule, times and sampler.

Their step n of 0..T-1 is our entry k = n + 1 of 0..T, on t = k/T. Their "final alpha" (set_alpha_to_one false, or
final_sigmas_type sigma_min) is entry 1: what they return there is x at t = 1/T, not the image at t = 0, and the
times end there. Where their pairs (t, s) come from arithmetic (s = t - T // N) and not from their list, ours are
those of the list: the same where T // N divides the list evenly, as "leading" does.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxdiff import schedules
from jaxdiff.denoisers import Denoiser, Prediction, as_denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop import scheduler_steps
from jaxdiff.interop.file_kinds import what_is
from jaxdiff.interop.scheduler_fields import DEFAULTS, PREDICTIONS, PROCESS, VARIANCES, VERSION, filled
from jaxdiff.process import to_x0_noise
from jaxdiff.samplers import Sampler, by_name
from jaxdiff.schedules import Schedule

STEPS = 1000  # of the processes that 1000 t, which our network sees, can count
_MAX_BYTES = 1 << 24  # of a JSON file
_MULTISTEP: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {
    ("dpmsolver++", 1): ("ddim", {"eta": 0.0}),
    ("dpmsolver++", 2): ("dpmpp_2m", {"full_order": True}),
    ("dpmsolver++", 3): ("dpmpp_3m", {"compat": True, "midpoint": True, "full_order": True}),
    ("sde-dpmsolver++", 2): ("dpmpp_2m_sde", {"full_order": True}),
}


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A scheduler of theirs in our parts.

    Attributes:
      schedule: the noise schedule, discrete: of training.
      prediction: what their network puts out.
      method: our sampler's name in `jaxdiff.samplers`, and `options` its arguments.
      options: as above.
      config: theirs, with its defaults filled in.
      notes: where the result differs from theirs, a line each.
    """

    schedule: Schedule
    prediction: str
    method: str
    options: dict[str, Any]
    config: dict[str, Any]
    notes: tuple[str, ...]

    def sampler(self) -> Sampler:
        """Their step as our sampler."""
        return by_name(self.method, **self.options)

    def times(self, num_steps: int) -> np.ndarray:
        """The times of their num_steps steps, float32, descending, for `jaxdiff.sample` on the schedule `walk`.

        A last step that goes nowhere (from entry 1 to entry 1) is left out.

        Raises:
          ValueError: num_steps is not in 1..T, or their steps leave 0..T-1.
        """
        entries, last = scheduler_steps.steps(self.config, self.schedule, num_steps) + 1.0, self.last_entry
        kept = entries[entries > last + 1e-6]
        return (np.append(kept, last) / self.config["num_train_timesteps"]).astype(np.float32)

    @functools.cached_property
    def walk(self) -> Schedule:
        """The schedule that their steps go along: that of training, or between its entries where the steps are."""
        karras = self.config.get("use_karras_sigmas", False)
        if karras or scheduler_steps.is_euler(self.config):
            return scheduler_steps.between(self.schedule, log=karras)
        return self.schedule

    def start(self, t: ArrayLike) -> jax.Array:
        """What unit noise is multiplied by at the first time: sigma for Euler's (leading steps apart), else 1."""
        euler = scheduler_steps.is_euler(self.config) and self.config["timestep_spacing"] != "leading"
        return self.walk(t).sigma if euler else jnp.ones(())

    def denoiser(self, predict: Callable[..., Any], cond: Any = None) -> Denoiser:
        """Their network, (x_t, t, cond) -> output, as a denoiser on `walk`; for `threshold`, after any guidance."""

        def scaled(x_t: jax.Array, t: jax.Array, cond: Any) -> Any:
            return predict(x_t, scheduler_steps.seen(self.config, t), cond)

        return as_denoiser(scaled, schedule=self.walk, prediction=self.prediction, cond=cond)

    @property
    def last_entry(self) -> int:
        """The entry where they end: 0, the image; or 1, a little noise."""
        c = self.config
        to_zero = c.get("set_alpha_to_one", True) and c.get("final_sigmas_type", "zero") == "zero"
        return 0 if to_zero else 1

    def threshold(self, denoise: Denoiser) -> Denoiser:
        """Their clipping of x_0: in DDIM and DDPM the noise stays that of before (in DPM-Solver it is not used)."""
        c = self.config
        if c.get("thresholding"):
            ratio, limit = c["dynamic_thresholding_ratio"], c["sample_max_value"]

            def change(x_0: jax.Array) -> jax.Array:
                axes = tuple(range(1, x_0.ndim))
                bound = jnp.quantile(jnp.abs(x_0), ratio, axis=axes, keepdims=True)
                bound = jnp.clip(bound, 1.0, limit)
                return jnp.clip(x_0, -bound, bound) / bound
        elif c.get("clip_sample"):

            def change(x_0: jax.Array) -> jax.Array:
                return jnp.clip(x_0, -c["clip_sample_range"], c["clip_sample_range"])
        else:
            return denoise
        return _changed(denoise, change, self.walk, rederive=self.method.startswith(("dpmpp", "unipc")))


def _changed(denoise: Denoiser, change: Callable, schedule: Schedule, rederive: bool) -> Denoiser:
    def changed(x_t: jax.Array, t: ArrayLike) -> Prediction:
        before = denoise(x_t, t)
        x_0 = change(before.x_0)
        return before._replace(
            x_0=x_0, noise=to_x0_noise("x_0", x_0, x_t, schedule(t))[1] if rederive else before.noise
        )

    return changed


def read_scheduler(path: os.PathLike | str) -> Scheduler:
    """A scheduler_config.json, or that of a folder; see `scheduler_file`.

    The notes say which file it is, if it is outside of the folder, and what its fields leave to diffusers' defaults.

    Raises:
      UserError: there is none, or it asks for what jaxdiff does not do; all of it.
    """
    file = scheduler_file(path)
    if file is None:
        raise UserError(f"{path} has no scheduler_config.json, nor has its folder scheduler, nor have those above it")
    config, notes = process_config(file)
    if not file.is_relative_to(os.path.abspath(path)):
        notes = [f"the process is that of {file}", *notes]
    scheduler = scheduler_from_config(config)
    return dataclasses.replace(scheduler, notes=(*notes, *scheduler.notes))


def scheduler_file(path: os.PathLike | str) -> Path | None:
    """The scheduler_config.json of a network's folder: in it, in its folder `scheduler`, or in one of a folder above.

    A pipeline has unet/ and scheduler/; a trainer's checkpoint-N/unet_ema has its scheduler two folders up.
    """
    path = Path(os.path.abspath(path))  # links stay: a hub's cache is made of them
    snapshots = sorted(path.glob("snapshots/*/"))
    places = [path, *snapshots] if len(snapshots) == 1 else [path]
    if path.is_dir():
        above = path.parent.parent
        of_trainer = path.parent.name.startswith("checkpoint") or (above / "model_index.json").is_file()
        places += [path.parent, above] if of_trainer else [path.parent]
    files = [
        file for at in places for file in (at / "scheduler" / "scheduler_config.json", at / "scheduler_config.json")
    ]
    return next((file for file in [path, *files] if file.is_file()), None)


def process_config(file: Path) -> tuple[dict[str, Any], list[str]]:
    """A scheduler_config.json with the class that diffusers makes of it, and a line for what it leaves to defaults.

    Raises:
      UserError: it cannot be read, or neither it nor its model_index.json names a class.
    """
    config, notes = read_json(file), []
    index = next((at for at in (file.parent, file.parent.parent) if (at / "model_index.json").is_file()), None)
    named = read_json(index / "model_index.json").get("scheduler") if index else None
    kind = named[-1] if isinstance(named, list) and named and isinstance(named[-1], str) else None
    own = config.get("_class_name", kind)
    if own is None:
        raise UserError(f"{file} has no _class_name: write that of its scheduler into it, such as DDPMScheduler")
    own, kind = str(own).removeprefix("Flax"), str(kind or own).removeprefix("Flax")
    if kind != own:
        notes.append(
            f"scheduler {kind}, as model_index.json has it and diffusers takes it, not the {own} of its config"
        )
    config = {**config, "_class_name": kind}
    old = {"prediction_type": "predict_epsilon", "num_train_timesteps": "timesteps"}
    fixed = config.get("trained_betas") is not None or config.get("beta_schedule") == "squaredcos_cap_v2"
    unsaid = [field for field in PROCESS if field not in config and old.get(field) not in config]
    assumed = [
        f"{f}={DEFAULTS.get(kind, {}).get(f)}" for f in unsaid if not (fixed and f in ("beta_start", "beta_end"))
    ]
    if assumed:
        notes.append(f"{file} does not say {', '.join(assumed)}: assumed, as diffusers does")
    return config, notes


def refuse_other_counts(scheduler: Scheduler) -> None:
    """Refuses processes whose step n is not what a network of ours is told, 1000 t.

    Raises:
      UserError: num_train_timesteps is not 1000.
    """
    if (steps := scheduler.config["num_train_timesteps"]) != STEPS:
        raise UserError(
            f"num_train_timesteps={steps} (only {STEPS}): their network was told steps of 1/{steps} by their number, "
            f"which ours counts in 1/{STEPS}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: no such file, or another content.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        what = what_is(path)
        raise UserError(f"{path} {what}" if what else f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """The fields of a scheduler_config.json -> our parts.

    Raises:
      UserError: it asks for what jaxdiff does not do; all of it.

    >>> scheduler = scheduler_from_config({"_class_name": "DDIMScheduler", "steps_offset": 1})
    >>> scheduler.method, scheduler.prediction, (scheduler.times(4) * 1000).round().tolist()
    ('ddim', 'noise', [752.0, 502.0, 252.0, 2.0, 0.0])
    """
    name = str(config.get("_class_name"))
    if name not in DEFAULTS:
        raise UserError(f"scheduler {name!r} is not imported; choose one of {', '.join(DEFAULTS)}")
    c, problems = filled(name, config)
    notes: list[str] = []
    method, options = _method(name, c, problems, notes)
    schedule = None if problems else _schedule(c, problems)
    if problems or schedule is None:
        raise UserError(f"{name} asks for what jaxdiff does not do: {'; '.join(problems)}")
    scheduler = Scheduler(schedule, PREDICTIONS[c["prediction_type"]], method, options, c, tuple(notes))
    try:
        scheduler.walk  # noqa: B018
    except ValueError as error:
        raise UserError(f"{name} asks for what jaxdiff does not do: {error}") from None
    return scheduler


def _method(name: str, c: Mapping[str, Any], problems: list[str], notes: list[str]) -> tuple[str, dict[str, Any]]:
    """Our sampler's name and options."""
    if c.get("solver_order") == 3:
        notes.append("solver_order 3: below 15 steps the last but one of theirs has order 2, ours 3")
    if name == "DPMSolverMultistepScheduler":
        kind = (c["algorithm_type"], c["solver_order"])
        if kind not in list(_MULTISTEP) or type(kind[1]) is not int:
            problems.append(f"algorithm_type={kind[0]!r} with solver_order={kind[1]!r} (only {list(_MULTISTEP)})")
            return "", {}
        if c["final_sigmas_type"] != "zero":
            notes.append(
                "final_sigmas_type sigma_min: below 15 steps their last step has order 1, ours that of the others"
            )
        return _MULTISTEP[kind]
    if name == "UniPCMultistepScheduler":
        if c["final_sigmas_type"] != "zero":
            notes.append("final_sigmas_type sigma_min: their last step has order 1, ours that of the others")
        return "unipc", {"order": c["solver_order"], "coefficients": c["solver_type"], "full_order": True}
    if name == "LCMScheduler":
        return "lcm", {}
    if name == "EulerAncestralDiscreteScheduler":
        return "ddim", {"eta": 1.0}
    if name == "DDPMScheduler":
        variance = c["variance_type"]
        if variance not in list(VARIANCES):
            if variance not in ("learned", "learned_range"):
                problems.append(f"variance_type={variance!r} (only {', '.join(VARIANCES)})")
            notes.append(f"variance_type {variance!r}: the small variance is used, and the learned one is not")
        return "ddpm", {"variance": VARIANCES.get(str(variance), "small")}
    if name == "PNDMScheduler":
        if c["prediction_type"] == "v_prediction":
            notes.append("prediction_type v_prediction: they combine past v, plms past noise")
        if not c["skip_prk_steps"]:
            notes.append("skip_prk_steps false: plms starts with one improved Euler step in place of their Runge-Kutta")
        return "plms", {"full_order": True}
    return "ddim", {"eta": 0.0}


def _schedule(c: Mapping[str, Any], problems: list[str]) -> Schedule | None:
    """Their betas, in float64; theirs are float32, and so are wrong by up to 2e-4 of 1 - alpha_bar."""
    steps, kind = c["num_train_timesteps"], c["beta_schedule"]
    low, high = c["beta_start"], c["beta_end"]
    try:
        if c["trained_betas"] is not None:
            schedule = schedules.from_betas(np.asarray(c["trained_betas"], np.float64))
            if schedule.num_steps != steps:
                raise ValueError(f"{schedule.num_steps} trained_betas for num_train_timesteps={steps}")
        elif kind == "linear":
            schedule = schedules.linear(steps, low, high)
        elif kind == "scaled_linear":
            schedule = schedules.scaled_linear(steps, low, high)
        elif kind == "squaredcos_cap_v2":
            schedule = schedules.cosine(steps)
        else:
            schedule = schedules.from_betas(low + (high - low) / (1.0 + np.exp(-np.linspace(-6, 6, steps))))
        return schedule.rescale_zero_snr() if c.get("rescale_betas_zero_snr") else schedule
    except (ValueError, TypeError) as error:
        problems.append(f"betas: {error}")
        return None


def scheduler_config(schedule: Schedule, prediction: str) -> dict[str, Any]:
    """A DDPMScheduler of our schedule: its betas, by their values.

    Raises:
      UserError: the schedule is continuous or not of 1000 steps, or the prediction is not one of theirs.

    >>> config = scheduler_config(schedules.cosine(), "v")
    >>> config["prediction_type"], len(config["trained_betas"])
    ('v_prediction', 1000)
    """
    kinds = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if schedule.betas is None or schedule.num_steps != STEPS:
        kind = "is continuous" if schedule.num_steps is None else f"has {schedule.num_steps}"
        raise UserError(f"diffusers needs a discrete schedule of {STEPS} steps; this one {kind}")
    if prediction not in kinds:
        raise UserError(f"diffusers does not predict {prediction!r}; only {', '.join(kinds)}")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": STEPS,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": kinds[prediction],
        "variance_type": "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }
