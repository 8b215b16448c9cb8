"""Where files lie: a folder of this machine, or a bucket by its address (gs://, s3://); each written whole or not."""

import os
from pathlib import Path

from etils import epath

from jaxdiff.errors import UserError

Place = Path | epath.Path
SCHEMES = ("gs", "s3")


def place(name: os.PathLike | str) -> Place:
    """A path of the right kind; from the first in a bucket on, fsspec keeps no listings in this process.

    Raises:
      UserError: an address of no kind that we can read and write.

    >>> place("runs/digits"), str(place("gs://bucket/runs"))
    (PosixPath('runs/digits'), 'gs://bucket/runs')
    """
    if not in_bucket(name):
        return Path(name)
    scheme = os.fspath(name).partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{name} is no place for files; name a folder, or an address in gs:// or s3://")
    import fsspec.config  # 0.2 s, for buckets only

    # Others write there too: what was listed once, sizes and tags with it, may be something else by now.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return epath.Path(name)


def in_bucket(path: os.PathLike | str) -> bool:
    """Whether it is an address: no file there can be locked, appended to, touched, or written in part."""
    return "://" in os.fspath(path)


def write_whole(path: Place, content: bytes) -> None:
    """Writes a file so that path holds either what it held before or all of content."""
    if in_bucket(path):
        path.write_bytes(content)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
