"""A data set before it is trained on: its contact sheet, as the network will see it, and all files that are bad."""

from collections import Counter

import numpy as np
from jaxtyping import UInt8

from jaxdiff import pictures
from jaxdiff.assembly.recipe import open_data
from jaxdiff.config import Config
from jaxdiff.data.sources import MemorySource, Source
from jaxdiff.storage import Place

_SHOWN, _COLUMNS = 64, 8


def contact_sheet(source: Source) -> UInt8[np.ndarray, "H W c"]:
    """Up to 64 images, evenly spread over the data set: cut, scaled, turned, each over its caption or class."""
    indices = np.unique(np.linspace(0, len(source) - 1, _SHOWN).astype(int))
    records, names = [source[index] for index in indices.tolist()], source.about.class_names
    titles = [names[int(record["label"])] if names else "" for record in records]
    if source.captions:
        titles = [(source.captions[int(record["record"])] or ("",))[0] for record in records]
    images = np.stack([record["image"] for record in records])
    return pictures.grid(images, -(-len(images) // _COLUMNS), titles=titles if any(titles) else ())


def check_data(config: Config, out: Place) -> tuple[int, str]:
    """Reads every image of a config's data; what there is, what is passed over, and a line for each that is bad.

    Args:
      config: valid; of its data everything counts but on_error.
      out: where the contact sheet goes.

    Returns:
      The exit code, 2 where training would stop, and the lines.

    Raises:
      UserError: there is nothing to train on.
    """
    source = open_data(config, on_error="skip")
    if not (counted := isinstance(source, MemorySource)):
        source.read_all()
    bad = source.about.left_out
    pictures.write_png(out, contact_sheet(source))
    h, w, c = source.shape
    lines = [f"{len(source)} images, of {w}x{h} in {'grey' if c == 1 else 'colour'}; some of them in {out}"]
    if names := source.about.class_names:
        counts = Counter(int(source[i]["label"]) for i in range(len(source))) if counted else {}
        listed = (f"{name} ({counts[number]})" if counted else name for number, name in enumerate(names))
        lines.append(f"classes: {', '.join(listed)}")
    lines += [f"note: {note}" for note in source.about.notes]
    lines += [f"bad: {line}" for line in bad]
    stops = bool(bad) and config.data.on_error == "stop"
    if stops:
        lines.append(f"{len(bad)} files are bad: remove them, or leave them out by data.on_error=skip")
    return 2 if stops else 0, "\n".join(lines)
