"""The diffusion transformer (DiT): patches as tokens, blocks modulated by time and class (adaLN-Zero).

References:
  DiT:       Peebles, Xie, Scalable Diffusion Models with Transformers, 2023.
  PixArt:    Chen et al., PixArt-alpha, 2023, section 2.3: cross-attention to a text, adaLN-single.
  RMSNorm:   Zhang, Sennrich, Root Mean Square Layer Normalization, 2019.
  QK-norm:   Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, 2023, section 2.
  SwiGLU:    Shazeer, GLU Variants Improve Transformer, 2020, eq. 6.
  RoPE:      Su et al., RoFormer, 2021; of rows and columns as Heo et al., RoPE for Vision Transformer, 2024, eq. 7.
  Registers: Darcet et al., Vision Transformers Need Registers, 2024.

With e the embedding of time, class and vectors, and LN a LayerNorm without parameters, a block is

    a_1, b_1, g_1, a_2, b_2, g_2 = W silu(e)                                                        (1)
    x <- x + g_1 attention(LN(x) (1 + b_1) + a_1)                                                   (2)
    x <- x + cross_attention(x, text), where there is a text                                        (3)
    x <- x + g_2 mlp(LN(x) (1 + b_2) + a_2)                                                         (4)

W, the projection of (3) and the last layer start at zero, so that each block is at first the identity, and a new
network predicts zero. Blocks are one `scan` over parameters stacked along a first axis: a program of 28 blocks is as
long, and compiles as quickly, as one of 2.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.models import conditions
from jaxdiff.models.attention import Attention, Features, Mask, Others
from jaxdiff.models.conditions import Cond
from jaxdiff.models.layers import ZEROS, Dense, Dropout, Embedding, Keys, depth_to_space, space_to_depth
from jaxdiff.models.network import NetworkOptions, check_common, checked_input

SINUSOIDS = 256  # of the time, at any width

# A scan writes what its backward pass is to find into stacked arrays. Norms, gates and GELU are quicker computed again
# than written and read: kept are products, and attention, which is no product where one kernel does it whole.
PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names("attention")
)


@dataclasses.dataclass(frozen=True)
class DiT(NetworkOptions):
    """The diffusion transformer, see jaxdiff.models.dit."""

    patch: int = 2
    """Side of the squares of pixels that are a token each."""
    width: int = 384
    """Features of a token, a multiple of 4."""
    depth: int = 12
    """Blocks."""
    num_heads: int = 6
    """Attention heads, a divisor of the width."""
    mlp_ratio: int = 4
    """Features inside a block's MLP, as a multiple of the width."""
    norm: Literal["layer", "rms"] = "layer"
    """Norms of a block and of the output: LayerNorm or RMSNorm."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The MLP: GELU, or SwiGLU with 2/3 of the features and so as many parameters."""
    positions: Literal["fixed", "rope"] = "fixed"
    """Sines and cosines added to tokens, or queries and keys turned by row and column (RoPE)."""
    registers: int = 0
    """Tokens beside those of the image, which attention may use as memory."""
    modulation: Literal["block", "shared"] = "block"
    """A projection of the embedding in each block, or one for all and a table a block (PixArt's adaLN-single)."""
    dropout: float = 0.0
    """Dropout rate of what attention and MLP add."""
    frequency_shift: Literal[0, 1] = 0
    """Time embedding's lowest frequency: 0 as DiT, 1 as diffusers computes it."""
    time_scale: float = 1000.0
    """What times are multiplied by before their sinusoids: 1000, or some 20 where a loss differentiates in time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters, norms, softmax, embeddings and output are float32."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        >>> DiT(patch=4).check((30, 32, 3))
        Traceback (most recent call last):
        ...
        ValueError: patch is 4; it must divide the sides of the images, 30x32
        """
        ranges = {"patch": (1, 64), "width": (4, 16384), "depth": (1, 1000), "num_heads": (1, 1024)}
        ranges |= {
            "mlp_ratio": (1, 64),
            "registers": (0, 1024),
            "time_scale": (0.01, 100_000),
            "num_classes": (0, 1_000_000),
        }
        check_common(self, DiT, shape, **ranges)
        if self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 (sin and cos of rows and columns)")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}; it must divide the width, {self.width}")
        if self.positions == "rope" and self.width // self.num_heads % 4:
            raise ValueError(
                f"positions is 'rope'; a head's features, {self.width // self.num_heads}, must be in fours"
            )
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(f"patch is {self.patch}; it must divide the sides of the images, {shape[0]}x{shape[1]}")
        conditions.check_names(cond, self.num_classes)

    def module(self, out_channels: int) -> "DiTModule":
        """The network of these options."""
        return DiTModule(out_channels, self)


def positions(h: int, w: int, features: int) -> Float[np.ndarray, "tokens features"]:
    """Fixed embeddings of a grid's places, row by row: sines and cosines of the column, then of the row.

    Each with frequencies 10^(-4 i / (features / 4)), i from 0.

    >>> positions(1, 2, 4).astype(float).round(3).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.841, 0.54, 0.0, 1.0]]
    """
    frequencies = 10.0 ** (-4.0 * np.arange(features // 4) / (features // 4))
    rows, columns = np.indices((h, w)).reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1).astype(np.float32)


def rope_angles(h: int, w: int, features: int, registers: int = 0) -> Float[np.ndarray, "tokens half"]:
    """Angles of a head's features/2 pairs: the first half turns with the row, the second with the column.

    Each with the frequencies of `positions`; registers, which come first, are not turned.

    >>> rope_angles(2, 2, 4, registers=1).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    frequencies = 10.0 ** (-4.0 * np.arange(features // 4) / (features // 4))
    angles = np.concatenate(np.indices((h, w)).reshape(2, -1, 1) * frequencies, axis=1)
    return np.concatenate([np.zeros((registers, features // 2)), angles]).astype(np.float32)


def modulated(x: Features, shift: Array, scale: Array, norm: str = "layer") -> Features:
    """LN(x) (1 + scale) + shift, the norm, LayerNorm or RMSNorm, in float32."""
    if norm == "rms":
        layer = nn.RMSNorm(epsilon=1e-6, use_scale=False, dtype=jnp.float32, use_fast_variance=False)
    else:
        layer = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32, use_fast_variance=False)
    return (layer(x) * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


class Block(nn.Module):
    """Equations (1) to (4), as the body of a scan.

    Attributes:
      options: of the network.
    """

    options: DiT

    @nn.compact
    def __call__(
        self,
        x: Features,
        index: Int[Array, ""],
        emb: Array,
        text: Others | None,
        mask: Mask,
        angles: Any,
        keys: Keys,
    ) -> tuple[Features, None]:
        """Apply block number `index` to x under silu(e), or W silu(e) where it is shared, and the text if any."""
        own = self.options
        width, heads, dtype = own.width, own.num_heads, own.dtype
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)  # or all blocks would drop the same places
        if own.modulation == "shared":
            each = emb + self.param("modulation_bias", ZEROS, (6 * width,), jnp.float32)[None]
        else:
            each = Dense(6 * width, kernel_init=ZEROS, name="modulation")(emb)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(each, 6, axis=-1)

        y = modulated(x, shift1, scale1, own.norm)
        y = Attention(heads, dtype, bias=True, qk_norm=own.qk_norm, name="attention")(y, y, angles=angles)
        x = (x + gate1[:, None] * Dropout(own.dropout, name="dropout1")(y, keys)).astype(x.dtype)
        if text is not None:
            cross = Attention(heads, dtype, bias=True, zero=True, qk_norm=own.qk_norm, name="cross_attention")
            x += cross(x, text, mask)
        y = modulated(x, shift2, scale2, own.norm)
        gated = own.mlp == "swiglu"
        hidden = own.mlp_ratio * width * 2 // 3 if gated else own.mlp_ratio * width
        y = Dense(hidden * (1 + gated), dtype=dtype, name="dense1")(y).astype(jnp.float32)
        if gated:
            gate, y = jnp.split(y, 2, axis=-1)
            y *= nn.silu(gate)
        else:
            y = nn.gelu(y)
        y = Dense(width, dtype=dtype, name="dense2")(y)
        x = (x + gate2[:, None] * Dropout(own.dropout, name="dropout2")(y, keys)).astype(x.dtype)
        return x, None


class DiTModule(nn.Module):
    """A diffusion transformer, from noisy images and times to an image-shaped prediction.

    Attributes:
      out_channels: channels of the prediction (twice the image's for a learned variance).
      options: see `DiT`.

    >>> net = DiT(width=8, depth=2, num_heads=2).module(3)
    >>> x, t = jnp.zeros((2, 4, 8, 3)), jnp.zeros(2)
    >>> params = net.init(jax.random.key(0), x, t)["params"]
    >>> net.apply({"params": params}, x, t).shape
    (2, 4, 8, 3)
    """

    out_channels: int
    options: DiT

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Cond = None,
        *,
        dropout_keys: Keys = None,
    ) -> Float[Array, "batch h w out_channels"]:
        """Predict, see `NetworkOptions.module`."""
        options, batch = self.options, len(x)
        made_for = lambda params: params["proj_in"]["kernel"].shape[0] // options.patch**2  # noqa: E731
        x, cond = checked_input(self, options, x, t, cond, made_for)
        size = {"frequency_shift": options.frequency_shift, "features": options.width, "classes_std": 0.02}
        size["time_scale"] = options.time_scale
        emb = nn.silu(Embedding(SINUSOIDS, options.num_classes, **size, name="embedding")(t, cond))

        patches = space_to_depth(x, options.patch)
        rows, columns = patches.shape[1:3]
        tokens = patches.reshape(batch, rows * columns, -1)
        y = Dense(options.width, dtype=options.dtype, name="proj_in")(tokens)
        angles = None
        if options.positions == "rope":
            angles = rope_angles(rows, columns, options.width // options.num_heads, options.registers)
        else:
            y += positions(rows, columns, options.width)[None].astype(y.dtype)
        if options.registers:
            init = nn.initializers.normal(0.02)
            own = self.param("register_tokens", init, (options.registers, options.width), jnp.float32).astype(y.dtype)
            y = jnp.concatenate([jnp.broadcast_to(own, (batch, *own.shape)), y], axis=1)
        each = emb
        if options.modulation == "shared":
            each = Dense(6 * options.width, kernel_init=ZEROS, name="block_modulation")(emb)
        keep = jax.checkpoint_policies.nothing_saveable if options.remat else PRODUCTS
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False, policy=keep),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *[nn.broadcast] * 5),  # pyright: ignore[reportArgumentType]
            length=options.depth,
        )
        given = (each, cond.get("text"), cond.get("mask"), angles, dropout_keys if options.dropout else None)
        y, _ = blocks(options, name="blocks")(y, jnp.arange(options.depth), *given)

        y = y[:, options.registers :]
        shift, scale = jnp.split(Dense(2 * options.width, kernel_init=ZEROS, name="modulation")(emb), 2, axis=-1)
        y = modulated(y, shift, scale, options.norm).astype(jnp.float32)
        y = Dense(options.patch**2 * self.out_channels, kernel_init=ZEROS, name="proj_out")(y)
        return depth_to_space(y.reshape(batch, rows, columns, -1), options.patch)
