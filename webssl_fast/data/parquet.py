"""Rows of Parquet files as samples, in the layout of Hugging Face image data sets (pyarrow reads them).

An image column holds structs {bytes, path} or plain bytes; a label column holds integers whose names, where there are
any, stand in the files' "huggingface" metadata; a text column holds strings or lists of strings, of which the first
counts. A row is read with its whole row group, so neighbouring samples cost little and random order costs much.

Dimensions: S samples.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from webssl_fast.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
TEXT_COLUMNS = ("text", "caption", "txt")
MAX_OPEN_ROW_GROUPS = 4


@dataclass
class ParquetScan:
    """Samples of Parquet files in the order of the files."""

    files: list[str]
    image_column: str
    text_column: str | None
    class_names: list[str] | None  # None: the labels have no names
    num_rows: list[int] = field(default_factory=list)  # of each file
    labels: array = field(default_factory=lambda: array("i"))


def scan_parquet(files: list[str]) -> ParquetScan:
    """Reads the schemas and the label columns; no image.

    Raises UserError: pyarrow is missing, a file is no Parquet, has no image column, or other columns than the first.
    """
    scan: ParquetScan | None = None
    for path in files:
        file = _open(path)
        names = file.schema_arrow.names
        image, label, text = (_first(names, of) for of in (IMAGE_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS))
        if image is None:
            raise UserError(f"{path!r} has no image column: its columns are {names}, looked for {list(IMAGE_COLUMNS)}")
        if scan is None:
            scan = ParquetScan(files, image, text, _class_names(file.schema_arrow.metadata, label))
        elif (image, text) != (scan.image_column, scan.text_column):
            raise UserError(f"{path!r} has other columns than {files[0]!r}: {names}")
        num_rows = file.metadata.num_rows
        scan.num_rows.append(num_rows)
        if label is None:
            scan.labels.extend([-1] * num_rows)
        else:
            column = file.read(columns=[label]).column(label)
            scan.labels.extend(np.asarray(column.fill_null(-1).cast("int32")).tolist())
    assert scan is not None, "expand_pattern gives at least one file"
    return scan


def read_texts(path: str, column: str) -> Iterator[str | None]:
    """The text of each row, in order; None where it has none. Raises UserError where the file cannot be read."""
    import pyarrow

    file = _open(path)
    try:
        for batch in file.iter_batches(columns=[column]):
            for cell in batch.column(0).to_pylist():
                yield cell[0] if isinstance(cell, list) and cell else cell or None
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path!r}, column {column!r} cannot be read: {error}") from error


class RowReader:
    """Reads single cells; keeps the row groups that were used last. Safe to share between threads."""

    def __init__(self, max_open: int = MAX_OPEN_ROW_GROUPS):
        self._max_open = max_open
        self._files: dict[str, tuple[pyarrow.parquet.ParquetFile, np.ndarray]] = {}
        self._columns: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, row: int, column: str) -> bytes:
        """The bytes of an image, or a text in UTF-8. Raises OSError where the cell is empty or cannot be read."""
        with self._lock:
            try:
                file, first_rows = self._file(path)
                group = int(np.searchsorted(first_rows, row, side="right")) - 1
                cell = self._column(path, file, group, column)[row - int(first_rows[group])].as_py()
            except (UserError, ValueError, IndexError, KeyError) as error:
                raise OSError(f"{path!r}, row {row}, column {column!r}: {error}") from error
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if not isinstance(cell, str | bytes):
            raise OSError(f"{path!r}, row {row}, column {column!r} holds neither bytes nor text: {type(cell).__name__}")
        return cell.encode() if isinstance(cell, str) else cell

    def close(self) -> None:
        with self._lock:
            self._files.clear()
            self._columns.clear()

    def _file(self, path: str) -> tuple[pyarrow.parquet.ParquetFile, np.ndarray]:
        if path not in self._files:
            file = _open(path)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            self._files[path] = file, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[:-1]
        return self._files[path]

    def _column(self, path: str, file: pyarrow.parquet.ParquetFile, group: int, column: str) -> Any:
        key = path, group, column
        cells = self._columns.pop(key, None)
        if cells is None:
            cells = file.read_row_group(group, columns=[column]).column(column)
        self._columns[key] = cells  # the end of the order: the last to be dropped
        while len(self._columns) > self._max_open:
            self._columns.popitem(last=False)
        return cells


def _open(path: str) -> pyarrow.parquet.ParquetFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path!r}: Parquet files need pyarrow: pip install 'webssl_fast[parquet]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path!r} cannot be read as Parquet: {error}") from error


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str] | None:
    """Names of a ClassLabel feature, as `datasets` writes them into the file."""
    if label is None or not metadata or b"huggingface" not in metadata:
        return None
    feature = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {}).get(label, {})
    return feature.get("names") if isinstance(feature, dict) else None
