"""Writes an index that is opened by mapping it: `webssl data index`.

One pass over the shards, in parallel. What a shard holds becomes a part beside the index, written whole or not at all;
a run that was killed goes on with the parts that are missing, and in the end the parts are joined. The result follows
from the shards alone, however often the run was interrupted.

A sample takes 12 bytes in a shard (16 where samples have labels), 4 in a Parquet file; a loose file takes 16 and its
path.

Dimensions: S samples, F files (or shards).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.column_file import Column, map_columns, write_columns
from webssl_fast.data.duplicates import write_duplicates
from webssl_fast.data.executors import ONE_PROCESS
from webssl_fast.data.index import Index, Kind, StringTable, no_images_in, numbered_classes, source_files
from webssl_fast.data.index_parts import Part, make_parts
from webssl_fast.data.owned_folder import noted, owned
from webssl_fast.data.storage import Retries, is_remote
from webssl_fast.data.tar_scan import Problem
from webssl_fast.errors import UserError

MAX_FILE_SIZE = 2**32 - 1  # that the column of a folder's sizes can tell


@dataclass(frozen=True)
class IndexReport:
    """What became of a source. num_without_image: samples of this run's pass that were left out."""

    path: Path
    num_samples: int
    num_files: int
    problems: Sequence[Problem]
    num_without_image: int = 0
    duplicates_path: Path | None = None
    num_duplicates: int = 0  # keys that several samples have, over all shards

    def describe(self) -> str:
        kinds = Counter(problem.kind for problem in self.problems)
        found = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "none"
        lines = [
            f"{self.path}: {self.num_samples:,} samples in {self.num_files:,} files",
            f"problems: {found}" + "".join(f"\n  {problem.message}" for problem in self.problems[:10]),
        ]
        if len(self.problems) > 10:
            lines.append(f"  ... `webssl data inspect {self.path}` shows them all")
        if self.num_without_image:
            lines.append(f"left out: {self.num_without_image:,} samples without an image")
        if self.duplicates_path is not None:
            lines.append(f"keys of several samples: {self.num_duplicates:,}, listed in {self.duplicates_path}")
        return "\n".join(lines)


class _Contents(NamedTuple):
    header: dict[str, Any]
    columns: dict[str, Column]


def build_index(
    source: str,
    output: Path,
    *,
    executor: ExecutorConfig = ONE_PROCESS,
    find_duplicates: bool = False,
    skip_unreadable: bool = False,
    retries: Retries | None = None,
    output_setting: str = "-o",
) -> IndexReport:
    """Indexes a data source into a file. The same call again goes on where a killed one was.

    find_duplicates  also lists keys that several samples have, of whatever shards, in OUTPUT.duplicates.jsonl
    output_setting   what gives another `output`, for the errors
    skip_unreadable  leaves out shards that cannot be read at all; otherwise they are an error, and the next call tries
                     them again
    Damaged shards give the samples before the damage; that, and keys twice in a shard, stand in the index as problems.
    Raises UserError: nothing there, shards unreadable, `output` holds something else.
    """
    kind, files = source_files(source)
    files = [path if is_remote(path) else os.path.abspath(path) for path in files]
    listing = hashlib.sha256(json.dumps([kind, files]).encode()).hexdigest()
    parts_dir = output.with_name(output.name + ".parts")
    if find_duplicates and kind != "tar":
        raise UserError(f"--find-duplicates looks at the keys of shards; {source!r} has none (it is a {kind})")
    duplicates_path = output.with_name(output.name + ".duplicates.jsonl") if find_duplicates else None
    if output.exists() and not parts_dir.exists():
        return _report_of_finished(output, source, listing, duplicates_path, output_setting)
    with _owned(parts_dir, listing, source, output_setting):
        num_without_image = 0
        if kind == "folder":
            contents = _folder_contents(source, listing, files[0])
        else:
            parts = make_parts(kind, files, parts_dir, executor, skip_unreadable, retries)
            num_without_image = sum(part.num_without_image for part in parts)
            contents = _joined_contents(kind, source, listing, files, parts)
        write_columns(output, contents.header, contents.columns, unfinished=parts_dir / "index.unfinished")
        index = Index.open(str(output))
        num_duplicates = 0
        if duplicates_path is not None:
            hashes = (part.column("key_hashes") for part in parts)  # one part at a time: maps are limited in number
            num_duplicates = write_duplicates(index, hashes, duplicates_path, parts_dir)
        shutil.rmtree(parts_dir)
    return IndexReport(
        output, len(index), len(index.files), index.problems, num_without_image, duplicates_path, num_duplicates
    )


def _report_of_finished(
    output: Path, source: str, listing: str, duplicates_path: Path | None, output_setting: str
) -> IndexReport:
    header, _ = map_columns(output, "index")
    if header["listing"] != listing:
        raise UserError(
            f"{str(output)!r} is an index of {header['source']!r} with other files than {source!r} has now: remove it "
            f"to write it anew, or give another {output_setting}"
        )
    if duplicates_path is not None and not duplicates_path.exists():
        raise UserError(
            f"{str(output)!r} is complete, and was made without --find-duplicates: remove it to index again"
        )
    num_duplicates = len(duplicates_path.read_bytes().splitlines()) if duplicates_path else 0
    index = Index.open(str(output))
    return IndexReport(output, len(index), len(index.files), index.problems, 0, duplicates_path, num_duplicates)


@contextmanager
def _owned(parts_dir: Path, listing: str, source: str, output_setting: str) -> Iterator[None]:
    """The folder of the parts, for this process and this source alone."""
    with owned(parts_dir, output_setting):
        if noted(parts_dir / "listing", listing) != listing:
            raise UserError(
                f"{str(parts_dir)!r} holds an unfinished index of other files than {source!r} has now: remove that "
                f"folder to begin anew, or give another {output_setting}"
            )
        yield


def _header(kind: Kind, source: str, listing: str, num_samples: int, identity: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "index",
        "source_kind": kind,
        "source": source,
        "listing": listing,
        "root": "",
        "num_samples": num_samples,
        "identity": identity,
        "class_names": [],
        "image_column": "",
        "text_column": None,
        **changes,
    }


def _table(table: StringTable) -> dict[str, Column]:
    return {"files": Column.of(table.data), "file_name_starts": Column.of(table.starts)}


def _problem_lines(problems: Sequence[Problem]) -> Column:
    text = "".join(json.dumps(problem) + "\n" for problem in problems)
    return Column.of(np.frombuffer(text.encode(), np.uint8))


def _folder_contents(source: str, listing: str, root: str) -> _Contents:
    index = Index.open(root)
    digest = hashlib.sha256()
    sizes = np.zeros(len(index), np.uint32)
    problems = []
    for i in range(len(index)):
        name = index.files[i]
        try:
            status = os.stat(os.path.join(root, name))
        except OSError as error:
            problems.append(Problem("unreadable", f"file {name!r} cannot be read: {error.strerror}"))
            continue
        sizes[i] = min(status.st_size, MAX_FILE_SIZE)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    header = _header(
        "folder", source, listing, len(index), digest.hexdigest(), root=root, class_names=index.class_names
    )
    columns = {
        **_table(index.files),
        "sizes": Column.of(sizes),
        "labels": Column.of(index.labels),
        "problems": _problem_lines(problems),
    }
    return _Contents(header, columns)


def _joined_contents(kind: Kind, source: str, listing: str, files: list[str], parts: Sequence[Part]) -> _Contents:
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([part.num_samples for part in parts], out=starts[1:])
    num_samples = int(starts[-1])
    if not num_samples:
        raise UserError(no_images_in(files) + "".join(f"\n{p.message}" for part in parts for p in part.problems))
    digest = hashlib.sha256()
    for path, part in zip(files, parts, strict=True):
        digest.update(f"{os.path.basename(path)}\0{part.digest}\n".encode(errors="surrogateescape"))
    highest_label = max(part.highest_label for part in parts)

    def joined(name: str, dtype: str) -> Column:
        return Column(dtype, num_samples, (part.column(name) for part in parts))

    columns = {
        **_table(StringTable.from_list(files)),
        "file_starts": Column.of(starts),
        "problems": _problem_lines([problem for part in parts for problem in part.problems]),
    }
    if highest_label >= 0:
        columns["labels"] = joined("labels", "<i4")
    if kind == "tar":
        columns |= {name: joined(name, "<u4") for name in ("blocks", "sizes", "leads")}
        columns["end_blocks"] = Column.of(np.array([part.end_block for part in parts], np.uint32))
    schema = next(part.schema for part in parts if part.num_samples)
    changes = {**schema, "class_names": schema["class_names"] or numbered_classes(highest_label)}
    return _Contents(_header(kind, source, listing, num_samples, digest.hexdigest(), **changes), columns)
