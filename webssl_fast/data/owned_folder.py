"""A folder that one process at a time writes, for one purpose that is noted in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from webssl_fast.errors import UserError


@contextmanager
def owned(folder: Path, otherwise: str) -> Iterator[None]:
    """Makes the folder, and keeps other processes of this machine from it until the end of the block, or of this
    process. Raises UserError where another has it; `otherwise` names the setting that gives another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {str(folder)!r}: wait for it, or give another {otherwise}"
            ) from None
        yield
    finally:
        os.close(fd)


def noted(path: Path, text: str) -> str:
    """What was noted in a file when it was first asked for; it is written now, whole or not at all, where it is new."""
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(text)
        os.replace(unfinished, path)
    return path.read_text()
