"""Makes tests/fixtures/interop with torch and diffusers: what tests/interop compares jaxdiff with.

Its environment is its own (Python 3.11, kept outside the checkout), so that neither jaxdiff nor its tests need torch:

    python3.11 -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 "diffusers==0.42.*" safetensors transformers
    /tmp/torchenv/bin/python scripts/make_interop_fixtures.py --openai FOLDER

FOLDER holds the packages guided_diffusion (openai/guided-diffusion at 22e0df8) and improved_diffusion
(openai/improved-diffusion at 1bc7bbb); without it their fixtures stay as they are.
Every network is tiny, covers some options of a published one, and has random weights in half precision, computed in
float32. Schedulers run on a closed-form stand-in for a network, as published (float32 tables) and with their tables
computed anew in float64, where trajectories show the algorithm and not the rounding of alphas_cumprod.
"""

import argparse
import importlib
import itertools
import json
import math
import platform
import sys
import types
import zlib
from collections import OrderedDict
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

ROOT = Path(__file__).parent.parent / "tests" / "fixtures" / "interop"

PUBLISHED = {  # what google/ddpm-* say
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 4,
    "time_embedding_type": "positional",
}


def blocks(kinds: str) -> dict:
    """ "dad" -> the block types of a three-level network with attention at the second."""
    down = {"d": "DownBlock2D", "a": "AttnDownBlock2D", "r": "ResnetDownsampleBlock2D"}
    up = {"d": "UpBlock2D", "a": "AttnUpBlock2D", "r": "ResnetUpsampleBlock2D"}
    return {
        "down_block_types": [down[kind] for kind in kinds],
        "up_block_types": [up[kind] for kind in reversed(kinds)],
    }


NETWORKS = {
    # google/ddpm-cifar10-32: attention at the second of four levels, one head, TensorFlow's padding
    "ddpm_cifar10": PUBLISHED
    | {"sample_size": 16, "block_out_channels": [8, 16, 16, 16], "layers_per_block": 1}
    | blocks("dadd"),
    # google/ddpm-celebahq-256 and ddpm-ema-church-256: six levels, attention at the fifth
    "ddpm_church": PUBLISHED
    | {"sample_size": 32, "block_out_channels": [8, 8, 8, 8, 16, 16], "layers_per_block": 1}
    | blocks("ddddad"),
    # diffusers' defaults: cos before sin, symmetric padding, heads of 8, eps 1e-5; two layers a block, dropout
    "defaults": {"sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4, "dropout": 0.1} | blocks("da"),
    # ADM as diffusers stores it (openai consistency models): scale and shift, resampling blocks, classes
    "adm": {
        "sample_size": 16,
        "block_out_channels": [8, 16, 24],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 8,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_class_embeds": 7,
    }
    | blocks("raa"),
    # the other two of the four time embeddings; other numbers of channels in than three; two heads
    "cos_first": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 8],
        "layers_per_block": 2,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
        "freq_shift": 1,
        "num_class_embeds": 3,
    }
    | blocks("ad"),
    "sin_first": {
        "sample_size": [8, 16],
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "flip_sin_to_cos": False,
        "freq_shift": 0,
    }
    | blocks("da"),
}

TIMESTEPS = [0, 1, 500, 999]


def make_network(name: str, config: dict, seed: int) -> None:
    """One folder: a pipeline's unet and scheduler, and io.npz with inputs and outputs."""
    torch.manual_seed(seed)
    net = UNet2DModel(**config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.named_parameters():
            spread = 0.3 if "norm" in key or key.endswith("bias") else 1.0 / math.sqrt(value[0].numel())
            noise = spread * torch.randn(value.shape, generator=generator)
            value.copy_((noise + ("norm" in key and key.endswith("weight"))).half().float())
    size = net.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    x = torch.randn((len(TIMESTEPS), net.config.in_channels, height, width), generator=generator)
    classes = net.config.num_class_embeds
    labels = None if classes is None else torch.arange(len(TIMESTEPS)) % classes
    with torch.no_grad():
        output = net(x, torch.tensor(TIMESTEPS), labels).sample
    folder = ROOT / name
    net.half().save_pretrained(folder / "unet")
    DDPMScheduler(variance_type="fixed_large").save_pretrained(folder / "scheduler")
    arrays = {"x": x.numpy(), "timesteps": np.array(TIMESTEPS), "output": output.numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez_compressed(folder / "io.npz", **arrays)


def cases() -> list[tuple[type, dict, float, int]]:
    """(scheduler class, its config, eta, number of steps)."""
    out: list[tuple[type, dict, float, int]] = []
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (4, 7, 20):
            out.append((DDPMScheduler, {"timestep_spacing": spacing}, 1.0, steps))
            for eta in (0.0, 1.0):
                out.append((DDIMScheduler, {"timestep_spacing": spacing, "clip_sample": False}, eta, steps))
            out.append((DPMSolverMultistepScheduler, {"timestep_spacing": spacing}, 0.0, steps))
    sd = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    pndm = {key: value for key, value in sd.items() if key != "clip_sample"} | {"skip_prk_steps": True}
    for steps in (10, 20):
        out += [
            (DDIMScheduler, sd, 0.0, steps),
            (DDIMScheduler, sd, 1.0, steps),
            (PNDMScheduler, pndm, 0.0, steps),
            (PNDMScheduler, pndm | {"set_alpha_to_one": True}, 0.0, steps),
            (PNDMScheduler, {"skip_prk_steps": True}, 0.0, steps),
            (DDIMScheduler, {}, 0.0, steps),  # clipped: their noise is not that of the clipped x_0
            (DDIMScheduler, {"clip_sample_range": 0.5, "set_alpha_to_one": False}, 0.5, steps),
            (DDIMScheduler, {"thresholding": True, "sample_max_value": 2.0}, 0.0, steps),
            (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}, 1.0, steps),
            (DDPMScheduler, {"beta_schedule": "sigmoid", "prediction_type": "sample"}, 1.0, steps),
            (
                DDPMScheduler,
                {"trained_betas": np.linspace(0.001, 0.3, 40).tolist(), "num_train_timesteps": 40},
                1.0,
                steps,
            ),
            (
                DDIMScheduler,
                {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
                0.0,
                steps,
            ),
            (
                DPMSolverMultistepScheduler,
                {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
                0.0,
                steps,
            ),
        ]
    out += [
        (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, 0.0, 20),
        (DPMSolverMultistepScheduler, {"solver_order": 1}, 0.0, 20),
        (DPMSolverMultistepScheduler, {"prediction_type": "sample", "thresholding": True}, 0.0, 20),
        (DDPMScheduler, {}, 1.0, 1000),
    ]
    karras, leading = {"use_karras_sigmas": True}, {"timestep_spacing": "leading", "steps_offset": 1}
    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    bh1 = {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}
    for spacing in ("leading", "trailing", "linspace"):
        for kind in (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, UniPCMultistepScheduler):
            out.append((kind, scaled | {"timestep_spacing": spacing}, 0.0, 12))
    out += [
        (EulerDiscreteScheduler, scaled | leading | {"prediction_type": "v_prediction"}, 0.0, 20),
        (EulerDiscreteScheduler, scaled | leading | karras, 0.0, 20),
        (EulerDiscreteScheduler, {"final_sigmas_type": "sigma_min"}, 0.0, 10),
        (EulerAncestralDiscreteScheduler, scaled | leading | {"prediction_type": "v_prediction"}, 0.0, 20),
        (DPMSolverMultistepScheduler, scaled | karras, 0.0, 20),
        (DPMSolverMultistepScheduler, scaled | karras | {"algorithm_type": "sde-dpmsolver++"}, 0.0, 20),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "trailing"}, 0.0, 20),
        (DPMSolverMultistepScheduler, {"solver_order": 3}, 0.0, 20),
        (
            DPMSolverMultistepScheduler,
            scaled | karras | {"solver_order": 3, "prediction_type": "v_prediction"},
            0.0,
            20,
        ),
        # their bh1 gives NaN in a last step to sigma 0
        (UniPCMultistepScheduler, bh1 | {"solver_order": 1}, 0.0, 10),
        (UniPCMultistepScheduler, bh1 | {"prediction_type": "v_prediction"}, 0.0, 20),
        (UniPCMultistepScheduler, {"prediction_type": "sample", "thresholding": True}, 0.0, 10),
        (UniPCMultistepScheduler, scaled | karras, 0.0, 20),
    ]
    return out


def network(x: torch.Tensor, step: float) -> torch.Tensor:
    """The stand-in: 0.3 x + sin(0.37 (n + 1) + j), j the entry; written again in tests/interop/test_schedulers.py."""
    j = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return 0.3 * x + torch.sin(0.37 * (step + 1) + j).to(x.dtype)


def noise_at(step: float, x: torch.Tensor) -> torch.Tensor:
    """The noise a step from n adds: cos(1.7 n + 0.9 j)."""
    j = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return torch.cos(1.7 * step + 0.9 * j).to(x.dtype)


def exact_tables(scheduler) -> None:
    """The scheduler's tables from its own formulas, in float64."""
    config = scheduler.config
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
    elif config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float64) ** 2
    elif config.beta_schedule == "sigmoid":
        ramp = torch.linspace(-6, 6, steps, dtype=torch.float64)
        betas = torch.sigmoid(ramp) * (config.beta_end - config.beta_start) + config.beta_start
    else:
        curve = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        pairs = itertools.pairwise(curve)
        betas = torch.tensor([min(1 - after / before, 0.999) for before, after in pairs], dtype=torch.float64)
    if getattr(config, "rescale_betas_zero_snr", False):
        betas = sys.modules[type(scheduler).__module__].rescale_zero_terminal_snr(betas)
    scheduler.betas = betas
    scheduler.alphas = 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        to_one = config.set_alpha_to_one
        scheduler.final_alpha_cumprod = torch.tensor(1.0).double() if to_one else scheduler.alphas_cumprod[0]
    if hasattr(scheduler, "lambda_t"):
        scheduler.alpha_t, scheduler.sigma_t = scheduler.alphas_cumprod**0.5, (1 - scheduler.alphas_cumprod) ** 0.5
        scheduler.lambda_t = torch.log(scheduler.alpha_t) - torch.log(scheduler.sigma_t)


class InFloat64(types.ModuleType):
    """torch for a scheduler that converts to float32 in each step."""

    float32 = torch.float64

    def __getattr__(self, name):
        """Everything else as it is."""
        return getattr(torch, name)


def exact_steps(scheduler, steps: int) -> None:
    """The sigmas of schedulers that keep them as float32, and Euler's steps, again in float64."""
    c = scheduler.config
    table = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).numpy()
    timesteps = scheduler.timesteps.double().numpy()
    if isinstance(scheduler, EULER) and c.timestep_spacing == "linspace":
        timesteps = np.linspace(0, c.num_train_timesteps - 1, steps)[::-1].copy()
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    if getattr(c, "use_karras_sigmas", False):
        sigmas = scheduler._convert_to_karras(sigmas if isinstance(scheduler, EULER) else table[::-1].copy(), steps)
        timesteps = np.array([scheduler._sigma_to_t(sigma, np.log(table)) for sigma in sigmas])
        timesteps = timesteps if isinstance(scheduler, EULER) else timesteps.round().astype(np.int64)
        assert np.allclose(timesteps, scheduler.timesteps.numpy(), atol=0.01), "float32 sigmas round otherwise"
    last = 0.0 if getattr(c, "final_sigmas_type", "zero") == "zero" else table[0]
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, last))
    scheduler.timesteps = torch.from_numpy(timesteps)


EULER = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)
SIGMAS = (*EULER, DPMSolverMultistepScheduler, UniPCMultistepScheduler)


def trajectory(kind: type, config: dict, eta: float, steps: int, dtype: torch.dtype) -> tuple[np.ndarray, list]:
    """x after every step, from the same x_T, and the time steps; Euler's x of variance 1 + sigma^2 brought to ours."""
    module = sys.modules[kind.__module__]
    scheduler = kind(**config)
    if dtype == torch.float64:
        exact_tables(scheduler)
    scheduler.set_timesteps(steps)
    if kind in SIGMAS:
        module.torch = InFloat64("torch") if dtype == torch.float64 else torch
        if dtype == torch.float64:
            exact_steps(scheduler, steps)

    def scale(i: int) -> torch.Tensor:
        return (1 + scheduler.sigmas[i].to(dtype) ** 2) ** 0.5 if kind in EULER else torch.tensor(1.0, dtype=dtype)

    x = torch.cos(torch.arange(16, dtype=torch.float64)).reshape(2, 8, 1).to(dtype) * 1.5
    walk, x = [x], x * scale(0)
    for i, n in enumerate(scheduler.timesteps if kind in EULER else scheduler.timesteps.tolist()):
        extra = {"eta": eta, "variance_noise": noise_at(n, x) if eta else None} if kind is DDIMScheduler else {}
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda *args, n=n, x=x, **kwargs: noise_at(n, x)
        x = scheduler.step(network(scheduler.scale_model_input(x, n), n), n, x, **extra).prev_sample.to(dtype)
        walk.append(x / scale(i + 1))
    module.torch = torch
    kept = walk if steps <= 20 else [walk[0], *walk[-20:]]
    return torch.stack(kept).numpy(), scheduler.timesteps.tolist()


def make_trajectories() -> None:
    """trajectories.json, a case a line, and trajectories.npz."""
    index, arrays = [], {}
    for i, (kind, config, eta, steps) in enumerate(cases()):
        exact, timesteps = trajectory(kind, config, eta, steps, torch.float64)
        published, _ = trajectory(kind, config, eta, steps, torch.float32)
        arrays[f"exact_{i}"], arrays[f"published_{i}"] = exact, published[-1]
        scheduler_config = {"_class_name": kind.__name__, **json.loads(json.dumps(dict(kind(**config).config)))}
        row = {"config": scheduler_config, "eta": eta, "steps": steps}
        index.append(row | {"timesteps": timesteps if steps <= 20 else []})
    (ROOT / "trajectories.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in index) + "\n]\n")
    np.savez_compressed(ROOT / "trajectories.npz", **arrays)


OPENAI = {  # flags as their READMEs give them, at toy size
    "guided-diffusion": "--image_size 16 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 "
    "--attention_resolutions 8 --num_head_channels 16 --resblock_updown True --use_new_attention_order True "
    "--learn_sigma True --class_cond True --use_scale_shift_norm True --noise_schedule cosine",
    "improved-diffusion": "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16,8 "
    "--num_heads 4 --learn_sigma True --use_scale_shift_norm False --diffusion_steps 4000 --noise_schedule cosine",
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that tests can make again from the name, by a stream that NumPy has frozen."""
    spread = 0.3 if len(shape) == 1 else 1.7 / math.sqrt(np.prod(shape[1:]))
    value = spread * np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    norm = len(shape) == 1 and name.endswith("weight")
    return (value + norm).astype(np.float32)


def make_openai(folder: Path) -> None:
    """openai_*.npz (inputs, outputs) and openai_*.json (flags, names and shapes of the tensors)."""
    sys.path.insert(0, str(folder))
    for project, flags in OPENAI.items():
        script_util = importlib.import_module(f"{project.replace('-', '_')}.script_util")
        given = dict(zip(*[iter(flags.replace("--", "").split())] * 2, strict=True))
        options = script_util.model_and_diffusion_defaults()
        for key, value in given.items():
            options[key] = type(options[key])(value) if not isinstance(options[key], bool) else value == "True"
        net, diffusion = script_util.create_model_and_diffusion(**options)
        shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        net.load_state_dict({name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
        steps = options["diffusion_steps"]
        timesteps = torch.tensor([0, steps // 2, steps - 1])
        size = options["image_size"]
        x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
        extra = {"y": torch.tensor([0, 500, 999])} if options["class_cond"] else {}
        with torch.no_grad():
            output = diffusion._wrap_model(net.eval())(x, timesteps, **extra)
        arrays = {"x": x.numpy(), "timesteps": timesteps.numpy(), "output": output.numpy(), "betas": diffusion.betas}
        np.savez_compressed(ROOT / f"openai_{project}.npz", **arrays)
        about = {"flags": flags, "shapes": shapes}
        (ROOT / f"openai_{project}.json").write_text(json.dumps(about) + "\n")


def make_torch_files() -> None:
    """state.pt in torch's two formats: dtypes, views and shared storage; and its values as safetensors."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = OrderedDict(
        whole=base,
        view=base[1:, ::2].t(),
        half=base.half()[0],
        bfloat=base.bfloat16()[1],
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base[2].clone()),
    )
    torch.save(state, ROOT / "state.pt")
    torch.save(state, ROOT / "state_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": torch.nn.Linear(2, 2)}, ROOT / "module.pt")
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict(), ROOT / "of_module.pt")
    np.savez(ROOT / "state.npz", **{name: value.detach().float().numpy() for name, value in state.items()})


def main() -> None:
    """Writes all fixtures and says how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openai", type=Path, help="the folder of guided_diffusion and improved_diffusion")
    arguments = parser.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    for seed, (name, config) in enumerate(NETWORKS.items()):
        make_network(name, config, seed)
    make_trajectories()
    make_torch_files()
    if arguments.openai:
        make_openai(arguments.openai)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
    }
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{ROOT}: {size / 1e6:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
