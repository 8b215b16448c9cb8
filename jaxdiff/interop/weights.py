"""The weights of a folder, whichever of their formats they are in: safetensors, torch's .bin, or Flax's msgpack."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop import flax_files, safetensors, torch_files

DIFFUSERS = ("diffusion_pytorch_model", "diffusion_pytorch_model", "diffusion_flax_model")
TRANSFORMERS = ("model", "pytorch_model", "flax_model")  # of .safetensors, .bin and .msgpack
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_weights(folder: Path, stems: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """The tensors of a folder under the names that torch's classes have today; safetensors are memory-mapped.

    Half-precision files (".fp16.") serve where there are no others.

    Args:
      folder: of one network.
      stems: DIFFUSERS or TRANSFORMERS.

    Raises:
      UserError: none of the files is there, or the one that is is damaged.
    """
    plain, torch, flax = stems
    for name in (f"{plain}.safetensors", f"{plain}.safetensors.index.json", f"{plain}.fp16.safetensors"):
        if (folder / name).is_file():
            return _modern(safetensors.read(folder / name))
    for name in (f"{torch}.bin", f"{torch}.fp16.bin"):
        if (folder / name).is_file():
            return _modern(torch_files.read(folder / name))
    if (folder / f"{flax}.msgpack").is_file():
        return _modern(flax_files.as_torch(flax_files.read(folder / f"{flax}.msgpack")))
    found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "nothing"
    raise UserError(
        f"{folder} has no {plain}.safetensors (or .safetensors.index.json), {torch}.bin or {flax}.msgpack; "
        f"it has {found or 'nothing'}"
    )


def _modern(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their tensors under today's names: until 2023 attention had query, key, value and proj_attn."""
    pattern = re.compile(r"(attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")
    return {pattern.sub(lambda m: m[1] + _OLD_ATTENTION[m[2]], name): value for name, value in tensors.items()}
