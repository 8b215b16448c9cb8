"""Where files lie: a folder of this machine, or a bucket by its address (gs://, s3://); each written whole or not."""

import contextlib
import errno
import os
import re
import threading
from pathlib import Path

from etils import epath

from jaxdiff.errors import UserError

Place = Path | epath.Path
SCHEMES = ("gs", "s3")

# What in the name of a folder a library below us takes for something else: TensorStore a backslash for a slash, and it
# reads UTF-8 alone; Orbax what ends in gs: for a bucket, and etils a folder of the root with such a name.
_UNNAMEABLE = re.compile(r"\\|gs:(?=/|$)|^/(?:gs|s3|az|hf)(?=/|$)|[\ud800-\udfff]|\0")
# In a bucket, fsspec takes * ? [ ] { } for patterns, also where it deletes; clients quote the rest each in their way.
_NO_OBJECT = re.compile(r"[^\w\-.,=+@()!/ ]|(?<=/)\.{1,2}(?=/|$)|//")

_READ, _TWICE = ["*.json", "*.txt", "*.safetensors"], ["*.fp16.*", "*non_ema*", "*pruned*"]  # of a folder on a hub


def place(name: os.PathLike | str) -> Place:
    """A path of the right kind, ~ expanded; from the first in a bucket on, fsspec keeps no listings in this process.

    Raises:
      UserError: an address of no kind that we can read and write.

    >>> place("runs/digits"), str(place("gs://bucket/runs"))
    (PosixPath('runs/digits'), 'gs://bucket/runs')
    """
    if not in_bucket(name):
        return Path(expanded(os.fspath(name)))
    scheme = os.fspath(name).partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{name} is no place for files; name a folder, or an address in gs:// or s3://")
    if match := _NO_OBJECT.search(os.fspath(name).partition("://")[2]):
        raise UserError(
            f"{name!s} has {match[0]!a} in it, which not all that read and write buckets take literally; choose an "
            "address of letters, digits and - _ . , = + @ ( ) !"
        )
    import fsspec.config  # 0.2 s, for buckets only

    # Others write there too: what was listed once, sizes and tags with it, may be something else by now.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return epath.Path(name)


def fetched(name: os.PathLike | str) -> Place:
    """A place to read a model from; hf://OWNER/NAME, or with @REVISION, is fetched from the hub of Hugging Face.

    What was fetched once stays in the hub's cache, and is only looked after (extra `hub`; HF_ENDPOINT, HF_TOKEN).

    Raises:
      UserError: see `place`; or the hub has no such model, or does not answer.
    """
    scheme, _, address = os.fspath(name).partition("://")
    if scheme != "hf":
        return place(name)
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if match is None:
        raise UserError(f"{name} is no address of a model; write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name} needs the package huggingface-hub: pip install jaxdiff[hub]") from None
    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=_READ, ignore_patterns=_TWICE))
    except Exception as error:  # of many kinds, its own and its HTTP client's
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{name} cannot be fetched: {type(error).__name__}: {reason}") from None


def expanded(name: str) -> str:
    """A path whose first part may be ~ or ~user, as shells have it.

    Raises:
      UserError: there is no home folder.
    """
    path = os.path.expanduser(name)
    if name.split("/")[0] == "~" and (not os.path.isabs(path) or os.environ.get("HOME") == ""):
        raise UserError(f"{name}: there is no home folder here for ~; give the whole path")
    return path


def cache_folder() -> Path | None:
    """Where jaxdiff's caches lie: below XDG_CACHE_HOME where that is an absolute path, else ~/.cache; None: no home."""
    if os.path.isabs(base := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(base, "jaxdiff")
    with contextlib.suppress(UserError):
        return Path(expanded("~/.cache"), "jaxdiff")
    return None


def nameable(path: str) -> str:
    """The absolute path of a folder that checkpoints can be written to under its own name.

    Raises:
      UserError: it has another meaning to a library that writes them.

    >>> nameable("/runs/exp[mults=1,2]")
    '/runs/exp[mults=1,2]'
    """
    if match := _UNNAMEABLE.search(path):
        raise UserError(
            f"{path} has {match[0]!a} in it, which the libraries that write checkpoints do not take for a folder's "
            "name; choose another folder, or name it by a link"
        )
    return path


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
    beside = _beside(path)
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: Place, what: str) -> None:
    """Refuses a file that could not be written once the work is done; writes one beside it, and leaves nothing behind.

    Args:
      path: of the file. Its folder need not exist.
      what: how errors call it, such as "--out".

    Raises:
      UserError: it cannot be written. A bucket is not tried.
    """
    if in_bucket(path):
        return
    path, beside = Path(path), _beside(Path(path))
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(b"?")
    except OSError as error:
        why = "its folder is a file" if isinstance(error, FileExistsError) else str(error.strerror).lower()
        raise UserError(f"{what} {path} cannot be written: {why}; choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
