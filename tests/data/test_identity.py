"""One set of images is one identity, wherever it lies; a changed one is another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from webssl_fast.data.identity import source_identity
from webssl_fast.data.index import Index


def identity(folder: Path) -> str:
    return source_identity(Index.open(str(folder)))


def make_folder(folder: Path) -> Path:
    for label in ("a", "b"):
        for i in range(3):
            path = folder / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not read" * (i + 1))
    return folder


def test_a_copy_is_the_same(tmp_path: Path):
    first = make_folder(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second", copy_function=shutil.copy2)
    assert identity(first) == identity(tmp_path / "second")


def test_every_change_is_seen(tmp_path: Path):
    folder = make_folder(tmp_path / "images")
    found = [identity(folder)]
    (folder / "a" / "0.png").write_bytes(b"another!")  # of the same length
    os.utime(folder / "a" / "0.png", ns=(1, 1))
    found.append(identity(folder))
    (folder / "b" / "3.png").write_bytes(b"one more")
    found.append(identity(folder))
    (folder / "b" / "3.png").rename(folder / "b" / "4.png")
    found.append(identity(folder))
    assert len(set(found)) == 4
