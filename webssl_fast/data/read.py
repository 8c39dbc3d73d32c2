"""Bytes of a sample: a whole file, a part of a tar shard, or a cell of a Parquet file."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from webssl_fast.data.index import PARQUET_ROW, WHOLE_FILE, Location
from webssl_fast.data.parquet import RowReader

MAX_OPEN_SHARDS = 256


class SampleReader:
    """Reads locations. Shards stay open, `max_open` of them; safe to share between threads, and over a fork.

    (`pread` has no file position that threads or processes could move under each other.)
    """

    def __init__(self, max_open: int = MAX_OPEN_SHARDS):
        self._max_open = max_open
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._rows = RowReader()

    def read(self, location: Location) -> bytes:
        """The bytes of a sample. Raises OSError where they cannot be read (missing, a folder, no permission, short)."""
        if location.size == WHOLE_FILE:
            with open(location.path, "rb") as file:
                return file.read()
        if location.size == PARQUET_ROW:
            return self._rows.read(location.path, location.offset, location.column)
        data = self._shard(location.path).read(location.size, location.offset)
        if len(data) != location.size:
            raise OSError(f"{location.path!r} ends early: {len(data)} of {location.size} bytes at {location.offset}")
        return data

    def close(self) -> None:
        with self._lock:
            self._open.clear()
        self._rows.close()

    def _shard(self, path: str) -> _Shard:
        with self._lock:
            shard = self._open.pop(path, None) or _Shard(path)
            self._open[path] = shard  # the end of the order: the last to be dropped
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return shard


class _Shard:
    """An open file that is closed when its last reader lets go of it."""

    def __init__(self, path: str):
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int, offset: int) -> bytes:
        parts = []
        while size > 0 and (part := os.pread(self._fd, size, offset)):
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)
