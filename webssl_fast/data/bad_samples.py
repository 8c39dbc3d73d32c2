"""The list of undecodable samples, and the stop when there are too many."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Protocol

from webssl_fast.data.index import Location
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

FILE_NAME = "bad_samples.jsonl"
MAX_LISTED = 200_000  # bounds the file, and the memory of each rank, on sources of billions


class Samples(Protocol):
    """What samples come from, an index of whatever kind."""

    def locate(self, sample_id: int) -> Location: ...
    def name(self, sample_id: int) -> str: ...


class BadSampleLog:
    """Appends each bad sample once to `bad_samples.jsonl`, also over restarts and ranks that share the file.

    Lines: sample_id, name, path, offset and size (of a part of a shard; 0 and -1 for a whole file), reason.
    The first MAX_LISTED are listed, all are counted in the metrics. (Two ranks that meet the same sample in the same
    instant may both list it.)
    """

    def __init__(self, samples: Samples, output_dir: str | None):
        self._samples = samples
        self._path = None if output_dir is None else os.path.join(output_dir, FILE_NAME)
        self._listed: set[int] = set()
        self._bytes_read = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        return self._path or "(no output_dir: not listed)"

    def add(self, sample_id: int, reason: str) -> None:
        with self._lock:
            ends_in_half_a_line = self._read_new_lines()
            if sample_id in self._listed or len(self._listed) >= MAX_LISTED:
                return
            self._listed.add(sample_id)
            if len(self._listed) == MAX_LISTED:
                logger.warning("%s lists %d samples: further ones are only counted", self.path, MAX_LISTED)
            location = self._samples.locate(sample_id)
            entry = {
                "sample_id": sample_id,
                "name": self._samples.name(sample_id),
                **{key: value for key, value in location._asdict().items() if value != ""},
                "reason": reason,
            }
            if len(self._listed) == 1:
                logger.warning("sample %s cannot be used: %s. More are listed in %s", entry["name"], reason, self.path)
            if self._path is None:
                return
            line = "\n" * ends_in_half_a_line + json.dumps(entry) + "\n"
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(fd, line.encode())  # one write of a whole line: appends of several ranks do not mix
            finally:
                os.close(fd)

    def _read_new_lines(self) -> bool:
        """Takes note of what this or another process has listed; True where the file's last line has no end."""
        if self._path is None or len(self._listed) >= MAX_LISTED or not os.path.exists(self._path):
            return False
        with open(self._path, "rb") as file:
            file.seek(self._bytes_read)
            data = file.read()
        complete, _, rest = data.rpartition(b"\n")
        for line in complete.splitlines():
            try:
                self._listed.add(json.loads(line)["sample_id"])
            except (ValueError, KeyError, TypeError):
                continue  # half a line, of a process that was killed while it wrote
        self._bytes_read += len(data) - len(rest)
        return bool(rest)


class BadShareLimit:
    """Stops a run whose data are too bad. Counts what this process has consumed since it started."""

    def __init__(self, max_share: float, min_seen: int, listed_in: str):
        self._max_share, self._min_seen, self._listed_in = max_share, min_seen, listed_in
        self.num_seen = 0
        self.num_bad = 0

    def count(self, num_seen: int, num_bad: int) -> None:
        """Raises UserError where the share of bad samples exceeds the limit, once enough were seen."""
        self.num_seen += num_seen
        self.num_bad += num_bad
        share = self.num_bad / max(self.num_seen, 1)
        if self.num_seen >= self._min_seen and share > self._max_share:
            raise UserError(
                f"{self.num_bad} of {self.num_seen} samples ({share:.1%}) could not be used, more than "
                f"data.max_bad_share = {self._max_share:.1%}. They are listed with reasons in {self._listed_in}. "
                f"Repair or remove them, or raise data.max_bad_share."
            )
