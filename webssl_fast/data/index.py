"""One index over image folders, tar shards and Parquet files: where each sample lies, its name and its label, as flat
arrays.

Dimensions: S samples, F files (or shards), E further members of samples in shards, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from webssl_fast.data.parquet import ParquetScan, scan_parquet
from webssl_fast.data.scan import FolderScan, TarScan, expand_pattern, scan_folder, scan_tars
from webssl_fast.errors import UserError

WHOLE_FILE = -1
PARQUET_ROW = -2
CAPTION = "txt"  # the member that holds a sample's text


class Location(NamedTuple):
    """Bytes of a sample: `size` of them from `offset` on, the whole file where size is WHOLE_FILE, or, where it is
    PARQUET_ROW, the cell of `column` in row `offset`."""

    path: str
    offset: int
    size: int
    column: str = ""


class StringTable:
    """Immutable list of strings in two arrays: their bytes one after another, and where each starts."""

    def __init__(self, data: np.ndarray, starts: np.ndarray):
        self.data, self.starts = data, starts

    @classmethod
    def from_list(cls, strings: Sequence[str]) -> StringTable:
        encoded = [os.fsencode(s) for s in strings]
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=starts[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"entry {i} of {len(self)}")
        return os.fsdecode(self.data[self.starts[i] : self.starts[i + 1]].tobytes())


@dataclass(frozen=True)
class Members:
    """Further members of the samples in shards (captions, masks): sample s has entries starts[s] to starts[s + 1]."""

    starts: np.ndarray  # int64 [S + 1]
    extension_ids: np.ndarray  # int32 [E]
    offsets: np.ndarray  # int64 [E]
    sizes: np.ndarray  # int64 [E]
    extensions: list[str]


@dataclass(frozen=True)
class Index:
    """All samples of a data source, by id 0 .. len - 1.

    In a folder each sample is a file, so `file_ids`, `offsets` and `sizes` are None and names are the files' paths. In
    Parquet files `offsets` are rows, and samples have no names but their places.
    """

    source: str
    root: str  # what `files` are relative to
    files: StringTable  # [F]
    names: StringTable | None  # [S]
    labels: np.ndarray  # int32 [S], -1: none
    class_names: list[str]  # [C]
    file_ids: np.ndarray | None = None  # int32 [S]
    offsets: np.ndarray | None = None  # int64 [S]
    sizes: np.ndarray | None = None  # int64 [S]
    members: Members | None = None
    image_column: str = ""  # of Parquet files
    text_column: str | None = None

    @classmethod
    def open(cls, source: str, class_names: Sequence[str] | None = None) -> Index:
        """Index of a folder, of one `.tar` or `.parquet`, or of a pattern of them with braces and globs.

        A folder's classes are its first-level folders (below what all paths have in common), where there are two or
        more; a shard's labels are the numbers in `.cls`; Parquet files have a column of them. With `class_names` (those
        of a training set), labels count in that list and an unknown class is an error.
        Raises UserError where nothing is there, or what is there cannot be used.
        """
        if not source:
            raise UserError(
                "data source is empty: give a folder of images, a .tar or .parquet, or a pattern of them such as "
                "'x-{000..127}.tar'"
            )
        path = os.path.expanduser(source)
        if os.path.isdir(path):
            return _from_folder(source, scan_folder(path), class_names)
        if not path.endswith((".tar", ".parquet")):
            problem = "is neither" if os.path.exists(path) else f"does not exist (working folder {os.getcwd()!r})"
            raise UserError(
                f"data source {source!r} {problem}; it must be a folder, or a file or pattern that ends in .tar or "
                f".parquet"
            )
        files = [path] if os.path.isfile(path) else expand_pattern(path)
        if path.endswith(".parquet"):
            return _from_parquet(source, scan_parquet(files), class_names)
        return _from_tars(source, scan_tars(files), class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def locate(self, sample_id: int) -> Location:
        """Where the bytes of a sample's image lie."""
        file_id = sample_id if self.file_ids is None else int(self.file_ids[sample_id])
        path = os.path.join(self.root, self.files[file_id])
        if self.offsets is None or self.sizes is None:
            return Location(path, 0, WHOLE_FILE)
        return Location(path, int(self.offsets[sample_id]), int(self.sizes[sample_id]), self.image_column)

    def locate_member(self, sample_id: int, extension: str) -> Location | None:
        """Where another member of a sample lies ("json" of a shard, "txt" for its caption); None where there is none.

        In a folder it is the file of the same name with that extension; in Parquet files the caption alone is one.
        """
        image = self.locate(sample_id)
        if image.size == WHOLE_FILE:
            path = f"{os.path.splitext(image.path)[0]}.{extension}"
            return Location(path, 0, WHOLE_FILE) if os.path.isfile(path) else None
        if image.size == PARQUET_ROW:
            return image._replace(column=self.text_column) if self.text_column and extension == CAPTION else None
        if self.members is None or extension not in self.members.extensions:
            return None
        wanted = self.members.extensions.index(extension)
        for entry in range(int(self.members.starts[sample_id]), int(self.members.starts[sample_id + 1])):
            if self.members.extension_ids[entry] == wanted:
                return Location(image.path, int(self.members.offsets[entry]), int(self.members.sizes[entry]))
        return None

    def label(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 labels of samples; -1 where a sample has none."""
        return self.labels[sample_ids].astype(np.int64)

    def name(self, sample_id: int) -> str:
        """A sample's name for messages: path below the root, key in its shard, or row of its Parquet file."""
        if self.names is None:
            location = self.locate(sample_id)
            return f"{os.path.basename(location.path)}, row {location.offset}"
        return self.names[sample_id]


def _from_folder(source: str, scan: FolderScan, class_names: Sequence[str] | None) -> Index:
    folders = [name.split(os.sep)[:-1] for name in scan.names]
    common = os.path.commonprefix(folders)
    depth = next((d for d, folder in enumerate(common) if folder in (class_names or ())), len(common))
    classes = [folder[depth] if len(folder) > depth else "" for folder in folders]
    found = [name for name in dict.fromkeys(classes) if name]
    if class_names is None:
        class_names = found if len(found) >= 2 else []
    elif unknown := sorted(set(found) - set(class_names)):
        raise UserError(
            f"data source {source!r} has the class {unknown[0]!r}, which is none of the {len(class_names)} expected "
            f"({', '.join(list(class_names)[:10])}, ...): both folders need the same class names"
        )
    id_of = {name: i for i, name in enumerate(class_names)}
    labels = np.fromiter((id_of.get(name, -1) for name in classes), np.int32, len(classes))
    names = StringTable.from_list(scan.names)
    return Index(source, scan.root, names, names, labels, list(class_names))


def _from_tars(source: str, scan: TarScan, class_names: Sequence[str] | None) -> Index:
    labels = np.frombuffer(scan.labels, np.int32)
    highest = int(labels.max())
    if class_names is None:
        class_names = [str(i) for i in range(highest + 1)]
    elif highest >= len(class_names):
        raise UserError(f"data source {source!r} has the label {highest}, but there are {len(class_names)} classes")
    extensions = sorted(set(scan.member_extensions))
    id_of = {extension: i for i, extension in enumerate(extensions)}
    members = Members(
        np.frombuffer(scan.member_starts, np.int64),
        np.fromiter((id_of[e] for e in scan.member_extensions), np.int32, len(scan.member_extensions)),
        np.frombuffer(scan.member_offsets, np.int64),
        np.frombuffer(scan.member_sizes, np.int64),
        extensions,
    )
    return Index(
        source,
        "",
        StringTable.from_list(scan.shards),
        StringTable.from_list(scan.keys),
        labels,
        list(class_names),
        np.frombuffer(scan.shard_ids, np.int32),
        np.frombuffer(scan.offsets, np.int64),
        np.frombuffer(scan.sizes, np.int64),
        members,
    )


def _from_parquet(source: str, scan: ParquetScan, class_names: Sequence[str] | None) -> Index:
    labels = np.frombuffer(scan.labels, np.int32)
    if class_names is None:
        class_names = scan.class_names or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    elif int(labels.max(initial=-1)) >= len(class_names):
        raise UserError(
            f"data source {source!r} has the label {labels.max()}, but there are {len(class_names)} classes"
        )
    return Index(
        source,
        "",
        StringTable.from_list(scan.files),
        None,
        labels,
        list(class_names),
        np.frombuffer(scan.file_ids, np.int32),
        np.frombuffer(scan.rows, np.int64),
        np.broadcast_to(np.int64(PARQUET_ROW), len(labels)),
        image_column=scan.image_column,
        text_column=scan.text_column,
    )
