"""Shards of JPEGs as ImageNet's are, for bench_data: boxes of photographs that scikit-image and scikit-learn carry.

    python -m benchmarks.photo_shards FOLDER [--shards 4] [--images 256]

writes FOLDER/0.tar, FOLDER/1.tar, ...; needs the extra `sample`. An image is a box of 4:3 or 3:4 drawn from a
photograph, scaled to 500 x 375 or 375 x 500 pixels. The same call writes the same bytes.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from webssl_fast.data.sample import PHOTOGRAPHS, open_photograph

SIDES_PX = (500, 375)
LEAST_SHARE = 0.6  # of the largest box, in width
QUALITY = 90
MAX_SIDE_PX = 1000
NATURAL = ("astronaut", "cat", "coffee", "flower", "galaxies", "retina", "rocket", "temple", "tissue")


def write_shards(folder: Path, num_shards: int, num_images: int, seed: int = 0) -> None:
    """`num_images` in each shard. Raises UserError where a package that carries photographs is missing."""
    photographs = [open_photograph(source, MAX_SIDE_PX) for source in PHOTOGRAPHS if source.class_name in NATURAL]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        draws = np.random.default_rng([seed, shard])
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(num_images):
                photograph = photographs[draws.integers(len(photographs))]
                data = _encoded(_drawn_box(photograph, draws))
                info = tarfile.TarInfo(f"{shard:03d}{number:05d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _drawn_box(photograph: Image.Image, draws: np.random.Generator) -> Image.Image:
    width_px, height_px = SIDES_PX if photograph.width >= photograph.height else SIDES_PX[::-1]
    scale = draws.uniform(LEAST_SHARE, 1.0) * min(photograph.width / width_px, photograph.height / height_px)
    width, height = scale * width_px, scale * height_px
    left, top = draws.uniform(0, photograph.width - width), draws.uniform(0, photograph.height - height)
    box = (left, top, left + width, top + height)
    return photograph.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box)


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--images", type=int, default=256, help="of a shard")
    arguments = parser.parse_args()
    write_shards(arguments.folder, arguments.shards, arguments.images)


if __name__ == "__main__":
    main()
