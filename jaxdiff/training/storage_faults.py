"""Errors of disks and object stores, told apart: a bad file, a moment's failure, or something a person must mend."""

import errno
import os
import re

from jaxdiff.errors import chain, of_a_bucket

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
STATUS = {
    "NOT_FOUND": "a file is missing",
    "OUT_OF_RANGE": "a file is cut short",
    "DATA_LOSS": "a file is damaged",
}  # TensorStore's words for it open a paragraph


def _code(error: BaseException) -> int | None:
    """The operating system's error number, which TensorStore gives in words."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno:
            return link.errno
        if match := re.search(r"(?:OS error |os_error_code=')(\d+)", str(link)):
            return int(match[1])
    return None


def kind(error: BaseException) -> str:
    """Whether it lies in the files ("corrupt"), or in the store: for now ("flaky") or until somebody acts."""
    code, text = _code(error), " ".join(str(link) for link in chain(error))
    if code in FULL or code in FORBIDDEN:
        return "hopeless"
    if re.search(r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED)\b", text):
        return "hopeless"
    if re.search(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b", text):
        return "flaky"
    if code is None and of_a_bucket(error):  # without an answer nothing is known of the files
        return {FileNotFoundError: "corrupt", PermissionError: "hopeless"}.get(type(error), "flaky")
    return "corrupt" if code is None or code in MISSING else "flaky"


def reason(error: BaseException) -> str:
    """The cause in a few words, on one line."""
    if code := _code(error):
        return os.strerror(code).lower()
    root = chain(error)[-1]
    for status, words in STATUS.items():
        if re.search(rf"\b{status}\b", str(root)):
            return words
    words = str(root).splitlines()[0] if str(root) else type(root).__name__
    return words if len(words) <= 120 else words[:120] + "..."


def remedy(error: BaseException) -> str:
    """What to do about it."""
    if _code(error) in FULL:
        return "free some space"
    if _code(error) in FORBIDDEN:
        return "get access to it"
    return "check the disk or store"
