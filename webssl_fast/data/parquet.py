"""Rows of Parquet files as samples, in the layout of Hugging Face image data sets (pyarrow reads them).

An image column holds structs {bytes, path} or plain bytes; a label column holds integers whose names, where there are
any, stand in the files' "huggingface" metadata; a text column holds strings or lists of strings, of which the first
counts.

Dimensions: S samples.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field

import numpy as np

from webssl_fast.errors import UserError
from webssl_fast.parquet_rows import open_parquet

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
TEXT_COLUMNS = ("text", "caption", "txt")


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
        file = open_parquet(path)
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


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str] | None:
    """Names of a ClassLabel feature, as `datasets` writes them into the file."""
    if label is None or not metadata or b"huggingface" not in metadata:
        return None
    feature = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {}).get(label, {})
    return feature.get("names") if isinstance(feature, dict) else None
