"""The parts of an index that is being written: one file a shard, written by whoever does the work (executors.py)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.column_file import Column, map_columns, write_columns
from webssl_fast.data.executors import run_tasks
from webssl_fast.data.index import Kind
from webssl_fast.data.parquet import scan_parquet
from webssl_fast.data.storage import Retries, Storage
from webssl_fast.data.tar_scan import Problem, scan_shard
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

TAR_COLUMNS = {"blocks": "<u4", "sizes": "<u4", "leads": "<u4", "labels": "<i4", "key_hashes": "<u8"}


@dataclass(frozen=True)
class Part:
    """What one shard holds. Its columns are mapped when asked for: many parts cost no memory and no open files."""

    path: Path
    num_samples: int
    num_without_image: int
    end_block: int
    highest_label: int
    problems: list[Problem]
    digest: str
    schema: dict[str, Any]  # image_column, text_column, class_names

    @classmethod
    def open(cls, path: Path) -> Part:
        header, _ = map_columns(path, "part of an index")
        return cls(
            path,
            num_samples=header["num_samples"],
            num_without_image=header["num_without_image"],
            end_block=header["end_block"],
            highest_label=header["highest_label"],
            problems=[Problem(*problem) for problem in header["problems"]],
            digest=header["digest"],
            schema=header["schema"],
        )

    def column(self, name: str) -> np.ndarray:
        return map_columns(self.path, "part of an index")[1][name]


def make_parts(
    kind: Kind,
    files: Sequence[str],
    folder: Path,
    executor: ExecutorConfig,
    skip_unreadable: bool,
    retries: Retries | None,
) -> list[Part]:
    """The part of each file; those that are in the folder already are taken as they are.

    Raises UserError naming the files that cannot be read, once all others are done.
    """
    paths = [folder.absolute() / f"{number:08d}.part" for number in range(len(files))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if len(missing) < len(files):
        logger.info("%d of %d files are indexed already", len(files) - len(missing), len(files))
    make_work = partial(partial, _write_part, kind, retries)
    failed: dict[int, str] = {}
    progress = tqdm(total=len(files), initial=len(files) - len(missing), desc="indexing", unit="file", disable=None)
    with progress:
        tasks = [(number, files[number], paths[number]) for number in missing]
        for number, reason in run_tasks(make_work, tasks, executor, folder):
            progress.update()
            if reason:
                failed[number] = reason
    for number, reason in failed.items():
        if skip_unreadable:
            problem = Problem("unreadable", f"{files[number]!r} is left out: {reason}")
            _write(paths[number], {}, [problem], {name: np.zeros(0, dtype) for name, dtype in TAR_COLUMNS.items()})
    if failed and not skip_unreadable:
        examples = "".join(f"\n  {files[number]!r}: {reason}" for number, reason in sorted(failed.items())[:5])
        raise UserError(
            f"{len(failed)} of {len(files)} files cannot be read:{examples}\nThe others are done and kept: the same "
            "command tries these again, and --skip-unreadable leaves them out"
        )
    parts = [Part.open(path) for path in paths]
    _check_one_schema(parts, files)
    return parts


def _check_one_schema(parts: Sequence[Part], files: Sequence[str]) -> None:
    with_samples = [number for number, part in enumerate(parts) if part.num_samples]
    for number in with_samples:
        if parts[number].schema != parts[with_samples[0]].schema:
            raise UserError(
                f"{files[number]!r} has other columns or classes than {files[with_samples[0]]!r}: "
                f"{parts[number].schema}, not {parts[with_samples[0]].schema}"
            )


def _write_part(kind: Kind, retries: Retries | None, task: tuple[int, str, Path]) -> tuple[int, str]:
    number, source, path = task
    try:
        if kind == "tar":
            scan = scan_shard(source, Storage(retries))
            columns = {name: np.frombuffer(getattr(scan, name), dtype) for name, dtype in TAR_COLUMNS.items()}
            facts = {"end_block": scan.end_block, "num_without_image": scan.num_without_image}
            _write(path, facts, scan.problems, columns)
        else:
            rows = scan_parquet([source], Storage(retries))
            schema = {name: getattr(rows, name) for name in ("image_column", "text_column", "class_names")}
            _write(path, {"schema": schema}, [], {"labels": np.frombuffer(rows.labels, np.int32)})
    except (OSError, UserError) as error:
        return number, str(error)
    return number, ""


def _write(path: Path, facts: dict[str, Any], problems: Sequence[Problem], columns: dict[str, np.ndarray]) -> None:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(columns[name].tobytes())
    header = {
        "kind": "part of an index",
        "num_samples": len(columns["labels"]),
        "num_without_image": 0,
        "end_block": 0,
        "highest_label": int(columns["labels"].max(initial=-1)),
        "problems": [list(problem) for problem in problems],
        "digest": digest.hexdigest(),
        "schema": {"image_column": "", "text_column": None, "class_names": None},
        **facts,
    }
    write_columns(path, header, {name: Column.of(values) for name, values in columns.items()})
