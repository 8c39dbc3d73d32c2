"""Checksums of the files of a checkpoint: safetensors has none, so a flipped bit would load without a word."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 24


def digest(path: Path) -> str:
    """sha256 of a file, which processors of the last years compute at the speed of a good disk."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def write_manifest(folder: Path, digests: Mapping[str, str]) -> None:
    """`digests`: by file name. The manifest is the last file of a checkpoint to be written."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in sorted(digests)}
    write_durably(folder / MANIFEST, json.dumps({"files": files, "sha256": _self_digest(files)}, indent=1))


def read_manifest(folder: Path) -> dict[str, dict]:
    """The manifest's files. Raises ValueError, naming the manifest, if it was damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content["files"]
        intact = content["sha256"] == _self_digest(files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not intact:
        raise ValueError(f"{path} is damaged: it does not match its own checksum")
    return files


def damaged_files(folder: Path, files: Mapping[str, dict], names: Iterable[str]) -> list[str]:
    """What is wrong with those of the manifest's `files` that `names` lists, one sentence each; empty: nothing."""
    faults = []
    for name in names:
        path = folder / name
        if not path.exists():
            faults.append(f"{path} is missing")
        elif path.stat().st_size != files[name]["bytes"]:
            faults.append(f"{path} has {path.stat().st_size} bytes, it was written with {files[name]['bytes']}")
        elif digest(path) != files[name]["sha256"]:
            faults.append(f"{path} is damaged: its bytes do not match the checksum they were written with")
    return faults


def write_durably(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _self_digest(files: Mapping[str, dict]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
