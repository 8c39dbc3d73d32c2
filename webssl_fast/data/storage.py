"""Ranges of bytes: of local files by pread, of everything else (s3://, gs://, https://, memory://, ...) through fsspec.

A remote read that fails is tried again, later and later; what fails for good is an OSError like a local one.
"""

from __future__ import annotations

import io
import logging
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 256
REMOTE_BLOCK = 256 * 1024  # bytes asked for at once where a remote file is read from one end to the other
_MAX_DELAY_S = 30.0
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})  # of the HTTP statuses 4xx, which otherwise say "no" for good
Result = TypeVar("Result")


@dataclass(frozen=True)
class Retries:
    """attempts: in all; timeout_s: of each; the pause before attempt k + 1 is about first_delay_s * 2^(k - 1)."""

    attempts: int = 8
    timeout_s: float = 60.0
    first_delay_s: float = 0.1


def is_remote(path: str) -> bool:
    return "://" in path


def remote_filesystem(path: str) -> tuple[Any, str]:
    """fsspec's file system and its own name for the path. Raises UserError where a package is missing."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(path)
    except ImportError as error:
        raise UserError(
            f"{path!r}: {error}. Remote data need fsspec and its package for this kind of store: "
            "pip install 'webssl_fast[remote]' (https://), s3fs (s3://), gcsfs (gs://)"
        ) from error
    except ValueError as error:
        raise UserError(f"data source {path!r}: {error}") from error


class Storage:
    """Reads ranges. Local files stay open, `max_open` of them; safe to share between threads, and, for local files,
    over a fork (`pread` has no file position that threads or processes could move under each other)."""

    def __init__(self, retries: Retries | None = None, max_open: int = MAX_OPEN_FILES):
        self._retries = retries or Retries()
        self._max_open = max_open
        self._open: OrderedDict[str, _LocalFile] = OrderedDict()
        self._lock = threading.Lock()
        self.num_retries = 0  # remote reads that were tried again

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on. Raises OSError: missing, no permission, ends early, given up."""
        data = self._read_remote(path, offset, size) if is_remote(path) else self._local(path).read(size, offset)
        if len(data) != size:
            raise OSError(f"{path!r} ends early: {len(data)} of {size} bytes at {offset}")
        return data

    def size(self, path: str) -> int:
        """Bytes of a file. Raises OSError."""
        if not is_remote(path):
            return os.stat(path).st_size
        size = self._tried(path, lambda filesystem, name: _call(filesystem, "info", name, self._retries)["size"])
        if size is None:
            raise OSError(f"{path!r}: the server does not say how large the file is, so it cannot be read by ranges")
        return int(size)

    def open(self, path: str) -> BinaryIO:
        """A file to read from its beginning on, with seeks. Raises OSError, also later while it is read."""
        if not is_remote(path):
            return open(path, "rb")
        return io.BufferedReader(_RangeFile(self, path), REMOTE_BLOCK)  # type: ignore[return-value]

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _local(self, path: str) -> _LocalFile:
        with self._lock:
            file = self._open.pop(path, None) or _LocalFile(path)
            self._open[path] = file  # the end of the order: the last to be dropped
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return file

    def _read_remote(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""

        def read(filesystem: Any, name: str) -> bytes:
            return _call(filesystem, "cat_file", name, self._retries, start=offset, end=offset + size)

        data = self._tried(path, read)
        if len(data) > size:
            raise OSError(f"{path!r}: the server sends the whole file where a range of it was asked for")
        return data

    def _tried(self, path: str, read: Callable[[Any, str], Result]) -> Result:
        filesystem, name = remote_filesystem(path)
        for attempt in range(1, self._retries.attempts + 1):
            try:
                return read(filesystem, name)
            except Exception as error:  # each store has exceptions of its own
                if _is_final(error) or attempt == self._retries.attempts:
                    reason = f"{type(error).__name__}: {error}"
                    raise OSError(f"{path!r} cannot be read ({attempt} attempts): {reason}") from error
                with self._lock:
                    self.num_retries += 1
                    first = self.num_retries == 1
                if first:
                    logger.warning(
                        "a read of %s failed and is tried again (%s: %s); read_retries in the metrics counts further "
                        "ones",
                        path,
                        type(error).__name__,
                        error,
                    )
                # Spread out, so that thousands of readers do not come back at the same instant.
                delay_s = self._retries.first_delay_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                time.sleep(min(delay_s, _MAX_DELAY_S))
        raise AssertionError("the last attempt returns or raises")


def _call(filesystem: Any, method: str, name: str, retries: Retries, **options: Any) -> Any:
    if not getattr(filesystem, "async_impl", False):
        return getattr(filesystem, method)(name, **options)
    from fsspec.asyn import sync  # the one place where fsspec takes a time limit

    return sync(filesystem.loop, getattr(filesystem, f"_{method}"), name, timeout=retries.timeout_s, **options)


def _is_final(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY


class _LocalFile:
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


class _RangeFile(io.RawIOBase):
    """A remote file as Python's files are."""

    def __init__(self, storage: Storage, path: str):
        self._storage, self._path = storage, path
        self._size = storage.size(path)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        buffer[:size] = self._storage.read(self._path, self._position, size)
        self._position += size
        return size
