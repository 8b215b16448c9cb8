"""A Stable Diffusion folder: model_index.json, and beside it unet, vae, text_encoder, tokenizer, scheduler."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.errors import UserError
from jaxdiff.interop.latent import Part, read_autoencoder, read_text_encoder, read_text_unet
from jaxdiff.interop.lora import Lora
from jaxdiff.interop.scheduler_fields import DEFAULTS
from jaxdiff.interop.schedulers import (
    Scheduler,
    process_config,
    read_json,
    refuse_other_counts,
    scheduler_from_config,
)
from jaxdiff.interop.tokenizer import Tokenizer, read_tokenizer

INDEX = "model_index.json"
_PIPELINES = ("StableDiffusionPipeline", "FlaxStableDiffusionPipeline", "LatentConsistencyModelPipeline")
_CLASSES = {  # of each part
    "unet": ("UNet2DConditionModel", "FlaxUNet2DConditionModel"),
    "vae": ("AutoencoderKL", "FlaxAutoencoderKL"),
    "text_encoder": ("CLIPTextModel", "FlaxCLIPTextModel"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": tuple(prefix + name for name in DEFAULTS for prefix in ("", "Flax")),
}
_NOT_USED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Text to image: a tokenizer and a text encoder, a U-Net on latents, and what makes images of them.

    Attributes:
      unet: a `UNet` under a text.
      vae: an `Autoencoder`.
      text: a `TextEncoder`.
      tokenizer: of its texts.
      scheduler: noise schedule, times and sampler.
      notes: where the result differs from theirs, a line each.
    """

    unet: Part
    vae: Part
    text: Part
    tokenizer: Tokenizer
    scheduler: Scheduler
    notes: tuple[str, ...]

    def computing_in(self, dtype: str) -> "Pipeline":
        """The same with networks that compute in "float32" or "bfloat16" (norms, softmax, outputs: float32)."""
        parts = {
            name: dataclasses.replace(part, network=part.network.clone(dtype=dtype))
            for name, part in (("unet", self.unet), ("vae", self.vae), ("text", self.text))
        }
        return dataclasses.replace(self, **parts)

    @property
    def scale(self) -> float:
        """What the autoencoder's latents are multiplied by before noise is added."""
        return float(self.vae.config["scaling_factor"])

    @property
    def max_tokens(self) -> int:
        """Of a text, its begin and end included."""
        return min(self.tokenizer.max_tokens, self.text.network.max_tokens)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(h, w, c) of the latents of an image; None: the size that the model was made for.

        Raises:
          UserError: a size that cannot be had, or none is known.
        """
        factor = 2 ** (len(self.vae.network.channel_mults) - 1)
        step = factor * 2 ** (len(self.unet.network.channel_mults) - 1)
        sizes = self.unet.config["sample_size"]
        sizes = sizes if isinstance(sizes, list | tuple) else (sizes, sizes)
        sides = []
        for name, requested, own in (("height", height, sizes[0]), ("width", width, sizes[-1])):
            if requested is None and (type(own) is not int or own < 1):
                raise UserError(f"the model's config does not say its size: give --{name}, a multiple of {step}")
            side = own * factor if requested is None else requested
            if not 0 < side <= 8192 or side % step:
                raise UserError(f"--{name} {side} must be a multiple of {step}, at most 8192")
            sides.append(side // factor)
        return sides[0], sides[1], self.unet.config["in_channels"]


def read_pipeline(folder: os.PathLike | str, *, sharding: Any = None, lora: Lora | None = None) -> Pipeline:
    """A folder of diffusers' StableDiffusionPipeline (1.x and 2.x), of its Flax class, or of LCM's.

    Args:
      folder: as `save_pretrained` wrote it, or as published; nothing is downloaded.
      sharding: see `names.load`.
      lora: added to the weights of its unet and text_encoder.

    Raises:
      UserError: a part is missing, of a class that jaxdiff has not, or does not fit the others.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    _check_index(index, folder)
    notes = ["its safety checker is not run"] if (index.get("safety_checker") or [None])[0] else []
    scheduler = _scheduler(folder)
    tokenizer = read_tokenizer(folder / "tokenizer")
    text = read_text_encoder(folder / "text_encoder", sharding=sharding, lora=lora)
    vae = read_autoencoder(folder / "vae", sharding=sharding)
    unet = read_text_unet(folder / "unet", sharding=sharding, lora=lora)
    for what, one, other in (
        ("latents' channels, of vae and unet (in)", vae.config["latent_channels"], unet.config["in_channels"]),
        ("latents' channels, of vae and unet (out)", vae.config["latent_channels"], unet.config["out_channels"]),
        ("text's features, of text_encoder and unet", text.config["hidden_size"], unet.config["cross_attention_dim"]),
    ):
        if one != other:
            raise UserError(f"{folder}: its parts do not fit: {what}, are {one} and {other}")
    if tokenizer.size > text.config["vocab_size"]:
        raise UserError(
            f"{folder}: its parts do not fit: the tokenizer has {tokenizer.size} tokens, "
            f"the text encoder {text.config['vocab_size']}"
        )
    notes += [f"{name}: {note}" for name, part in (("unet", unet), ("vae", vae), ("text", text)) for note in part.notes]
    return Pipeline(unet, vae, text, tokenizer, scheduler, (*notes, *scheduler.notes))


def _check_index(index: Mapping[str, Any], folder: Path) -> None:
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise UserError(f"{folder} is a {kind}, which takes no prompt here; only {' and '.join(_PIPELINES)} do")
    problems = []
    for part, classes in _CLASSES.items():
        named = index.get(part)
        named = named[1] if isinstance(named, list) and len(named) == 2 else named
        if not isinstance(named, str):
            problems.append(f"{INDEX} names no {part}")
        elif named not in classes:
            problems.append(f"{part} is a {named} (only {', '.join(classes)})")
        elif not (folder / part).is_dir():
            problems.append(f"the folder {part} is missing")
    others = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
    if extra := sorted(others - {*_CLASSES, *_NOT_USED}):
        problems.append(f"{INDEX} names parts that jaxdiff has not: {', '.join(extra)}")
    if problems:
        raise UserError(f"{folder} cannot be used: {'; '.join(problems)}")


def _scheduler(folder: Path) -> Scheduler:
    """The folder's scheduler, two fields of outdated files amended as StableDiffusionPipeline does."""
    config, notes = process_config(folder / "scheduler" / "scheduler_config.json")
    scheduler = scheduler_from_config(config)
    refuse_other_counts(scheduler)
    if scheduler.config["steps_offset"] != 1:
        config["steps_offset"] = 1
    if scheduler.config.get("clip_sample"):
        config["clip_sample"] = False
    scheduler = scheduler_from_config(config)
    return dataclasses.replace(scheduler, notes=(*notes, *scheduler.notes))
