"""Orbax for s3:// addresses: of itself it writes to folders and to gs:// alone (google/orbax, pull request 2739)."""

import os
from collections.abc import Callable
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_PREFIX = "s3://"


def enable() -> None:
    """Have Orbax hand s3:// addresses to TensorStore as it hands on gs://; others are as before.

    The three functions are wrapped by which Orbax hands an address to TensorStore; all else in it takes s3:// for a
    disk.

    >>> enable()
    >>> for address in ("s3://bucket/run", "gs://bucket/run", "/bucket/run"):
    ...     print(tensorstore_utils.build_kvstore_tspec(address, use_ocdbt=False))
    {'driver': 's3', 'bucket': 'bucket', 'path': 'run'}
    {'driver': 'gcs', 'bucket': 'bucket', 'path': 'run'}
    {'driver': 'file', 'path': '/bucket/run'}
    """
    if tensorstore_utils._use_gcs_driver("s3://bucket/run"):
        return
    for module, name, made in (
        (tensorstore_utils, "_use_gcs_driver", lambda address: True),
        (tensorstore_utils, "_normalize_path", lambda address: _PREFIX + os.path.normpath(address[len(_PREFIX) :])),
        (gcs_utils, "get_kvstore_for_gcs", _store),
    ):
        setattr(module, name, _either(made, getattr(module, name)))


def _either(ours: Callable[[str], Any], other: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda address: (ours if address.startswith(_PREFIX) else other)(address)


def _store(address: str) -> dict[str, str]:
    bucket, _, path = address.removeprefix(_PREFIX).partition("/")
    return {"driver": "s3", "bucket": bucket, "path": path}
