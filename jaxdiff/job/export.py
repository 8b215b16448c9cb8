"""Export of a run as a small folder to share: weights, config, class names, a picture and a model card."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import jax
import numpy as np

from jaxdiff import pictures
from jaxdiff.config.files import EXPORTED, to_json
from jaxdiff.errors import UserError
from jaxdiff.interop import names, safetensors
from jaxdiff.job.trained import ABOUT, Trained
from jaxdiff.storage import check_writable

COLUMNS = 8


def export_model(model: Trained, folder: Path, picture: bool = True) -> str:
    """Writes model.safetensors, config.json, model.json, README.md and samples.png; returns a line on it.

    `sample.py`, `--init` and `jaxdiff.load` read the folder; nothing in it is executed.

    Args:
      model: from `jaxdiff.load`.
      folder: new, or empty.
      picture: draw samples as the run's config says.

    Raises:
      UserError: the folder is taken; nothing was written.
    """
    check_free(folder)
    config = dataclasses.replace(model.config, workdir="", init="", init_weights="ema")
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    about = {"step": model.step, "shape": model.image_shape, "class_names": model.class_names}
    about |= {"known": dict(model.recipe.conditioner.known)}  # the vocabulary of captions, where there is one
    about |= {"parameters": count, "jaxdiff": importlib.metadata.version("jaxdiff")}
    grid = None
    if picture:
        words = model.recipe.conditioner.examples[:10]
        rows = len(words) or COLUMNS
        grid = pictures.grid(model.draw(rows * COLUMNS, words), rows)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.write_whole(folder / "config.json", to_json(config).encode())
    pictures.write_whole(folder / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    pictures.write_whole(folder / "README.md", _card(model, folder.name, count, picture).encode())
    if grid is not None:
        pictures.write_png(folder / "samples.png", grid)
    tensors = {path.replace("/", "."): np.asarray(leaf) for path, leaf in names.leaf_paths(model.params)}
    safetensors.write(folder / EXPORTED, tensors, {"format": "jaxdiff", "step": str(model.step)})
    return f"{type(model.config.model).__name__} of step {model.step}, {count:,} parameters, in {folder}"


def check_free(folder: Path) -> None:
    """Raises UserError if a folder is taken, or cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose a new folder")
    check_writable(folder / "config.json", "the target")


def _card(model: Trained, name: str, count: int, picture: bool) -> str:
    """The model card."""
    config, (h, w, c) = model.config, model.image_shape
    diffusion, sampling, optimizer = config.diffusion, config.sampling, config.optimizer
    network = f"{type(config.model).__name__}, {count:,} parameters; images {w}x{h}, {c} channel{'s' * (c > 1)}"
    process = f"schedule {diffusion.schedule}, predicts {diffusion.prediction}, weighting {diffusion.weighting}"
    trained = f"{model.step:,} steps of {config.train.batch_size} images, {optimizer.name}, {optimizer.learning_rate:g}"
    drawn = f"drawn by default: {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    classes = f"classes: {', '.join(model.class_names)}" if model.class_names else ""
    lines = [
        network,
        process,
        f"data: {config.data.name}",
        f"trained: {trained}",
        f"drawn by default: {drawn}",
        classes,
    ]
    return f"""---
library_name: jaxdiff
tags: [diffusion, jax]
---

# {name}

{"![samples](samples.png)" if picture else ""}

{chr(10).join(f"- {line}" for line in lines if line)}

```sh
jaxdiff sample {name} --num 16 --out samples.png
jaxdiff train CONFIG --init {name} --workdir runs/mine
```

```py
import jaxdiff as jd

images = jd.load("{name}").draw(16)  # uint8
```

Licence, and what the data may be used for: to be written by whoever shares it.
"""
