"""Tiny Stable Diffusion folders, made from tests/fixtures/latent: weights come from the tensors' names."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np

from jaxdiff.interop import safetensors

ROOT = Path(__file__).parent / "fixtures" / "latent"
FILES = {"text_encoder": "model"}


def weight(name, shape):
    """As scripts/make_interop_fixtures.py has it."""
    spread = 0.3 if len(shape) == 1 else 1.7 / np.sqrt(np.prod(shape[1:]))
    value = spread * np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return (value + (len(shape) == 1 and name.endswith("weight"))).astype(np.float32)


def tensors_of(name):
    """The tensors of a network of the fixtures, by their names."""
    return {k: weight(k, shape) for k, shape in json.loads((ROOT / name / "tensors.json").read_text()).items()}


def network_folder(name, target):
    """unet_1, vae, text_encoder_2, ... as a folder with config.json and safetensors."""
    target.mkdir(parents=True)
    shutil.copy(ROOT / name / "config.json", target)
    stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
    safetensors.write(target / f"{stem}.safetensors", tensors_of(name), {"format": "pt"})
    return target


def pipeline_folder(name, target):
    """pipeline_ddim, ...: a whole folder, as StableDiffusionPipeline.save_pretrained leaves one."""
    about = json.loads((ROOT / name / "about.json").read_text())
    target.mkdir(parents=True)
    shutil.copy(ROOT / name / "model_index.json", target)
    shutil.copytree(ROOT / name / "scheduler", target / "scheduler")
    shutil.copytree(ROOT / f"tokenizer_{about['version']}", target / "tokenizer")
    network_folder(f"text_encoder_{about['version']}", target / "text_encoder")
    network_folder(f"unet_{about.get('unet', about['version'])}", target / "unet")
    network_folder("vae", target / "vae")
    return target, about
