"""Samples of WebDataset shards: neighbouring members of a tar with the same path up to the first dot of the file name.

The image is the member whose extension is one of IMAGE_EXTENSIONS (a plain one, "jpg", before "left.jpg"), the label is
the whole number in the member `.cls`; further members stay where they are, and are looked up in the tar when asked for.

Dimensions: S samples of a shard.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from webssl_fast.data.folder_scan import IMAGE_EXTENSIONS
from webssl_fast.data.storage import Storage

LABEL_EXTENSION = "cls"
TAR_BLOCK = 512
_MAX_BLOCKS = _MAX_SIZE = 2**32 - 1  # what the columns can hold: shards of 2 TiB, images of 4 GiB


class Problem(NamedTuple):
    """What is wrong with a shard, in words that name it. kind: damaged, compressed, duplicate, label or too_large."""

    kind: str
    message: str


@dataclass
class ShardScan:
    """Columns of equal length, [S], for the samples of one shard in its order."""

    blocks: array = field(default_factory=lambda: array("I"))  # of 512 bytes, before the image's first byte
    sizes: array = field(default_factory=lambda: array("I"))  # bytes of the image
    leads: array = field(default_factory=lambda: array("I"))  # blocks from the sample's first header to the image
    labels: array = field(default_factory=lambda: array("i"))  # -1: none
    key_hashes: array = field(default_factory=lambda: array("Q"))
    end_block: int = 0  # where the last whole member ends
    num_without_image: int = 0
    problems: list[Problem] = field(default_factory=list)


class Member(NamedTuple):
    key: str
    extension: str
    header_offset: int
    offset: int
    size: int


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=8).digest(), "little")


def scan_shard(path: str, storage: Storage) -> ShardScan:
    """Reads the headers of a tar once. What is damaged ends the shard there, and stands in `problems`.

    Raises OSError where the shard cannot be read at all: missing, no permission, a connection that fails for good.
    """
    scan = ShardScan()
    seen: set[int] = set()
    with storage.open(path) as file:
        for key, group in itertools.groupby(_members(path, file, scan), key=lambda member: member.key):
            members: dict[str, Member] = {}
            for member in group:
                if member.extension in members:
                    scan.problems.append(_duplicate(path, f"{key}.{member.extension}", "members"))
                members.setdefault(member.extension, member)
            _add_sample(path, file, scan, key, members, seen)
    return scan


def _duplicate(path: str, name: str, what: str) -> Problem:
    return Problem("duplicate", f"shard {path!r} has two {what} {name!r}")


def _add_sample(
    path: str, file: BinaryIO, scan: ShardScan, key: str, members: dict[str, Member], seen: set[int]
) -> None:
    images = [e for e in members if e.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not images:
        scan.num_without_image += 1
        return
    image = members[min(images, key=lambda extension: "." in extension)]
    if image.size > _MAX_SIZE or image.offset // TAR_BLOCK > _MAX_BLOCKS:
        reason = f"{image.size} bytes at {image.offset}; images may have 4 GiB, and start within 2 TiB of a shard"
        scan.problems.append(Problem("too_large", f"shard {path!r}: image {key!r} has {reason}"))
        return
    hashed = key_hash(key)
    if hashed in seen:
        scan.problems.append(_duplicate(path, key, "samples"))
    seen.add(hashed)
    first = min(member.header_offset for member in members.values())
    scan.blocks.append(image.offset // TAR_BLOCK)
    scan.sizes.append(image.size)
    scan.leads.append((image.offset - first) // TAR_BLOCK)
    scan.labels.append(_label(path, file, scan, key, members.get(LABEL_EXTENSION)))
    scan.key_hashes.append(hashed)


def _label(path: str, file: BinaryIO, scan: ShardScan, key: str, member: Member | None) -> int:
    if member is None:
        return -1
    file.seek(member.offset)
    text = file.read(min(member.size, 64)).decode("ascii", "replace")
    try:
        label = int(text)
        if not -1 <= label < 2**31:
            raise ValueError
    except ValueError:
        wanted = f"member {key}.{LABEL_EXTENSION} must be a whole number, got {text!r}"
        scan.problems.append(Problem("label", f"shard {path!r}: {wanted}"))
        return -1
    return label


def _members(path: str, file: BinaryIO, scan: ShardScan) -> Iterator[Member]:
    """Every whole regular member; puts where the last one ends, and what is wrong after it, into `scan`."""
    if file.read(2) == b"\x1f\x8b":
        reason = "is compressed: members cannot be read at random. Decompress it (gunzip)."
        scan.problems.append(Problem("compressed", f"shard {path!r} {reason}"))
        return
    size = file.seek(0, os.SEEK_END)
    end, reason = 0, ""
    try:
        for member, tar_end in _tar_members(file, 0, size):
            if tar_end > size:
                break
            end = tar_end
            scan.end_block = end // TAR_BLOCK
            if member is not None:
                yield member
    except OSError:
        raise
    except Exception as error:  # tarfile meets garbage with ValueError, OverflowError, struct.error and others
        reason = f" ({error})"
    # tarfile takes a damaged or half header for the end; a whole archive ends with a block of zeros.
    file.seek(end)
    if reason or file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        scan.problems.append(
            Problem(
                "damaged",
                f"shard {path!r} is truncated or damaged: after byte {end} there is neither a whole member nor the end "
                f"mark of an archive{reason}. Copy the shard again, or leave it out of the pattern.",
            )
        )


def members_between(file: BinaryIO, begin: int, end: int) -> Iterator[Member]:
    """The members whose headers lie in these bytes of a shard. Raises tarfile.ReadError."""
    return (member for member, _ in _tar_members(file, begin, end) if member is not None)


def _tar_members(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[Member | None, int]]:
    """Every member from `begin` to `end` (None for folders, links and the like), and where the next header lies."""
    file.seek(begin)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps an object for each
            next_header: int = tar.offset  # type: ignore[attr-defined]
            if info.size < 0 or next_header <= info.offset:  # a damaged header may lead back, and round in circles
                raise tarfile.ReadError(f"the header at byte {info.offset} claims {info.size} bytes")
            if info.isreg():
                folder, _, name = info.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                yield Member(key, extension, info.offset, info.offset_data, info.size), next_header
            else:
                yield None, next_header
            if next_header >= end:
                return
