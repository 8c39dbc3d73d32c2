"""Files of named flat arrays that are mapped into memory: opening one reads its header alone, whatever its size.

Layout: 8 bytes of magic, version and header length (uint32 each, little-endian), the header as JSON, then the columns,
each from a multiple of 64 bytes on. The header ends in the file's size, so that a truncated file is told from a whole.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from webssl_fast.errors import UserError

MAGIC = b"WebSSLcf"
VERSION = 1
_ALIGNMENT = 64
_PREFIX = struct.Struct("<8sII")


class Column(NamedTuple):
    """`length` values of `dtype`, which come in `parts`."""

    dtype: str
    length: int
    parts: Iterable[np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> Column:
        return cls(array.dtype.str, len(array), [array])


def is_column_file(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def layout(header: Mapping[str, Any], columns: Mapping[str, tuple[str, int]]) -> tuple[bytes, dict[str, int], int]:
    """The bytes before the first column, where each column (dtype, length) starts, and the size of the whole file."""
    offsets, end = {}, 0
    for name, (dtype, length) in columns.items():
        offsets[name] = end
        end = _aligned(end + np.dtype(dtype).itemsize * length)
    described = {name: [dtype, length, offsets[name]] for name, (dtype, length) in columns.items()}
    text = json.dumps({**header, "columns": described, "columns_size": end}, sort_keys=True).encode()
    first = _aligned(_PREFIX.size + len(text))
    prefix = (_PREFIX.pack(MAGIC, VERSION, len(text)) + text).ljust(first, b"\0")
    return prefix, {name: first + offset for name, offset in offsets.items()}, first + end


def write_columns(
    path: Path, header: Mapping[str, Any], columns: Mapping[str, Column], *, unfinished: Path | None = None
) -> None:
    """Writes a file whole or not at all. What it holds follows from the arguments alone, byte for byte.

    header      JSON values; its "kind" is what `map_columns` asks for
    unfinished  where the file lies, on the same disk, until it is whole; None: beside it
    """
    # Drawn: a worker that outlives a killed parent, or is given up by its cluster, does not meet the one after it.
    unfinished = unfinished or path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    prefix, offsets, size = layout(header, {name: (c.dtype, c.length) for name, c in columns.items()})
    with open(unfinished, "wb") as file:
        file.write(prefix)
        for name, column in columns.items():
            file.seek(offsets[name])
            length = 0
            for part in column.parts:
                file.write(np.ascontiguousarray(part, column.dtype).data)
                length += len(part)
            assert length == column.length, f"{name}: {length} values for {column.length} places"
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of any file of columns. Raises UserError for another file or version, or one cut short; OSError."""
    return _read_header(path)[0]


def map_columns(
    path: str | Path, kind: str, *, at_random: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and read-only columns of a file whose header has this `kind`. at_random: of which few values are read.

    Raises UserError for a file of another kind or version, or one cut short; OSError.
    """
    header, first = _read_header(path)
    if header["kind"] != kind:
        raise UserError(f"{str(path)!r} is a {header['kind']} of webssl, not a {kind}")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if at_random and hasattr(mmap, "MADV_RANDOM"):  # else each look-up reads the neighbourhood too, and keeps it
        mapped.madvise(mmap.MADV_RANDOM)
    raw = np.frombuffer(mapped, np.uint8)
    columns = {}
    for name, (dtype, length, offset) in header["columns"].items():
        begin = first + offset
        columns[name] = raw[begin : begin + np.dtype(dtype).itemsize * length].view(dtype)
    return header, columns


def _read_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """The header, and where the columns begin."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or prefix[: len(MAGIC)] != MAGIC:
            raise UserError(f"{str(path)!r} is no index or subset of webssl: it starts with {prefix[:8]!r}")
        _, version, header_length = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise UserError(f"{str(path)!r} has version {version} of its format, this is {VERSION}: make it again")
        text = file.read(header_length)
    first = _aligned(_PREFIX.size + header_length)
    try:
        header = json.loads(text)
        expected = first + header["columns_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is truncated or damaged: its header cannot be read. Make it again.") from error
    if size != expected:
        raise UserError(f"{str(path)!r} is truncated or damaged: {size} bytes instead of {expected}. Make it again.")
    return header, first


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
