"""A benchmark's data as the Hugging Face hub publishes them, in a folder: their rows, and images when asked for.

No image is read before it is asked for; a row's other columns are in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import PIL.ImageOps

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.question import HubFiles
from webssl_fast.parquet_rows import RowReader, open_parquet

if TYPE_CHECKING:
    import pyarrow.parquet

MAX_NAMED_FILES = 8


@dataclass(frozen=True)
class Row:
    """number      its place in the split, over all files
    values      its columns without the images
    num_images  in its image column
    read_image  the file of its first image
    """

    number: int
    values: Mapping[str, Any]
    num_images: int
    read_image: Callable[[], bytes]

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    @property
    def image(self) -> Callable[[], PIL.Image.Image] | None:
        """Opens its first image, RGB; None where it has none."""
        return self._open if self.num_images else None

    def _open(self) -> PIL.Image.Image:
        try:
            # The `datasets` library, which the protocol reads through, turns images as their EXIF tags ask for.
            return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(self.read_image()))).convert("RGB")
        except (OSError, PIL.UnidentifiedImageError) as error:
            raise UserError(f"the image of row {self.number} cannot be read: {error}; fetch the data again") from error


def find_files(folder: Path, published: Sequence[HubFiles]) -> list[list[Path]]:
    """The files of each pattern of the first of `published` whose patterns all have some.

    Raises UserError that names what is expected and what is there.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    for data in published:
        found = [sorted(folder.glob(pattern)) for pattern in data.patterns]
        if all(found):
            return found
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    named = ", ".join(there[:MAX_NAMED_FILES]) or "no file"
    more = f" and {len(there) - MAX_NAMED_FILES} more" if len(there) > MAX_NAMED_FILES else ""
    expected = "; or ".join(f"{', '.join(data.patterns)} as in {data.hub_id}" for data in published)
    raise UserError(f"{folder} holds {named}{more}; expected are {expected}")


def read_rows(files: Sequence[Path], columns: Sequence[str], image_column: str | None = None) -> list[Row]:
    """All rows of Parquet files, in the order of the files.

    columns       those that are wanted beside the images
    image_column  of structs {bytes, path}, plain bytes, or lists of either

    Raises UserError, which names the file, its columns and those expected.
    """
    rows: list[Row] = []
    reader = RowReader(max_open=2)  # row groups of documents can be large
    for path in files:
        file = open_parquet(str(path))
        wanted = [*columns, *([image_column] if image_column else [])]
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(missing)}: its columns are {', '.join(file.schema_arrow.names)}, "
                f"expected are {', '.join(wanted)}"
            )
        values = file.read(columns=list(columns)).to_pylist()
        num_images = _num_images(file, image_column) if image_column else [0] * len(values)
        for row, (value, num) in enumerate(zip(values, num_images, strict=True)):
            rows.append(Row(len(rows), value, num, partial(reader.read, str(path), row, image_column or "")))
    return rows


def _num_images(file: pyarrow.parquet.ParquetFile, column: str) -> list[int]:
    """Of every row, without reading an image: only the structs' paths are."""
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    paths = [leaf for leaf in leaves if leaf.split(".")[0] == column and leaf.endswith(".path")]
    cells = file.read(columns=paths or [column]).column(column).to_pylist()
    return [len(cell) if isinstance(cell, list) else int(cell is not None) for cell in cells]
