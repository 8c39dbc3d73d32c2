"""The texts that belong to images: `.txt` beside a file or in a shard, the text column of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence

from webssl_fast.data.index import CAPTION, Index
from webssl_fast.data.read import SampleReader
from webssl_fast.data.training_data import TrainingData
from webssl_fast.errors import UserError


def read_captions(index: Index, sample_ids: Sequence[int]) -> list[str]:
    """The caption of each sample. Raises UserError where one has none, or an empty or undecodable one."""
    reader = SampleReader()
    try:
        return [read_caption(index, reader, int(sample_id)) for sample_id in sample_ids]
    finally:
        reader.close()


def read_caption(index: Index | TrainingData, reader: SampleReader, sample_id: int) -> str:
    """The caption of one sample, its ends stripped. Raises UserError as `read_captions` does."""
    where = f"data source {index.source!r}: sample {index.name(sample_id)!r}"
    try:
        location = index.locate_member(sample_id, CAPTION)
        caption = None if location is None else reader.read(location).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} has a caption that cannot be read: {error}") from error
    if caption is None:
        raise UserError(
            f"{where} has no caption. It stands in a .txt file beside the image or in its shard, or in a column "
            "named text or caption of Parquet files."
        )
    if not caption:
        raise UserError(f"{where} has an empty caption")
    return caption
