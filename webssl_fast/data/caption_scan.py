"""The captions of neighbouring samples, read from one end of a shard to the other: for passes over all of an index.

Where few are wanted, captions.py reads them one by one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np

from webssl_fast.data.index import CAPTION, Index
from webssl_fast.data.parquet import read_texts
from webssl_fast.data.tar_scan import TAR_BLOCK, members_between
from webssl_fast.errors import UserError

FILES_AT_ONCE = 10_000  # of a folder, whose samples are files of their own


def caption_ranges(index: Index) -> list[tuple[int, int]]:
    """(first, end) of the sample ids that are read together, in order: those of a shard or a Parquet file.

    Raises UserError where a source has no captions at all.
    """
    if index.kind == "parquet" and index.text_column is None:
        raise UserError(f"data source {index.source!r} has no captions: no column named text, caption or txt")
    if index.file_starts is None:
        firsts = range(0, len(index), FILES_AT_ONCE)
        return [(first, min(first + FILES_AT_ONCE, len(index))) for first in firsts]
    starts = index.file_starts.tolist()
    return [(first, end) for first, end in zip(starts, starts[1:], strict=False) if first < end]


def scan_captions(index: Index, first: int, end: int) -> list[str]:
    """The captions of one of `caption_ranges`, their ends stripped; empty where a sample has none, or one that is not
    UTF-8. Raises OSError where the shard or file cannot be read."""
    found: Sequence[bytes | str | None]
    if index.kind == "tar":
        found = _of_shard(index, first, end)
    elif index.kind == "parquet":
        assert index.text_column is not None
        try:
            found = list(read_texts(index.locate(first).path, index.text_column, index.storage))
        except UserError as error:
            raise OSError(str(error)) from error
    else:
        found = [_of_file(index, sample_id) for sample_id in range(first, end)]
    assert len(found) == end - first
    return [_decoded(text) for text in found]


def _of_shard(index: Index, first: int, end: int) -> list[bytes]:
    assert index.blocks is not None and index.leads is not None
    assert index.file_starts is not None and index.end_blocks is not None
    path = index.locate(first).path
    file_id = int(np.searchsorted(index.file_starts, first, side="right")) - 1
    first_blocks = (index.blocks[first:end].astype(np.int64) - index.leads[first:end]).tolist()
    found = [b""] * (end - first)
    place, key = -1, None
    end_byte = int(index.end_blocks[file_id]) * TAR_BLOCK
    try:
        with index.storage.open(path) as file:
            for member in members_between(file, first_blocks[0] * TAR_BLOCK, end_byte):
                if place + 1 < len(found) and member.header_offset >= first_blocks[place + 1] * TAR_BLOCK:
                    place, key = place + 1, member.key
                # Of another key: a sample without an image, which the index does not have.
                if member.key == key and member.extension == CAPTION and not found[place]:
                    file.seek(member.offset)
                    found[place] = file.read(member.size)
    except tarfile.TarError as error:
        raise OSError(f"{path!r} is not what it was when it was indexed: {error}") from error
    return found


def _of_file(index: Index, sample_id: int) -> bytes:
    location = index.locate_member(sample_id, CAPTION)
    if location is None:
        return b""
    with open(location.path, "rb") as file:
        return file.read()


def _decoded(text: bytes | str | None) -> str:
    try:
        return (text.decode() if isinstance(text, bytes) else text or "").strip()
    except UnicodeDecodeError:
        return ""
