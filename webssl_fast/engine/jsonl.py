"""Files of one JSON object a line, each with the step that it belongs to; a resumed run cuts them back to its step."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class JsonLines:
    """A file to append to. Lines that a full disk refuses are kept, and written with the next: they must not end a run
    that its next checkpoint may save."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting = ""

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends `rows`; a float that is not finite is written as null, since JSON has no such number."""
        told = bool(self._waiting)
        lines = (json.dumps({k: _finite(v) for k, v in row.items()}, allow_nan=False) + "\n" for row in rows)
        self._waiting += "".join(lines)
        try:
            self._write(self._waiting.encode())
        except OSError as error:
            if not told:
                _log.error("%s cannot be written: %s; its lines are kept until it can be", self.path, error)
        else:
            self._waiting = ""

    def _write(self, data: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(data) != len(data):
                file.truncate(end)  # so that what was written of it does not stand there twice
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_back(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and a last line that a killed process left unfinished. Atomic."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _belongs(line, step)]
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _belongs(line: str, step: int) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
