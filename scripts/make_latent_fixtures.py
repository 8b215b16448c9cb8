"""Makes tests/fixtures/latent with torch, diffusers and transformers: what the tests of text to image compare with.

    /tmp/torchenv/bin/python scripts/make_latent_fixtures.py     (its environment: see make_interop_fixtures.py)

Tiny networks of Stable Diffusion 1 and 2 (U-Net, autoencoder, text encoder), CLIP tokenizers of some words, and whole
pipelines of them. Weights are not kept: tests make them again from the tensors' names (`weight`), of which
tensors.json lists the shapes.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_lcm
from make_interop_fixtures import weight
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).parent.parent / "tests" / "fixtures" / "latent"
TIMESTEPS = torch.tensor([0, 500, 999])
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = "a photo of an astronaut riding horse on mars blurry the red green in style"
TEXTS = [
    "a photo of an astronaut riding a horse on mars",
    "",
    "A  PHOTO of\tthe cat's 12 horses, don't! naïve Éclair 東京 🐎 e\u0301",
    "hello! world!!",
    f"a {END} b",
    "a " * 90 + "blurry",
]

SHARED = {"sample_size": 8, "norm_num_groups": 4}
UNETS = {
    # 1.x: convolutions as projections, one number of heads; three levels
    "1": SHARED
    | {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    },
    # 2.x: linear projections, heads by level; two layers a block
    "2": SHARED
    | {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": [1, 4],
        "cross_attention_dim": 24,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
UNETS["lcm"] = UNETS["1"] | {"time_cond_proj_dim": 256}  # as 1.x, told the guidance scale
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TEXT = {
    "1": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "2": {
        **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3},
        "hidden_act": "gelu",
    },
}
_SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_DDIM = {**_SD, "clip_sample": False, "set_alpha_to_one": False}
PIPELINES = {  # version, scheduler, steps
    "ddim": ("1", DDIMScheduler(**_DDIM), 5),
    "pndm": ("1", PNDMScheduler(**_SD, skip_prk_steps=True, set_alpha_to_one=False), 8),
    "outdated": ("1", DDIMScheduler(**{**_DDIM, "steps_offset": 0, "clip_sample": True}), 4),
    "v": ("2", DDIMScheduler(**_DDIM, prediction_type="v_prediction"), 5),
    "dpm": ("2", DPMSolverMultistepScheduler(**_SD, prediction_type="v_prediction"), 6),
}


def named_weights(net: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Gives the network the weights of its tensors' names, and keeps config.json and the tensors' shapes."""
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    folder.mkdir(parents=True, exist_ok=True)
    net.save_config(folder) if hasattr(net, "save_config") else net.config.save_pretrained(folder)
    (folder / "tensors.json").write_text(json.dumps(shapes) + "\n")
    return net.eval()


def make_tokenizer(folder: Path, padding: str) -> CLIPTokenizer:
    """A tokenizer with CLIP's bytes and the words of WORDS, in the files that published folders have."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*alphabet, *(char + "</w>" for char in alphabet)], []
    for word in WORDS.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    merges = list(dict.fromkeys(merges))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, BEGIN, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": {"content": BEGIN, "lstrip": False, "normalized": True, "rstrip": False}}
    special |= {"eos_token": special["bos_token"] | {"content": END}, "pad_token": padding}
    special["unk_token"] = special["eos_token"]
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def make_unet(version: str) -> UNet2DConditionModel:
    """The U-Net, its inputs and outputs."""
    folder = ROOT / f"unet_{version}"
    net = named_weights(UNet2DConditionModel(**UNETS[version]), folder)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 4, 8, 16), generator=generator)
    text = torch.randn((3, 7, net.config.cross_attention_dim), generator=generator)
    arrays, told = {"x": x, "text": text, "timesteps": TIMESTEPS}, {}
    if net.config.time_cond_proj_dim:
        arrays["guidance"] = torch.tensor([1.0, 4.5, 8.0])
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        told["timestep_cond"] = embed(None, arrays["guidance"] - 1, net.config.time_cond_proj_dim)
    with torch.no_grad():
        output = net(x, TIMESTEPS, text, **told).sample
    np.savez_compressed(folder / "io.npz", **arrays, output=output)
    return net


def make_vae() -> AutoencoderKL:
    """The autoencoder, an image's latent distribution, and a latent's image."""
    net = named_weights(AutoencoderKL(**VAE), ROOT / "vae")
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn((2, 3, 16, 12), generator=generator), torch.randn((2, 4, 4, 6), generator=generator)
    with torch.no_grad():
        latent = net.encode(x).latent_dist
        arrays = {"x": x, "mean": latent.mean, "log_variance": latent.logvar, "z": z, "image": net.decode(z).sample}
    np.savez_compressed(ROOT / "vae" / "io.npz", **arrays)
    return net


def make_text(version: str, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, token ids of TEXTS and what becomes of them."""
    folder = ROOT / f"text_encoder_{version}"
    vocabulary = json.loads((ROOT / f"tokenizer_{version}" / "vocab.json").read_text())
    ends = {"bos_token_id": vocabulary[BEGIN], "eos_token_id": vocabulary[END]}
    config = CLIPTextConfig(vocab_size=len(vocabulary), **ends, **TEXT[version])
    net = named_weights(CLIPTextModel(config), folder)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        output = net(tokens[:3])[0]
    np.savez_compressed(folder / "io.npz", tokens=tokens.to(torch.int32), output=output)
    return net


def make_pipeline(name: str, parts: dict, version: str, scheduler, steps: int) -> None:
    """Latents to images under guidance, and the folder's small files."""
    folder = ROOT / f"pipeline_{name}"
    pipeline = StableDiffusionPipeline(**parts, scheduler=scheduler, safety_checker=None, feature_extractor=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    asked = {"prompt": [TEXTS[0]] * 2, "negative_prompt": ["blurry"] * 2, "guidance_scale": 3.0}
    arrays = {"latents": latents}
    for kind in ("latent", "np"):
        drawn = pipeline(**asked, num_inference_steps=steps, latents=latents.clone(), output_type=kind).images
        arrays[{"latent": "z", "np": "images"}[kind]] = drawn
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(pipeline.to_json_string())
    kept = type(scheduler).from_config(PIPELINES[name][1].config)
    kept.save_pretrained(folder / "scheduler")
    about = {"version": version, "steps": steps, "guidance": 3.0, "prompt": TEXTS[0], "negative_prompt": "blurry"}
    (folder / "about.json").write_text(json.dumps(about) + "\n")
    np.savez_compressed(folder / "io.npz", **arrays)


def make_consistency_pipeline(parts: dict) -> None:
    """LCM's latents to images in four steps, every step's noise the same."""
    folder = ROOT / "pipeline_lcm"
    parts = parts | {"scheduler": LCMScheduler(**_SD), "safety_checker": None, "feature_extractor": None}
    pipeline = LatentConsistencyModelPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn((2, 2, 4, 8, 8), generator=generator)
    scheduling_lcm.randn_tensor = lambda *args, **kwargs: noise
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": latents.clone(), "output_type": "np"}
    images = pipeline(prompt=[TEXTS[0]] * 2, **how).images
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(pipeline.to_json_string())
    LCMScheduler(**_SD).save_pretrained(folder / "scheduler")
    about = {"version": "1", "unet": "lcm", "steps": 4, "guidance": 3.0, "prompt": TEXTS[0], "negative_prompt": ""}
    (folder / "about.json").write_text(json.dumps(about) + "\n")
    np.savez_compressed(folder / "io.npz", latents=latents, noise=noise, images=images)


def main() -> None:
    """Writes all fixtures and says how large they are."""
    vae, parts = make_vae(), {}
    for version, padding in (("1", END), ("2", "!")):
        tokenizer = make_tokenizer(ROOT / f"tokenizer_{version}", padding)
        text = make_text(version, tokenizer)
        unet = make_unet(version)
        parts[version] = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet}
    parts["2"]["tokenizer"].save_pretrained(ROOT / "tokenizer_json")  # as it is saved today: tokenizer.json
    (ROOT / "texts.json").write_text(json.dumps(TEXTS) + "\n")
    for name, (version, scheduler, steps) in PIPELINES.items():
        make_pipeline(name, parts[version], version, type(scheduler).from_config(scheduler.config), steps)
    make_consistency_pipeline(parts["1"] | {"unet": make_unet("lcm")})
    modules = (torch, diffusers, transformers, tokenizers, np)
    versions = {module.__name__: module.__version__ for module in modules}
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{ROOT}: {size / 1e6:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
