"""Subsets of a saved index: files of sample ids as a compressed bitmap, with and, or, not and sampling by share.

The ids are stored in the portable 64-bit format of Roaring bitmaps (https://github.com/RoaringBitmap/RoaringFormatSpec).
pyroaring does the algebra. Training only asks for the k-th id, of a mapped file: that needs no package, and no memory.

Dimensions: B ids asked for, C containers (of the ids that share their upper 48 bits).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from webssl_fast.data.column_file import Column, is_column_file, map_columns, read_header, write_columns
from webssl_fast.data.index import Index
from webssl_fast.data.order import uniform
from webssl_fast.errors import UserError

if TYPE_CHECKING:
    from pyroaring import BitMap64

_COOKIE, _COOKIE_WITH_RUNS = 12346, 12347
_MAX_ARRAY = 4096  # ids of a container that are stored one by one; more are a bitmap of 2^16 bits
_NO_OFFSETS_BELOW = 4  # containers of a bitmap with runs
_BITMAP_BYTES = 8192
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_NUM_BITS = _BITS.sum(1, dtype=np.uint8)  # of each byte
_PLACES_OF_BITS = np.argsort(1 - _BITS, axis=1, kind="stable")  # [byte, k]: where its k-th set bit is
_IDS_AT_ONCE = 2**24  # that sampling looks at, to bound its memory


class Subset:
    """Ids of an index in ascending order, from a file that stays mapped."""

    def __init__(self, path: str | Path):
        """Raises UserError where the file is no subset, or truncated; OSError."""
        header, columns = map_columns(path, "subset")
        self.path = str(path)
        self.index_identity: str = header["index_identity"]
        self.index_size: int = header["index_size"]
        self._raw = columns["roaring"]
        self._containers = _containers_of(self._raw)
        self._starts_C = np.concatenate([[0], np.cumsum([c[1] for c in self._containers], dtype=np.int64)])

    @classmethod
    def of(cls, path: str | Path, index: Index) -> Subset:
        """A subset of this index. Raises UserError where it is one of another."""
        subset = cls(path)
        if (subset.index_identity, subset.index_size) != (_identity(index), len(index)):
            raise UserError(
                f"subset {str(path)!r} is of another index ({subset.index_size} samples, {subset.index_identity[:12]}) "
                f"than {index.source!r} ({len(index)} samples, {index.identity[:12]}): make it again from this one"
            )
        return subset

    def __len__(self) -> int:
        return int(self._starts_C[-1])

    def select(self, places_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the ids at these places (from 0 on) of the ascending order."""
        places_B = np.asarray(places_B, np.int64)
        if places_B.size and not (0 <= places_B.min() and places_B.max() < len(self)):
            raise IndexError(f"places must lie in [0, {len(self)}), got {places_B.min()} to {places_B.max()}")
        container_B = np.searchsorted(self._starts_C, places_B, side="right") - 1
        ids_B = np.empty_like(places_B)
        for number in np.unique(container_B).tolist():
            here = container_B == number
            lows = self._lows(number, places_B[here] - self._starts_C[number])
            ids_B[here] = self._containers[number][0] << 16 | lows.astype(np.int64)
        return ids_B

    def bitmap(self) -> BitMap64:
        """The ids as pyroaring has them, in memory."""
        return _bitmap_type().deserialize(self._raw.tobytes())

    def _lows(self, number: int, ranks: np.ndarray) -> np.ndarray:
        """Lower 16 bits of the ids at these places within a container."""
        _, cardinality, kind, begin = self._containers[number]
        if kind == "array":
            return self._raw[begin : begin + 2 * cardinality].view("<u2")[ranks]
        if kind == "bitmap":
            octets = self._raw[begin : begin + _BITMAP_BYTES]
            ends = np.cumsum(_NUM_BITS[octets], dtype=np.int32)
            at = np.searchsorted(ends, ranks, side="right")
            return 8 * at + _PLACES_OF_BITS[octets[at], ranks - (ends[at] - _NUM_BITS[octets[at]])]
        num_runs = int(self._raw[begin : begin + 2].view("<u2")[0])
        runs = self._raw[begin + 2 : begin + 2 + 4 * num_runs].view("<u2").reshape(-1, 2).astype(np.int64)
        ends = np.cumsum(runs[:, 1] + 1)
        at = np.searchsorted(ends, ranks, side="right")
        return runs[at, 0] + ranks - (ends[at] - runs[at, 1] - 1)


def is_subset(path: str | Path) -> bool:
    return is_column_file(path) and read_header(path)["kind"] == "subset"


def index_of(path: str | Path) -> str:
    """Where the index lay when the subset was made from it."""
    return str(read_header(path)["index"])


def write_subset(path: Path, bitmap: BitMap64, index: Index) -> None:
    """Writes ids of a saved index as a subset. Raises UserError where the index is none, or an id lies outside."""
    if len(bitmap) and bitmap.max() >= len(index):
        raise UserError(f"sample id {bitmap.max()} lies outside of {index.source!r}, which has {len(index)} samples")
    bitmap.run_optimize()
    header = {
        "kind": "subset",
        "index": os.path.abspath(index.source),
        "index_identity": _identity(index),
        "index_size": len(index),
        "num_samples": len(bitmap),
    }
    write_columns(path, header, {"roaring": Column.of(np.frombuffer(bitmap.serialize(), np.uint8))})


def whole(index: Index) -> BitMap64:
    """Every id of an index."""
    bitmap = _bitmap_type()()
    bitmap.add_range(0, len(index))
    return bitmap


def of_ids(ids: np.ndarray) -> BitMap64:
    """These ids, in any order. Raises UserError for negative ones."""
    if ids.size and ids.min() < 0:
        raise UserError(f"sample ids are numbers from 0 on, got {ids.min()}")
    return _bitmap_type()(ids.astype(np.uint64))


def sampled(bitmap: BitMap64, share: float, seed: int) -> BitMap64:
    """About this share of the ids. Whether an id is taken follows from it and the seed alone: a smaller share of the
    same seed is part of a larger one, whatever subset they are drawn from. Raises UserError for no share in [0, 1]."""
    if not 0 <= share <= 1:
        raise UserError(f"a share lies between 0 and 1, got {share}")
    taken = _bitmap_type()()
    for first in range(0, bitmap.max() + 1 if len(bitmap) else 0, _IDS_AT_ONCE):
        here = _bitmap_type()()
        here.add_range(first, first + _IDS_AT_ONCE)
        ids = np.array((bitmap & here).to_array(), np.uint64)
        taken |= _bitmap_type()(ids[uniform(seed, ids) < share])
    return taken


def _identity(index: Index) -> str:
    if not index.identity:
        raise UserError(
            f"{index.source!r} is no saved index, and a subset is one of such: write it with "
            f"`webssl data index SOURCE -o INDEX`, and set data.source to INDEX"
        )
    return index.identity


def _bitmap_type() -> type[BitMap64]:
    try:
        from pyroaring import BitMap64
    except ImportError as error:
        raise UserError("subsets are combined by pyroaring: pip install 'webssl_fast[subsets]'") from error
    return BitMap64


def _containers_of(raw: np.ndarray) -> list[tuple[int, int, str, int]]:
    """(upper 48 bits, number of ids, kind, first byte) of each container of a serialised 64-bit bitmap."""
    containers = []
    at = 8
    for _ in range(_integer(raw, 0, "<Q")):
        high = _integer(raw, at, "<I")
        at += 4
        cookie = _integer(raw, at, "<I")
        with_runs = cookie & 0xFFFF == _COOKIE_WITH_RUNS
        if not with_runs and cookie != _COOKIE:
            raise UserError(f"a subset's bitmap is damaged: cookie {cookie} at byte {at}")
        begin, at = at, at + 4
        if with_runs:
            num = (cookie >> 16) + 1
            is_run = np.unpackbits(raw[at : at + (num + 7) // 8], bitorder="little")[:num].astype(bool)
            at += (num + 7) // 8
        else:
            num = _integer(raw, at, "<I")
            is_run = np.zeros(num, bool)
            at += 4
        described = raw[at : at + 4 * num].copy().view("<u2").reshape(-1, 2).astype(np.int64)
        at += 4 * num
        if not with_runs or num >= _NO_OFFSETS_BELOW:
            at += 4 * num  # the offsets, which follow from the sizes
        for (key, cardinality_less_1), run in zip(described.tolist(), is_run.tolist(), strict=True):
            cardinality = cardinality_less_1 + 1
            kind = "run" if run else "array" if cardinality <= _MAX_ARRAY else "bitmap"
            containers.append((high << 16 | key, cardinality, kind, at))
            if kind == "run":
                at += 2 + 4 * _integer(raw, at, "<H")
            else:
                at += 2 * cardinality if kind == "array" else _BITMAP_BYTES
        assert begin < at <= len(raw)
    return containers


def _integer(raw: np.ndarray, at: int, form: str) -> int:
    return int(struct.unpack_from(form, raw.data, at)[0])
