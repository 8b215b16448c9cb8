"""The fields of diffusers' schedulers: their defaults, and the values that jaxdiff has something for."""

import math
from collections.abc import Mapping
from typing import Any

VERSION = "0.42.1"  # of diffusers, whose defaults and formats these are
PREDICTIONS = {"epsilon": "noise", "sample": "x_0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
SPACINGS = ("leading", "trailing", "linspace")

_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
PROCESS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""What a network was trained with: a default in its place is to be said."""

_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_SIGMAS = {
    "timestep_spacing": "linspace",
    "rescale_betas_zero_snr": False,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _COMMON | _THRESHOLD | _CLIP | {"variance_type": "fixed_small", "rescale_betas_zero_snr": False},
    "DDIMScheduler": _COMMON | _THRESHOLD | _CLIP | {"set_alpha_to_one": True, "rescale_betas_zero_snr": False},
    "PNDMScheduler": _COMMON | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": _COMMON
    | _THRESHOLD
    | _SIGMAS
    | _FLOW
    | {
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_lu_lambdas": False,
    },
    "UniPCMultistepScheduler": _COMMON
    | _THRESHOLD
    | _SIGMAS
    | _FLOW
    | {
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "EulerDiscreteScheduler": _COMMON
    | _SIGMAS
    | {"interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "sigma_max": None},
    "EulerAncestralDiscreteScheduler": _COMMON | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
    "LCMScheduler": _COMMON
    | _THRESHOLD
    | {"clip_sample": False, "clip_sample_range": 1.0, "set_alpha_to_one": True, "rescale_betas_zero_snr": False}
    | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0},
}
_CHOICES: dict[str, tuple] = {  # of each field, in every class that has it; of others any value will do
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": SPACINGS,
    "final_sigmas_type": ("zero", "sigma_min"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "lambda_min_clipped": (-math.inf,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "predict_x0": (True,),
    "disable_corrector": ([], ()),
    "solver_p": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}
_OF_CLASS: dict[str, dict[str, tuple]] = {
    "DPMSolverMultistepScheduler": {"solver_type": ("midpoint",)},
    "UniPCMultistepScheduler": {"solver_type": ("bh1", "bh2"), "solver_order": (1, 2, 3)},
    "EulerDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "EulerAncestralDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "PNDMScheduler": {"prediction_type": ("epsilon", "v_prediction")},
}
_NUMBERS = (
    *("beta_start", "beta_end", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"),
    "timestep_scaling",
)
_FLAGS = ("thresholding", "clip_sample", "set_alpha_to_one", "skip_prk_steps", "use_karras_sigmas")
_MAX_STEPS = 100_000


def filled(name: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config of the class `name` with its defaults, and what it asks for that cannot be had, a line each.

    Fields of other classes are left out: files carry those of whatever they were made from. Fields of old files are
    read under their names of then.

    >>> filled("DDIMScheduler", {"timestep_spacing": "cubic", "num_train_timesteps": 0})[1][0]
    "timestep_spacing='cubic' (only leading, trailing, linspace)"
    """
    config, problems = _renamed(config)
    c = {"_class_name": name, **{field: config.get(field, default) for field, default in DEFAULTS[name].items()}}
    if c.get("lambda_min_clipped") == "-inf":  # JSON has no infinity
        c["lambda_min_clipped"] = -math.inf
    for field, choices in (_CHOICES | _OF_CLASS.get(name, {})).items():
        if field in c and not any(type(c[field]) is type(choice) and c[field] == choice for choice in choices):
            problems.append(f"{field}={c[field]!r} (only {', '.join(map(str, choices))})")
    whole = {"num_train_timesteps": (1, _MAX_STEPS), "steps_offset": (0, _MAX_STEPS)}
    if "original_inference_steps" in c:
        top = c["num_train_timesteps"]
        whole["original_inference_steps"] = (1, top if type(top) is int else _MAX_STEPS)
    for field, (low, high) in whole.items():
        if type(c[field]) is not int or not low <= c[field] <= high:
            problems.append(f"{field}={c[field]!r} (only a whole number in {low}..{high})")
    for field in _NUMBERS:
        value = c.get(field, 0.0)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            problems.append(f"{field}={value!r} (only a number, 0 or more)")
    problems += [f"{flag}={c[flag]!r} (only true or false)" for flag in _FLAGS if type(c.get(flag, False)) is not bool]
    if c.get("use_karras_sigmas") is True and c["beta_schedule"] == "squaredcos_cap_v2":
        problems.append("use_karras_sigmas with squaredcos_cap_v2 (diffusers repeats its first step, and fails)")
    return c, problems


def _renamed(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config under today's names, and what it says of the same twice, and differently."""
    today = dict(config)
    if (flag := config.get("predict_epsilon")) is not None:  # until diffusers 0.10
        today["prediction_type"] = ("sample", "epsilon")[flag] if isinstance(flag, bool) else flag
    if config.get("timesteps") is not None:  # until diffusers 0.2
        today["num_train_timesteps"] = config["timesteps"]
    both = [
        f"{old}={config[old]!r} and {new}={config[new]!r} (keep the right one)"
        for old, new in (("predict_epsilon", "prediction_type"), ("timesteps", "num_train_timesteps"))
        if old in config and new in config and config[new] != today[new]
    ]
    return today, both
