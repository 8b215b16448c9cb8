"""LoRA: low-rank changes of a network's weights, as diffusers, PEFT and kohya's scripts publish them, added to them.

    W <- W + scale (alpha / r) B A,    A [r, in], B [out, r]                                            (1)

and for convolutions A [r, in, k, k], B [out, r, 1, 1]. Once added they cost nothing. LCM-LoRA is one: it makes a latent
consistency model of Stable Diffusion, to be drawn from by the sampler lcm in 2 to 8 steps.

Source: Hu et al. 2022 (LoRA), section 4.1; Luo et al. 2023 (LCM-LoRA).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.weights import read_file

UNET, TEXT = ("unet.", "lora_unet_"), ("text_encoder.", "lora_te_", "lora_te1_")
"""How the names of a network's changes begin, of diffusers (with dots) and of kohya (with _ for dots)."""
_ROLES = {"lora_A": "A", "lora_down": "A", "lora.down": "A", "lora_B": "B", "lora_up": "B", "lora.up": "B"}
_NAME = re.compile(rf"(.+?)[._]({'|'.join(map(re.escape, _ROLES))})(?:\.default)?\.weight|(.+)\.(alpha)")


class Lora(NamedTuple):
    """The changes of a file.

    Attributes:
      path: the file.
      scale: of equation (1); 1 is all of it.
      tensors: by their names in the file.
    """

    path: str
    scale: float
    tensors: Mapping[str, np.ndarray]


def read_lora(path: Path, scale: float = 1.0) -> Lora:
    """The changes in a file, .safetensors or .bin.

    Raises:
      UserError: there is no such file, or it holds other tensors than (1) has.
    """
    if not path.is_file():
        raise UserError(f"--lora {path} is no file; give the .safetensors of a LoRA")
    tensors = read_file(path)
    strange = [name for name in tensors if not _NAME.fullmatch(name) or not name.startswith((*UNET, *TEXT))]
    if strange or not tensors:
        what = f"{strange[0]} and {len(strange) - 1} more such tensors" if strange else "nothing"
        raise UserError(
            f"--lora {path} holds {what}, which is no LoRA of Stable Diffusion as diffusers or kohya name it"
        )
    return Lora(str(path), scale, tensors)


def merged(weights: Mapping[str, np.ndarray], lora: Lora | None, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A network's weights with those changes added that are of it, equation (1).

    Args:
      weights: by the names of diffusers.
      lora: None for none.
      prefixes: UNET or TEXT.

    Raises:
      UserError: changes of layers that the network has not, or of other shapes.

    >>> a, b = np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)
    >>> lora = Lora("f", 0.5, {"unet.to_q.lora_A.weight": a, "unet.to_q.lora_B.weight": b})
    >>> merged({"to_q.weight": np.zeros((2, 3), np.float32)}, lora, UNET)["to_q.weight"].tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    weights = dict(weights)
    if lora is None:
        return weights
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in weights if name.endswith(".weight")}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, value in lora.tensors.items():
        if prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
            match = _NAME.fullmatch(name.removeprefix(prefix))
            assert match is not None
            layer, role = (match[1], _ROLES[match[2]]) if match[1] else (match[3], "alpha")
            layers.setdefault(_flat(layer), {})[role] = np.asarray(value, np.float32)
    for layer, parts in layers.items():
        target = flat.get(layer) or flat.get(f"text_model_{layer}") or flat.get(layer.removeprefix("text_model_"))
        if target is None or not {"A", "B"} <= parts.keys():
            raise UserError(
                f"--lora {lora.path} changes {layer}, which this network has not, or in part; it is of another"
            )
        a, b, weight = parts["A"], parts["B"], np.asarray(weights[target], np.float32)
        rank = len(a)
        change = (b.reshape(len(b), -1) @ a.reshape(rank, -1)) * (
            lora.scale * float(np.ravel(parts.get("alpha", rank))[0]) / rank
        )
        if change.size != weight.size or len(b) != len(weight):
            shapes = f"{list(b.shape)} and {list(a.shape)} for {list(weight.shape)}"
            raise UserError(f"--lora {lora.path} does not fit {target}: {shapes}; it is of another network")
        weights[target] = weight + change.reshape(weight.shape)
    return weights


def _flat(layer: str) -> str:
    """A layer's name with _ for dots; old files name the attention's processor in front of its layer.

    >>> _flat("mid_block.attn1.processor.to_out")
    'mid_block_attn1_to_out_0'
    """
    return re.sub(r"(_to_out)$", r"\1_0", layer.replace(".processor.", ".").replace(".", "_"))
