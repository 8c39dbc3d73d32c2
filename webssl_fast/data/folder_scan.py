"""Finds files: walks image folders, expands patterns of shards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from webssl_fast.data.storage import is_remote, remote_filesystem
from webssl_fast.errors import UserError

IMAGE_EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif ppm pgm pbm pnm jp2 j2k avif ico tga".split()
)


@dataclass
class FolderScan:
    """Paths of the images below `root`, relative to it, in natural order."""

    root: str
    names: list[str]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts img2 before img10; equal readings (img01, img1) fall back on the text itself."""
    parts: list[str | int] = [int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", name))]
    return parts, name


def scan_folder(root: str) -> FolderScan:
    """Every file below `root` (links followed, hidden names skipped) that ends like an image.

    Raises UserError where a folder cannot be listed, or no image is found (naming the extensions looked for).
    """
    names: list[str] = []
    others = dict.fromkeys(("tar", "parquet"), 0)
    try:
        for path in _walk(root):
            extension = path.rpartition(".")[2].lower()
            if extension in IMAGE_EXTENSIONS:
                names.append(os.path.relpath(path, root))
            if extension in others:
                others[extension] += 1
    except OSError as error:
        raise UserError(f"data source {root!r}: {error.filename!r} cannot be listed: {error.strerror}") from error
    if not names:
        hint = "".join(
            f" It holds {num_files} .{extension} files: give the pattern {os.path.join(root, f'*.{extension}')!r}."
            for extension, num_files in others.items()
            if num_files
        )
        raise UserError(
            f"no images in folder {root!r} or below: looked for files that end in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}.{hint}"
        )
    names.sort(key=natural_key)
    return FolderScan(root, names)


def _walk(root: str) -> Iterator[str]:
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # links may lead in circles
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # includes macOS's ._name.jpg, which are no images
                    continue
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.is_file() or entry.is_symlink():  # a dangling link is listed, to be reported when read
                    yield entry.path


def expand_pattern(pattern: str) -> list[str]:
    """Files of "train-{000..127}.tar", "{a,b}/*.tar", "s3://bucket/x-*.tar" and the like, in natural order.

    Raises UserError where the pattern, or a member of its braces, matches nothing. (Remote files that braces name are
    not asked for one by one: the one that reads them finds out.)
    """
    paths: list[str] = []
    missing: list[str] = []
    alternatives = list(_expand_braces(pattern))
    for one in alternatives:
        if is_remote(one):
            paths.extend(_remote_files(one))
        elif glob.has_magic(one):
            paths.extend(glob.glob(one, recursive=True))
        elif os.path.isfile(one):
            paths.append(one)
        else:
            missing.append(one)
    if not paths:
        raise UserError(f"data source {pattern!r} matches no file (in {os.getcwd()!r})")
    if missing:
        raise UserError(
            f"data source {pattern!r} names {len(alternatives)} files, of which {len(missing)} do not exist, "
            f"the first being {missing[0]!r}. Fix the range of the braces, or use a glob (*) for whatever is there."
        )
    return sorted(set(paths), key=natural_key)


def _remote_files(path: str) -> list[str]:
    if not glob.has_magic(path):
        return [path]
    filesystem, name = remote_filesystem(path)
    try:
        return [filesystem.unstrip_protocol(found) for found in filesystem.glob(name)]
    except Exception as error:  # each store has exceptions of its own
        raise UserError(
            f"data source {path!r} cannot be listed: {type(error).__name__}: {error}. Name the files with braces "
            "instead, e.g. x-{000..127}.tar"
        ) from error


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    bounds = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1])
    if bounds:
        low, high, width = int(bounds[1]), int(bounds[2]), len(bounds[1])
        if low > high:
            raise UserError(f"data source {pattern!r}: the range {match[0]} runs backwards")
        choices: Iterator[str] | list[str] = (str(i).zfill(width) for i in range(low, high + 1))
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
