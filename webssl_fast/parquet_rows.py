"""Single cells of Parquet files: images and texts, as data sets of Hugging Face hold them (pyarrow reads them).

A cell is read with its column of the whole row group, so neighbouring rows cost little and random order costs much.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from webssl_fast.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

MAX_OPEN_ROW_GROUPS = 4


def open_parquet(path: str) -> pyarrow.parquet.ParquetFile:
    """Raises UserError: pyarrow is missing, or the file is no Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path!r}: Parquet files need pyarrow: pip install 'webssl_fast[parquet]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path!r} cannot be read as Parquet: {error}") from error


class RowReader:
    """Reads single cells; keeps the row groups that were used last. Safe to share between threads."""

    def __init__(self, max_open: int = MAX_OPEN_ROW_GROUPS):
        self._max_open = max_open
        self._files: dict[str, tuple[pyarrow.parquet.ParquetFile, np.ndarray]] = {}
        self._columns: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, row: int, column: str) -> bytes:
        """The bytes of an image, or a text in UTF-8; of a list, its first element.

        Images are structs {bytes, path} or plain bytes. Raises OSError where the cell is empty or cannot be read.
        """
        with self._lock:
            try:
                file, first_rows = self._file(path)
                group = int(np.searchsorted(first_rows, row, side="right")) - 1
                cell = self._column(path, file, group, column)[row - int(first_rows[group])].as_py()
            except (UserError, ValueError, IndexError, KeyError) as error:
                raise OSError(f"{path!r}, row {row}, column {column!r}: {error}") from error
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if not isinstance(cell, str | bytes):
            raise OSError(f"{path!r}, row {row}, column {column!r} holds neither bytes nor text: {type(cell).__name__}")
        return cell.encode() if isinstance(cell, str) else cell

    def close(self) -> None:
        with self._lock:
            self._files.clear()
            self._columns.clear()

    def _file(self, path: str) -> tuple[pyarrow.parquet.ParquetFile, np.ndarray]:
        if path not in self._files:
            file = open_parquet(path)
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
