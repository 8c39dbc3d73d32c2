"""Image tokens of conversations' images, computed once and mapped from files of SHARD_RECORDS records each.

A file appears whole or not at all; what is missing is what is still to be computed.

Dimensions: I images, M image tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.data.column_file import Column, map_columns, write_columns

_KIND = "image tokens"
SHARD_RECORDS = 256
_OPEN_FILES = 4096


class ImageTokenFiles:
    """folder: of every set of tokens; identity: JSON, whatever the tokens depend on; ids int64: the records that have
    an image, rising."""

    def __init__(self, folder: Path, identity: Mapping[str, object], ids: np.ndarray, num_tokens: int, width: int):
        text = json.dumps({**identity, "ids": hashlib.sha256(ids.tobytes()).hexdigest()}, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._ids, self._shape = ids, (num_tokens, width)
        self._map = lru_cache(_OPEN_FILES)(self._mapped)

    def missing(self) -> list[int]:
        num_shards = -(-len(self._ids) // SHARD_RECORDS)
        return [shard for shard in range(num_shards) if not self._path(shard).is_file()]

    def shard_ids(self, shard: int) -> np.ndarray:
        return self._ids[shard * SHARD_RECORDS : (shard + 1) * SHARD_RECORDS]

    def write(self, shard: int, ids: np.ndarray, tokens_IMD: Tensor) -> None:
        """ids: those of the shard whose image could be used, in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bits = tokens_IMD.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().reshape(-1)
        columns = {"ids": Column.of(ids.astype(np.int64)), "tokens": Column.of(bits)}
        write_columns(self._path(shard), {"kind": _KIND}, columns)

    def read(self, sample_id: int) -> Tensor | None:
        """bf16 [M, D] of a record; None where its image could not be used."""
        ids, tokens_IMD = self._map(int(np.searchsorted(self._ids, sample_id)) // SHARD_RECORDS)
        place = int(np.searchsorted(ids, sample_id))
        if place == len(ids) or ids[place] != sample_id:
            return None
        return torch.from_numpy(tokens_IMD[place].copy()).view(torch.bfloat16)

    def _mapped(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        columns = map_columns(self._path(shard), _KIND)[1]
        return columns["ids"], columns["tokens"].reshape(-1, *self._shape)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:06d}.tokens"
