"""Sample pictures of an index on one sheet."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from webssl_fast.config.schema import DecodeConfig
from webssl_fast.data.decode import BadImage, make_decoder
from webssl_fast.data.index import Index
from webssl_fast.data.order import sample_ids
from webssl_fast.data.read import SampleReader

_CELL_PX = 128
_BACKGROUND = (40, 40, 40)


def write_contact_sheet(index: Index, path: Path, num_pictures: int, seed: int = 0) -> list[tuple[str, str]]:
    """Writes thumbnails of samples drawn from the index as one PNG; returns (name, reason) of those that are bad.

    Bad samples leave their cells empty.
    """
    num_pictures = min(num_pictures, len(index))
    ids = np.sort(sample_ids(seed, len(index), np.arange(num_pictures)))
    num_columns = math.ceil(math.sqrt(num_pictures))
    num_rows = math.ceil(num_pictures / num_columns)
    sheet = Image.new("RGB", (num_columns * _CELL_PX, num_rows * _CELL_PX), _BACKGROUND)
    reader, decoder = SampleReader(), make_decoder(DecodeConfig(backend="pillow"))
    bad = []
    for place, sample_id in enumerate(ids.tolist()):
        try:
            image = decoder.decode([reader.read(index.locate(sample_id))])[0]
        except OSError as error:
            image = BadImage(f"cannot be read: {error}")
        if isinstance(image, BadImage):
            bad.append((index.name(sample_id), image.reason))
            continue
        thumbnail = Image.fromarray(image.numpy())
        thumbnail.thumbnail((_CELL_PX - 4, _CELL_PX - 4))
        row, column = divmod(place, num_columns)
        left = column * _CELL_PX + (_CELL_PX - thumbnail.width) // 2
        top = row * _CELL_PX + (_CELL_PX - thumbnail.height) // 2
        sheet.paste(thumbnail, (left, top))
    reader.close()
    sheet.save(path, "PNG")
    return bad
