"""Files that lie where weights should: pointers, web pages, archives, empty and cut downloads, by their first bytes."""

import json
import os
import re
import zipfile
from pathlib import Path

_HEAD = 4096  # bytes that are looked at
_MAGIC = {  # first bytes -> what the file is
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF": "an HDF5 file, of Keras or TensorFlow, which is not read",
    b"\x93NUMPY": "an array of NumPy without a name (.npy), not named tensors",
    b"GGUF": "a quantized GGUF file, which is not read: get the safetensors",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
}
_FOR_TENSORFLOW = (
    "TensorFlow's checkpoints of DDPM are not read: their diffusers versions, google/ddpm-*, are"  # .ckpt.index etc.
)


def what_is(path: os.PathLike | str) -> str | None:
    """What a file is that holds no weights, and what to do, to follow its name in a message; None: it may hold some.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"version https://git-lfs.github.com/spec/v1\\nsize 123\\n"), file.flush()
    ...     what_is(file.name)
    'is a pointer of Git LFS, not the file itself (123 bytes): run `git lfs pull` in its clone'
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    tensorflow = re.search(r"\.ckpt(-\d+)?(\.index|\.meta|\.data-\d+-of-\d+)?$", path.name)
    if not head:
        return "is empty (0 bytes): its download or copy was cut" + (f" ({_FOR_TENSORFLOW})" if tensorflow else "")
    if tensorflow and tensorflow[2]:
        return f"is a part of a checkpoint of TensorFlow; {_FOR_TENSORFLOW}"
    if not head.strip(b"\0"):
        return f"begins with {len(head)} zeros: its download or copy was never filled"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return f"is {what}"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if head.startswith(b"PK"):
        return _zip(path)
    return _text(head.removeprefix(b"\xef\xbb\xbf").lstrip(), size)


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "begins as a ZIP file and is cut or damaged: download or copy it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript module: save torch.jit.load(path).state_dict() with torch.save"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy's arrays (.npz): {_some(names)}, which is not read"
    return f"is a ZIP archive of {_some(names)}: unpack it"


def _text(head: bytes, size: int) -> str | None:
    if head.startswith(b"version https://git-lfs"):
        match = re.search(rb"^size (\d{1,20})$", head, re.MULTILINE)
        true_size = f" ({int(match[1]):,} bytes)" if match else ""
        return f"is a pointer of Git LFS, not the file itself{true_size}: run `git lfs pull` in its clone"
    if b"/annex/objects/" in head[:200]:
        return "is a pointer of git-annex, not the file itself: run `git annex get` in its clone"
    if re.match(rb"<(!doctype html|html|head|!--|script)", head, re.IGNORECASE):
        return "is a web page (HTML), not the file itself: download that (a hub's address has 'resolve', not 'blob')"
    if re.match(rb"c[\w.]+\n[\w.]+\n|\([dl]p?\d*\n", head):  # a pickle of protocol 0
        return None
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start == 0 or error.start < len(head) - 3:  # a letter may be cut at the end
            return None
        text = head[: error.start].decode()
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return None
    if text.startswith(("{", "[")):
        return f"is JSON{_keys(text)}, not weights"
    return f"is text, {_quoted(text)}, not weights: {size:,} bytes, an answer of a server or another file"


def _keys(text: str) -> str:
    """ " with keys a, b" of a JSON object; of one longer than the head: nothing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, dict) and isinstance(value.get("error"), str):
        return f", an error of a server: {_quoted(value['error'])}"
    if isinstance(value, dict):
        return " with keys " + _some([str(key) for key in value])
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _quoted(text: str) -> str:
    line = " ".join(text[:400].split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
