"""Where the parameters of our U-Net are in other projects' files: one table a project, used for import and export.

A table has a row a leaf of our tree: the name of their tensor, and which part of it (OpenAI keeps query, key and
value in one). Layouts differ as torch's and Flax's do: [out, in, h, w] against [h, w, in, out].
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from jaxdiff.errors import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Source(NamedTuple):
    """Their tensor: its name, and from the whole to our part of it (None: all of it)."""

    name: str
    part: Callable[[np.ndarray], np.ndarray] | None = None
    parts: int = 1


Table = dict[str, Source]  # our leaf, "module/.../leaf" -> theirs


def leaf_paths(tree: Any) -> Iterator[tuple[str, Any]]:
    """("module/.../leaf", leaf) of a parameter tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


_BLOCK = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
_QKV = {"query": "to_q", "key": "to_k", "value": "to_v", "proj": "to_out.0"}
_SELF_ATTENTION = {"norm": "group_norm", **_QKV}
_PIXEL_TRANSFORMER = {
    "block": "transformer_blocks.0",
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "dense1": "ff.net.0.proj",
    "dense2": "ff.net.2",
    **_QKV,
}


def diffusers_table(params: Any, levels: int, text: bool = False) -> Table:
    """The names of diffusers' UNet2DModel, or UNet2DConditionModel; and of what AutoencoderKL has in common with them.

    Args:
      params: our tree, of arrays or ShapeDtypeStructs.
      levels: of the network; theirs counts the way up from the deepest.
      text: whether it attends to a text.
    """
    inner = {**_BLOCK, **(_PIXEL_TRANSFORMER if text else _SELF_ATTENTION)}
    whole = {
        "norm_out": "conv_norm_out",
        "middle_attention": "mid_block.attentions.0",
        "embedding.dense1": "time_embedding.linear_1",
        "embedding.dense2": "time_embedding.linear_2",
        "embedding.classes": "class_embedding",
        "embedding.guidance": "time_embedding.cond_proj",
    }
    parts = {"block": "resnets", "attention": "attentions"}
    table = {}
    for path, _ in leaf_paths(params):
        *modules, leaf = path.split("/")
        head = ".".join(modules[:2]) if modules[0] == "embedding" else modules[0]
        rest = modules[head.count(".") + 1 :]
        if match := re.fullmatch(r"(down|up)_(\d+)_(?:(block|attention)_(\d+)|(?:down|up)sample)", head):
            way, level = match[1], int(match[2])
            number = level if way == "down" else levels - 1 - level
            last = f"{parts[match[3]]}.{match[4]}" if match[3] else f"{way}samplers.0" + ("" if rest else ".conv")
            head = f"{way}_blocks.{number}.{last}"
        head = re.sub(r"^middle_block_(\d)$", r"mid_block.resnets.\1", whole.get(head, head))
        table[path] = Source(".".join([head, *(inner.get(m, m) for m in rest), LEAVES[leaf]]))
    return table


def autoencoder_table(params: Any, levels: int) -> Table:
    """The names of diffusers' AutoencoderKL: two networks, and what lies between them."""
    between = {"encoder.moments": "quant_conv", "decoder.latent": "post_quant_conv"}
    table = {}
    for half in ("encoder", "decoder"):
        for path, source in diffusers_table(params[half], levels).items():
            module, leaf = f"{half}.{source.name}".rsplit(".", 1)
            table[f"{half}/{path}"] = Source(f"{between.get(module, module)}.{leaf}")
    return table


def text_encoder_table(params: Any) -> Table:
    """The names of transformers' CLIPTextModel, without their common prefix."""
    inner = {
        "tokens": "embeddings.token_embedding",
        "places": "embeddings.position_embedding",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "dense1": "mlp.fc1",
        "dense2": "mlp.fc2",
        "attention": "self_attn",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "proj": "out_proj",
        "norm_out": "final_layer_norm",
    }
    table = {}
    for path, _ in leaf_paths(params):
        *modules, leaf = path.split("/")
        names = [inner.get(m, m.replace("layer_", "encoder.layers.")) for m in modules]
        table[path] = Source(".".join([*names, LEAVES[leaf]]))
    return table


def openai_table(params: Any, heads: Callable[[int], int], new_order: bool) -> Table:
    """The names of improved-diffusion's and guided-diffusion's UNetModel.

    Args:
      params: our tree, of arrays or ShapeDtypeStructs.
      heads: channels -> attention heads.
      new_order: whether qkv holds all queries, then keys, then values (use_new_attention_order), or these by head.
    """
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
        "proj": "proj_out",
    }
    whole = {"embedding.dense1": "time_embed.0", "embedding.dense2": "time_embed.2"}
    whole |= {"embedding.classes": "label_emb"} | _openai_modules(params)
    table = {}
    for path, value in leaf_paths(params):
        *modules, leaf = path.split("/")
        head = ".".join(modules[:2]) if modules[0] == "embedding" else modules[0]
        rest = modules[head.count(".") + 1 :]
        if rest and rest[0] in ("query", "key", "value"):
            part = _qkv_part(("query", "key", "value").index(rest[0]), heads(value.shape[-1]), new_order)
            table[path] = Source(f"{whole[head]}.qkv.{LEAVES[leaf]}", part, 3)
        else:
            table[path] = Source(".".join([whole[head], *(inner.get(m, m) for m in rest), LEAVES[leaf]]))
    return table


def _openai_modules(params: Any) -> dict[str, str]:
    """Our modules in the order of the forward pass, numbered as theirs: input_blocks, middle_block, output_blocks."""
    names = {"conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"}
    names |= {
        "middle_block_0": "middle_block.0",
        "middle_attention": "middle_block.1",
        "middle_block_1": "middle_block.2",
    }
    levels = 1 + max(int(m[1]) for name in params if (m := re.fullmatch(r"down_(\d+)_block_0", name)))
    for way, start in (("down", 1), ("up", 0)):
        number = start
        for level in range(levels) if way == "down" else reversed(range(levels)):
            side, j = "input_blocks" if way == "down" else "output_blocks", 0
            while f"{way}_{level}_block_{j}" in params:
                names[f"{way}_{level}_block_{j}"] = f"{side}.{number}.0"
                names[f"{way}_{level}_attention_{j}"] = f"{side}.{number}.1"
                number, j = number + 1, j + 1
            if (resample := f"{way}_{level}_{way}sample") in params:
                conv = {"down": ".op", "up": ".conv"}[way] if "kernel" in params[resample] else ""
                attends = f"{way}_{level}_attention_{j - 1}" in params
                # going down it is a block of its own, going up the last part of the level's last block
                at = f"{number}.0" if way == "down" else f"{number - 1}.{1 + attends}"
                names[resample] = f"{side}.{at}{conv}"
                number += way == "down"
    return names


def _qkv_part(index: int, heads: int, new_order: bool) -> Callable[[np.ndarray], np.ndarray]:
    def part(qkv: np.ndarray) -> np.ndarray:
        width = qkv.shape[0] // 3
        order = (3, heads) if new_order else (heads, 3)
        divided = qkv.reshape(*order, width // heads, *qkv.shape[1:])
        return (divided[index] if new_order else divided[:, index]).reshape(width, *qkv.shape[1:])

    return part


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, as torch keeps it, of our leaf."""
    if not leaf.endswith("kernel"):
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def to_ours(leaf: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """torch's layout -> ours, as a view."""
    if not leaf.endswith("kernel"):
        return value
    if ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.reshape(value.shape[:2]).T  # a 1x1 convolution is a dense layer


def to_torch(leaf: str, value: np.ndarray) -> np.ndarray:
    """Our layout -> torch's; the shortcut is a 1x1 convolution there."""
    if not leaf.endswith("kernel"):
        return value
    if leaf.endswith("shortcut/kernel"):
        return value.T[:, :, None, None]
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def load(
    params: Any, table: Table, tensors: Mapping[str, np.ndarray], where: str, sharding: Any = None
) -> dict[str, Any]:
    """Our tree from their tensors, each read straight into its place.

    Args:
      params: our tree, of ShapeDtypeStructs.
      table: where each leaf is.
      tensors: theirs, by name; memory-mapped or not.
      where: named in errors.
      sharding: where leaves go: one Sharding for all, or a function of (leaf name, ShapeDtypeStruct); None for
        NumPy arrays on the host.

    Returns:
      The tree, float32.

    Raises:
      UserError: tensors that are missing, unknown or misshapen; of more than 20 the first, and how many.
    """
    wanted = dict(leaf_paths(params))
    used = {source.name for source in table.values()}
    missing = [f"missing: {name}" for name in sorted(used - tensors.keys())]
    unknown = [f"unknown: {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - used)]
    if problems := [*missing, *unknown, *_misshapen(wanted, table, tensors)]:
        none = f", none is right (it has {', '.join([*tensors][:3])})" if len(missing) == len(used) else ""
        count = len(problems)
        raise UserError(f"{where} does not fit its config{none}; {count} tensors are wrong: {'; '.join(problems)}")

    def place(path: str, target: Any) -> Any:
        source = table[path]
        tensor = tensors[source.name]
        value = to_ours(path, source.part(tensor) if source.part else tensor, len(target.shape))
        if sharding is None:
            return np.asarray(value, np.float32)
        to = sharding if isinstance(sharding, Sharding) else sharding(path, target)
        return jax.make_array_from_callback(target.shape, to, lambda at: np.asarray(value[at], np.float32))

    return jax.tree.unflatten(jax.tree.structure(params), [place(path, target) for path, target in wanted.items()])


def _misshapen(wanted: Mapping[str, Any], table: Table, tensors: Mapping[str, np.ndarray]) -> list[str]:
    problems = {}
    for path, target in wanted.items():
        source = table[path]
        if source.name not in tensors:
            continue
        first, *rest = torch_shape(path, target.shape)
        right = (first * source.parts, *rest)
        tensor = tensors[source.name]
        flat = tensor.shape if len(right) > 2 else tuple(tensor.shape[:2])
        if flat != right or tensor.size != np.prod(right):
            problems[source.name] = f"misshapen: {source.name} {list(tensor.shape)}, not {list(right)}"
        elif not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            problems[source.name] = f"not floats: {source.name} is {tensor.dtype}"
    return list(problems.values())


def shift_time(kernel: np.ndarray, shift: float, frequency_shift: int, cos_first: bool = False) -> np.ndarray:
    """The first dense layer of the time embedding, for sinusoids of u where it was trained on those of u - shift.

    Our network sees 1000 t, others the step before it: with f the frequencies,
    sin((u - d) f) = sin(u f) cos(d f) - cos(u f) sin(d f), and cos likewise: a rotation, exact in the kernel.

    Args:
      kernel: [features, out]; the rows of sines come first, unless `cos_first` (those of the result do).
      shift: d, in steps.
      frequency_shift: of `jaxdiff.models.layers.timestep_embedding`.
      cos_first: the kernel's rows are those of cosines, then sines.

    >>> kernel = np.arange(8.0).reshape(4, 2)
    >>> back = shift_time(shift_time(kernel, 1.0, 1), -1.0, 1)
    >>> bool(np.allclose(back, kernel, atol=1e-5))
    True
    """
    sines, cosines = np.split(np.asarray(kernel, np.float64), 2)
    if cos_first:
        sines, cosines = cosines, sines
    half = len(sines)
    angles = shift * np.power(10.0, -4.0 * np.arange(half) / (half - frequency_shift))[:, None]
    rotated = [np.cos(angles) * sines + np.sin(angles) * cosines, np.cos(angles) * cosines - np.sin(angles) * sines]
    return np.concatenate(rotated).astype(np.float32)
