"""`glob` of etils' local paths with the folder's own name taken literally: etils makes one pattern of both.

Orbax looks for what each process wrote with it. In a folder named [ab] it found nothing, and left checkpoints without
their index; in one named a*b it would find the files of others.
"""

import glob
import os
from collections.abc import Iterator

from etils.epath import gpath


def enable() -> None:
    """Have every local `epath.Path` glob below itself alone; addresses of buckets are as before.

    >>> enable()
    >>> folder = gpath.PosixGPath(getfixture("tmp_path")) / "exp[mults=1,2]"
    >>> folder.mkdir()
    >>> (folder / "file").touch()
    >>> [path.name for path in folder.glob("f*")]
    ['file']
    """
    gpath._GPath.glob = _glob  # pyright: ignore[reportAttributeAccessIssue]


_theirs = gpath._GPath.glob


def _glob(self: gpath._GPath, pattern: str) -> Iterator[gpath._GPath]:
    if self._uri_scheme:
        return _theirs(self, pattern)
    return (self / name for name in glob.iglob(pattern, root_dir=os.fspath(self)))
