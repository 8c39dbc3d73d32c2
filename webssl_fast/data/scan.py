"""Finds samples: walks image folders, reads the headers of tar shards, expands shard patterns."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif ppm pgm pbm pnm jp2 j2k avif ico tga".split()
)
LABEL_EXTENSION = "cls"
TAR_BLOCK = 512


@dataclass
class FolderScan:
    """Paths of the images below `root`, relative to it, in natural order."""

    root: str
    names: list[str]


@dataclass
class TarScan:
    """Samples of tar shards in the order of the shards. Columns of equal length, but for the members' own."""

    shards: list[str]
    keys: list[str] = field(default_factory=list)
    shard_ids: array = field(default_factory=lambda: array("i"))
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    labels: array = field(default_factory=lambda: array("i"))
    member_starts: array = field(default_factory=lambda: array("q", [0]))
    member_extensions: list[str] = field(default_factory=list)
    member_offsets: array = field(default_factory=lambda: array("q"))
    member_sizes: array = field(default_factory=lambda: array("q"))


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
    """Files of "train-{000..127}.tar", "{a,b}/*.tar" and the like, in natural order.

    Raises UserError where the pattern, or a member of its braces, matches nothing.
    """
    paths: list[str] = []
    missing: list[str] = []
    alternatives = list(_expand_braces(pattern))
    for one in alternatives:
        if glob.has_magic(one):
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


def scan_tars(paths: list[str]) -> TarScan:
    """Samples of WebDataset shards: neighbouring members with the same path up to the first dot of the file name.

    The image is the member whose extension is one of IMAGE_EXTENSIONS (a plain one, "jpg", before "left.jpg"), the
    label is the whole number in the member `.cls` (-1 without one); the rest is remembered by extension.
    Raises UserError for a shard that is truncated, damaged, compressed or cannot be opened, for a bad label, and
    for shards without any image.
    """
    scan = TarScan(paths)
    without_image = 0
    for shard_id, path in enumerate(paths):
        with _opened(path) as file:
            for key, members in itertools.groupby(_tar_members(path, file), key=lambda member: member[0]):
                without_image += not _add_sample(scan, shard_id, file, key, {m[1]: m[2:] for m in members})
    if without_image:
        logger.warning(
            "%d samples of %s (%d shards) hold no image and are left out", without_image, paths[0], len(paths)
        )
    if not scan.keys:
        raise UserError(
            f"no images in {len(paths)} shards (the first is {paths[0]!r}): looked for members that end in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    return scan


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"shard {path!r} cannot be opened: {error.strerror}") from error


def _add_sample(scan: TarScan, shard_id: int, file: BinaryIO, key: str, members: dict[str, tuple[int, int]]) -> bool:
    images = [e for e in members if e.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not images:
        return False
    image = min(images, key=lambda extension: "." in extension)
    offset, size = members.pop(image)
    label = -1
    if LABEL_EXTENSION in members:
        text = os.pread(file.fileno(), members[LABEL_EXTENSION][1], members[LABEL_EXTENSION][0]).decode(
            "ascii", "replace"
        )
        try:
            label = int(text)
        except ValueError:
            raise UserError(
                f"shard {scan.shards[shard_id]!r}: member {key}.{LABEL_EXTENSION} must be a whole number, got {text!r}"
            ) from None
    scan.keys.append(key)
    scan.shard_ids.append(shard_id)
    scan.offsets.append(offset)
    scan.sizes.append(size)
    scan.labels.append(label)
    for extension, (member_offset, member_size) in members.items():
        scan.member_extensions.append(extension)
        scan.member_offsets.append(member_offset)
        scan.member_sizes.append(member_size)
    scan.member_starts.append(len(scan.member_extensions))
    return True


def _tar_members(path: str, file: BinaryIO) -> Iterator[tuple[str, str, int, int]]:
    """(key, extension, offset, size) of every regular member."""
    if file.read(2) == b"\x1f\x8b":
        raise UserError(f"shard {path!r} is compressed: members cannot be read at random. Decompress it (gunzip).")
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps an object for each
                end = tar.offset
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                yield (f"{folder}/{stem}" if folder else stem), extension, member.offset_data, member.size
    except tarfile.ReadError as error:
        raise UserError(f"shard {path!r} is truncated or damaged after byte {end}: {error}") from error
    # tarfile takes a damaged or half header for the end; a whole archive ends with a block of zeros.
    if os.pread(file.fileno(), TAR_BLOCK, end) != bytes(TAR_BLOCK):
        raise UserError(
            f"shard {path!r} is truncated or damaged: after byte {end} there is neither a member nor the end mark of "
            f"an archive. Copy the shard again, or leave it out of the pattern."
        )
