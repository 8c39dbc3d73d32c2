"""What tells one set of images from another without reading the images."""

from __future__ import annotations

import hashlib
import os

from webssl_fast.data.index import Index
from webssl_fast.data.storage import is_remote


def source_identity(index: Index) -> str:
    """SHA-256 over names, places and files of the samples: a file's size and time of change stand for its content.

    Labels do not enter, nor does where the source lies. A saved index has its own identity, and no file is looked at.
    Raises OSError where a file has gone.
    """
    if index.identity:
        return index.identity
    digest = hashlib.sha256()
    for i in range(len(index.files)):
        name = index.files[i]
        path = os.path.join(index.root, name)
        changed_ns = 0 if is_remote(path) else os.stat(path).st_mtime_ns
        shown = name if index.root else os.path.basename(name)
        described = f"{shown}\0{index.storage.size(path)}\0{changed_ns}\n"
        digest.update(described.encode(errors="surrogateescape"))
    for array in (index.file_starts, index.blocks, index.sizes, index.leads):
        if array is not None:
            digest.update(array.tobytes())
    digest.update(f"{len(index)} {index.image_column}".encode())
    return digest.hexdigest()
