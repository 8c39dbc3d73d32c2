"""Keys that several samples have, over any number of shards: an external sort of 64-bit hashes by buckets on disk.

Dimensions: S samples.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from webssl_fast.data.index import Index

_BUCKET_SAMPLES = 2**24  # sorted in memory at once, 256 MiB
_ENTRY = np.dtype([("hash", "<u8"), ("sample_id", "<u8")])


def write_duplicates(
    index: Index,
    key_hashes: Iterable[np.ndarray],
    path: Path,
    scratch: Path,
    bucket_samples: int = _BUCKET_SAMPLES,
) -> int:
    """Writes {"key": ..., "sample_ids": [...]} a line for each key of several samples; returns their number.

    key_hashes  uint64 [S] of all samples, cut into parts in the order of the index
    Equal hashes are compared by name in the shards, so that a collision is no duplicate.
    """
    buckets = scratch / "buckets"
    if buckets.exists():  # of a run that was killed
        shutil.rmtree(buckets)
    buckets.mkdir()
    num_bits = max(0, -(-len(index) // bucket_samples) - 1).bit_length()
    files = [open(buckets / str(number), "wb") for number in range(2**num_bits)]
    first = 0
    for hashes in key_hashes:
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"], entries["sample_id"] = hashes, np.arange(first, first + len(hashes))
        first += len(hashes)
        bucket = (entries["hash"] >> np.uint64(64 - num_bits)) if num_bits else np.zeros(len(hashes), np.uint64)
        for number in np.unique(bucket):
            files[int(number)].write(entries[bucket == number].tobytes())
    num_found = 0
    unfinished = scratch / "duplicates.unfinished"
    with open(unfinished, "w") as lines:
        for file in files:
            file.close()
            for same in _of_equal_hash(np.fromfile(file.name, _ENTRY)):
                named = defaultdict(list)
                for sample_id in same:
                    named[index.name(sample_id)].append(sample_id)
                for key, sample_ids in named.items():
                    if len(sample_ids) > 1:
                        lines.write(json.dumps({"key": key, "sample_ids": sample_ids}) + "\n")
                        num_found += 1
    shutil.rmtree(buckets)
    os.replace(unfinished, path)
    return num_found


def _of_equal_hash(entries: np.ndarray) -> list[list[int]]:
    entries = entries[np.lexsort((entries["sample_id"], entries["hash"]))]
    ends = np.flatnonzero(np.diff(entries["hash"])) + 1
    begins = np.concatenate([[0], ends])
    ends = np.concatenate([ends, [len(entries)]])
    several = ends - begins > 1
    return [entries["sample_id"][a:b].tolist() for a, b in zip(begins[several], ends[several], strict=True)]
