"""One index over image folders, tar shards and Parquet files: where each sample lies and its label, as flat arrays.

The arrays are made by a scan, or mapped from a file that `webssl data index` wrote (see indexing.py); there they cost
no memory, and an index of billions of samples opens at once. Names and further members (captions) of samples in shards
are read from the shards when asked for.

Dimensions: S samples, F files (or shards), C classes.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from webssl_fast.data.column_file import is_column_file, map_columns
from webssl_fast.data.folder_scan import FolderScan, expand_pattern, scan_folder
from webssl_fast.data.parquet import ParquetScan, scan_parquet
from webssl_fast.data.storage import Storage, is_remote
from webssl_fast.data.tar_scan import TAR_BLOCK, Member, Problem, ShardScan, members_between, scan_shard
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

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


Kind = Literal["folder", "tar", "parquet"]


def source_files(source: str) -> tuple[Kind, list[str]]:
    """What a data source is made of: the folder itself, or its shards or Parquet files in natural order.

    Raises UserError where nothing is there, or what is there cannot be used.
    """
    if not source:
        raise UserError(
            "data source is empty: give a folder of images, a .tar or .parquet, a pattern of them such as "
            "'x-{000..127}.tar', or an index that `webssl data index` wrote"
        )
    path = os.path.expanduser(source)
    if not is_remote(path) and os.path.isdir(path):
        return "folder", [path]
    if not path.endswith((".tar", ".parquet")):
        known = os.path.exists(path) or is_remote(path)
        problem = "is neither" if known else f"does not exist (working folder {os.getcwd()!r})"
        raise UserError(
            f"data source {source!r} {problem}; it must be a folder, a file or pattern that ends in .tar or .parquet, "
            f"or an index that `webssl data index` wrote"
        )
    files = [path] if os.path.isfile(path) else expand_pattern(path)
    if path.endswith(".tar"):
        return "tar", files
    return "parquet", files


@dataclass(frozen=True)
class Index:
    """All samples of a data source, by id 0 .. len - 1, in the order of its files.

    In a folder each sample is a file. In Parquet files it is a row, and has no name but its place. In shards, `blocks`
    to `end_blocks` say where it lies (see tar_scan.ShardScan).
    """

    source: str
    kind: Kind
    root: str  # what `files` are relative to
    files: StringTable  # [F]
    labels: np.ndarray  # int32 [S], -1: none
    class_names: list[str]  # [C]
    file_starts: np.ndarray | None = None  # int64 [F + 1]: the first sample of each file; None: a file is a sample
    blocks: np.ndarray | None = None  # uint32 [S]
    sizes: np.ndarray | None = None  # uint32 [S]: bytes of each image; of a folder only in a saved index
    leads: np.ndarray | None = None  # uint32 [S]
    end_blocks: np.ndarray | None = None  # uint32 [F]
    image_column: str = ""  # of Parquet files
    text_column: str | None = None
    identity: str = ""  # of a saved index: SHA-256 of what it holds
    problems: Sequence[Problem] = ()  # of a saved index: what was found wrong with the shards
    storage: Storage = field(default_factory=Storage, repr=False, compare=False)

    @classmethod
    def open(cls, source: str, class_names: Sequence[str] | None = None) -> Index:
        """Index of a folder, of one `.tar` or `.parquet`, of a pattern of them with braces and globs, or a saved index.

        A folder's classes are its first-level folders (below what all paths have in common), where there are two or
        more; a shard's labels are the numbers in `.cls`; Parquet files have a column of them. With `class_names` (those
        of a training set), labels count in that list and an unknown class is an error.
        Shards and Parquet files may be remote (s3://, https://, ...). Raises UserError where nothing is there, or what
        is there cannot be used: without a saved index, a damaged shard is an error.
        """
        path = os.path.expanduser(source)
        if source and is_column_file(path):
            return _with_classes(_from_saved(path), class_names)
        kind, files = source_files(source)
        if kind == "folder":
            return _from_folder(source, scan_folder(files[0]), class_names)
        if kind == "parquet":
            return _with_classes(_from_parquet(source, scan_parquet(files)), class_names)
        return _with_classes(_from_tars(source, files), class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def locate(self, sample_id: int) -> Location:
        """Where the bytes of a sample's image lie."""
        file_id, path = self._file(sample_id)
        if self.kind == "folder":
            return Location(path, 0, WHOLE_FILE)
        if self.kind == "parquet":
            assert self.file_starts is not None
            return Location(path, sample_id - int(self.file_starts[file_id]), PARQUET_ROW, self.image_column)
        assert self.blocks is not None and self.sizes is not None
        return Location(path, int(self.blocks[sample_id]) * TAR_BLOCK, int(self.sizes[sample_id]))

    def locate_member(self, sample_id: int, extension: str) -> Location | None:
        """Where another member of a sample lies ("json" of a shard, "txt" for its caption); None where there is none.

        In a folder it is the file of the same name with that extension; in Parquet files the caption alone is one.
        Raises OSError where the shard cannot be read.
        """
        image = self.locate(sample_id)
        if self.kind == "folder":
            path = f"{os.path.splitext(image.path)[0]}.{extension}"
            return Location(path, 0, WHOLE_FILE) if os.path.isfile(path) else None
        if self.kind == "parquet":
            return image._replace(column=self.text_column) if self.text_column and extension == CAPTION else None
        for member in self._members(sample_id):
            if member.extension == extension and member.offset != image.offset:
                return Location(image.path, member.offset, member.size)
        return None

    def label(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 labels of samples; -1 where a sample has none."""
        return self.labels[sample_ids].astype(np.int64)

    def name(self, sample_id: int) -> str:
        """A sample's name for messages: path below the root, key in its shard, or where it lies if that has no name."""
        if self.kind == "folder":
            return self.files[sample_id]
        location = self.locate(sample_id)
        if self.kind == "parquet":
            return f"{os.path.basename(location.path)}, row {location.offset}"
        try:
            return next(self._members(sample_id)).key
        except (OSError, StopIteration):
            return f"{os.path.basename(location.path)}, byte {location.offset}"

    def _file(self, sample_id: int) -> tuple[int, str]:
        if not 0 <= sample_id < len(self):
            raise IndexError(f"sample {sample_id} of {len(self)}")
        if self.file_starts is None:
            file_id = sample_id
        else:
            file_id = int(np.searchsorted(self.file_starts, sample_id, side="right")) - 1
        return file_id, os.path.join(self.root, self.files[file_id])

    def _members(self, sample_id: int) -> Iterator[Member]:
        """The members of a sample in a shard, from its headers there. Raises OSError."""
        assert self.file_starts is not None and self.end_blocks is not None
        file_id, path = self._file(sample_id)
        begin = self._first_block(sample_id) * TAR_BLOCK
        is_last = sample_id + 1 == int(self.file_starts[file_id + 1])
        end = (int(self.end_blocks[file_id]) if is_last else self._first_block(sample_id + 1)) * TAR_BLOCK
        key = None
        try:
            if is_remote(path):  # one request for all, instead of one a header
                opened: io.BufferedIOBase = io.BytesIO(self.storage.read(path, begin, end - begin))
                base = begin
            else:
                opened, base = self.storage.open(path), 0  # type: ignore[assignment]
            with opened as file:
                for member in members_between(file, begin - base, end - base):  # type: ignore[arg-type]
                    key = key or member.key
                    if member.key != key:  # a sample without an image follows
                        return
                    yield member._replace(header_offset=member.header_offset + base, offset=member.offset + base)
        except tarfile.TarError as error:
            raise OSError(f"{path!r} is not what it was when it was indexed: {error}") from error

    def _first_block(self, sample_id: int) -> int:
        assert self.blocks is not None and self.leads is not None
        return int(self.blocks[sample_id]) - int(self.leads[sample_id])


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
    return Index(source, "folder", scan.root, StringTable.from_list(scan.names), labels, list(class_names))


def _from_tars(source: str, files: list[str]) -> Index:
    storage = Storage()
    shards = [_scanned(path, storage) for path in files]
    if num_without_image := sum(shard.num_without_image for shard in shards):
        logger.warning(
            "%d samples of %s (%d shards) hold no image and are left out", num_without_image, source, len(files)
        )
    starts = np.concatenate([[0], np.cumsum([len(shard.blocks) for shard in shards])])
    if not starts[-1]:
        raise UserError(no_images_in(files))

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.frombuffer(getattr(shard, name), dtype) for shard in shards])

    labels = joined("labels", np.int32)
    return Index(
        source,
        "tar",
        "",
        StringTable.from_list(files),
        labels,
        numbered_classes(int(labels.max())),
        starts,
        joined("blocks", np.uint32),
        joined("sizes", np.uint32),
        joined("leads", np.uint32),
        np.array([shard.end_block for shard in shards], np.uint32),
        storage=storage,
    )


def _scanned(path: str, storage: Storage) -> ShardScan:
    try:
        shard = scan_shard(path, storage)
    except OSError as error:
        raise UserError(f"shard {path!r} cannot be opened: {error.strerror or error}") from error
    for problem in shard.problems:
        if problem.kind != "duplicate":
            raise UserError(problem.message)
        logger.warning("%s", problem.message)
    return shard


def no_images_in(files: Sequence[str]) -> str:
    return (
        f"no images in {len(files)} shards (the first is {files[0]!r}): looked for members that end in an image's name"
    )


def numbered_classes(highest_label: int) -> list[str]:
    return [str(i) for i in range(highest_label + 1)]


def _from_parquet(source: str, scan: ParquetScan) -> Index:
    labels = np.frombuffer(scan.labels, np.int32)
    return Index(
        source,
        "parquet",
        "",
        StringTable.from_list(scan.files),
        labels,
        scan.class_names or numbered_classes(int(labels.max(initial=-1))),
        np.concatenate([[0], np.cumsum(scan.num_rows)]),
        image_column=scan.image_column,
        text_column=scan.text_column,
    )


def _from_saved(path: str) -> Index:
    header, columns = map_columns(path, "index", at_random=True)
    labels = columns.get("labels")
    problems = [Problem(*json.loads(line)) for line in columns["problems"].tobytes().splitlines()]
    return Index(
        path,
        header["source_kind"],
        header["root"],
        StringTable(columns["files"], columns["file_name_starts"]),
        np.broadcast_to(np.int32(-1), header["num_samples"]) if labels is None else labels,
        header["class_names"],
        columns.get("file_starts"),
        blocks=columns.get("blocks"),
        sizes=columns.get("sizes"),
        leads=columns.get("leads"),
        end_blocks=columns.get("end_blocks"),
        image_column=header["image_column"],
        text_column=header["text_column"],
        identity=header["identity"],
        problems=problems,
    )


def _with_classes(index: Index, class_names: Sequence[str] | None) -> Index:
    """The index with labels that count in `class_names`: a shard's labels do already, a folder's are looked up."""
    if class_names is None or list(class_names) == index.class_names:
        return index
    if index.kind != "folder":
        if len(index.class_names) > len(class_names):
            raise UserError(
                f"data source {index.source!r} has the label {len(index.class_names) - 1}, but there are "
                f"{len(class_names)} classes"
            )
        return replace(index, class_names=list(class_names))
    scan = FolderScan(index.root, [index.files[i] for i in range(len(index))])
    return replace(index, class_names=list(class_names), labels=_from_folder(index.source, scan, class_names).labels)
