"""Bytes of images by the names that conversations give them: in a folder, or in shards by key.

In shards an image "coco/train2017/0.jpg" is the sample whose key is "coco/train2017/0". The keys are read from the
shards' headers once and kept, hashed and sorted, in a mapped file.

Dimensions: S samples.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from webssl_fast.data.column_file import Column, map_columns, write_columns
from webssl_fast.data.identity import source_identity
from webssl_fast.data.index import WHOLE_FILE, Index, Location
from webssl_fast.data.tar_scan import key_hash
from webssl_fast.errors import UserError

_KIND = "index of image keys"


class ImagePlaces(Protocol):
    def locate(self, name: str) -> Location:
        """Raises KeyError where there is no such image."""
        ...


class ImageFolder:
    def __init__(self, root: str):
        self._root = root

    def locate(self, name: str) -> Location:
        return Location(os.path.join(self._root, name), 0, WHOLE_FILE)  # whether it is there shows when it is read


class ImageShards:
    def __init__(self, index: Index, hashes: np.ndarray, sample_ids: np.ndarray):
        self._index, self._hashes, self._sample_ids = index, hashes, sample_ids

    def locate(self, name: str) -> Location:
        wanted = np.uint64(key_hash(_key(name)))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            raise KeyError(name)
        return self._index.locate(int(self._sample_ids[place]))


def open_images(source: str, keys_path: str) -> ImagePlaces:
    """Where images lie: a folder, or what `data.index.Index` opens as shards.

    keys_path  of shards: the mapped file of their keys, made where there is none or it is of other shards
    Raises UserError where nothing is there, or keys stand twice.
    """
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return ImageFolder(path)
    index = Index.open(source)
    if index.kind != "tar":
        raise UserError(f"images {source!r} are a {index.kind}; images of conversations lie in a folder or in shards")
    identity, file = source_identity(index), Path(keys_path)
    if not file.is_file() or map_columns(file, _KIND)[0]["identity"] != identity:
        _write_keys(index, identity, file)
    columns = map_columns(file, _KIND, at_random=True)[1]
    return ImageShards(index, columns["hashes"], columns["sample_ids"])


def _key(name: str) -> str:
    """Of the sample that holds a file of that name: up to the first dot of its last part (see tar_scan)."""
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _write_keys(index: Index, identity: str, file: Path) -> None:
    names = (index.name(i) for i in tqdm(range(len(index)), f"keys of {index.source}"))
    hashes = np.fromiter(map(key_hash, names), np.uint64, len(index))
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    if len(twice := np.flatnonzero(hashes[1:] == hashes[:-1])):
        name = index.name(int(order[twice[0]]))
        raise UserError(
            f"{len(twice)} keys stand twice in {index.source!r}, the first being {name!r}: images are found by their "
            "keys, so each must stand once"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {"hashes": Column.of(hashes), "sample_ids": Column.of(order.astype(np.int64))}
    write_columns(file, {"kind": _KIND, "identity": identity}, columns)
