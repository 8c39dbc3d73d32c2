"""Bytes of a sample: a whole file, a part of a tar shard, or a cell of a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from webssl_fast.data.index import PARQUET_ROW, WHOLE_FILE, Location
from webssl_fast.data.storage import MAX_OPEN_FILES, Retries, Storage, is_remote
from webssl_fast.parquet_rows import RowReader

MAX_REMOTE_READS = 32
_MAX_GAP = 64 * 1024  # bytes between two samples that are read and thrown away rather than asked for apart
_MAX_SPAN = 32 * 1024 * 1024


class SampleReader:
    """Reads locations, remote ones with retries. Shards stay open, `max_open` of them; safe to share between threads,
    and, for local data, over a fork."""

    def __init__(
        self, max_open: int = MAX_OPEN_FILES, retries: Retries | None = None, remote_reads: int = MAX_REMOTE_READS
    ):
        """remote_reads: requests that `read_many` keeps under way at once, over all threads that call it."""
        self._storage = Storage(retries, max_open)
        self._rows = RowReader()
        self._remote = ThreadPoolExecutor(remote_reads, thread_name_prefix="webssl-remote")  # starts none before need

    @property
    def num_retries(self) -> int:
        return self._storage.num_retries

    def read(self, location: Location) -> bytes:
        """The bytes of a sample. Raises OSError where they cannot be read (missing, a folder, no permission, short)."""
        if location.size == WHOLE_FILE:
            with open(location.path, "rb") as file:
                return file.read()
        if location.size == PARQUET_ROW:
            return self._rows.read(location.path, location.offset, location.column)
        return self._storage.read(location.path, location.offset, location.size)

    def read_many(self, locations: Sequence[Location]) -> list[bytes | OSError]:
        """The bytes of each sample, or why there are none. Remote ones are read at the same time, neighbours in a shard
        by one request."""
        found: list[bytes | OSError | None] = [None] * len(locations)
        groups = _neighbours(locations)
        requests: dict[int, Future[list[bytes | OSError]]] = {}
        neighbours = [[locations[place] for place in group] for group in groups]
        for number, group_locations in enumerate(neighbours):
            if is_remote(group_locations[0].path):
                requests[number] = self._remote.submit(self._read_group, group_locations)
        for number, group in enumerate(groups):
            read = requests[number].result() if number in requests else self._read_group(neighbours[number])
            for place, data in zip(group, read, strict=True):
                found[place] = data
        return found  # type: ignore[return-value]  # every place is filled now

    def close(self) -> None:
        self._remote.shutdown(wait=True, cancel_futures=True)
        self._storage.close()
        self._rows.close()

    def _read_group(self, neighbours: Sequence[Location]) -> list[bytes | OSError]:
        span = self._read_span(neighbours) if len(neighbours) > 1 else None
        if span is None:
            return [self._read_or_reason(location) for location in neighbours]
        first = neighbours[0].offset
        return [span[at.offset - first : at.offset - first + at.size] for at in neighbours]

    def _read_or_reason(self, location: Location) -> bytes | OSError:
        try:
            return self.read(location)
        except OSError as error:
            return error

    def _read_span(self, neighbours: Sequence[Location]) -> bytes | None:
        """None where it fails: then each sample answers for itself, and a broken one does not take others along."""
        first, last = neighbours[0], neighbours[-1]
        try:
            return self._storage.read(first.path, first.offset, last.offset + last.size - first.offset)
        except OSError:
            return None


def _neighbours(locations: Sequence[Location]) -> list[list[int]]:
    """Places of the locations, those of neighbours in a remote shard together in the order of their bytes."""
    groups: list[list[int]] = []
    in_order = sorted(range(len(locations)), key=lambda place: (locations[place].path, locations[place].offset))
    for place in in_order:
        location = locations[place]
        if groups and location.size >= 0 and is_remote(location.path):
            first, before = locations[groups[-1][0]], locations[groups[-1][-1]]
            gap = location.offset - (before.offset + before.size)
            small = location.offset + location.size - first.offset <= _MAX_SPAN
            if before.path == location.path and 0 <= gap <= _MAX_GAP and small:
                groups[-1].append(place)
                continue
        groups.append([place])
    return groups
