"""Makes a small labelled data set from photographs and scans that scikit-image and scikit-learn carry.

    python -m webssl_fast.data.sample --output sample_data

A class is a photograph; a sample is a square tile of it. Each photograph is cut into blocks with a gap between them;
training tiles come from two thirds of the blocks, test tiles from the others, so no pixel is in both. Each tile is seen
under a light of its own (gamma, exposure, fog, colour of the light), in training and test alike: brightness and colour
then say less about the class, and what a network must learn is what stays under changing light.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from webssl_fast.errors import UserError

TILES_PER_CLASS = {"train": 120, "test": 40}
MAX_SIDE_PX = 640  # larger photographs are reduced to it
BLOCK_PX = 150  # about the side of a block
GAP_PX = 16  # between blocks
TILE_PX = (64, 128)  # range of a tile's side
MIN_CONTRAST = 6.0  # standard deviation of a tile's luma: a tile of plain sky or of a dark border shows nothing
# Chosen so that an untrained network gets about half of the test tiles right by its class token.
LOG_GAMMA, EXPOSURE, FOG, TINT = 0.4, (0.6, 1.0), (0.0, 0.2), 0.05
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Photograph:
    class_name: str
    package: str
    path: str
    credit: str
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom: what is used of it


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", "NASA, public domain"),
    Photograph("brick", "skimage", "data/brick.png", "CC0Textures, CC0"),
    Photograph("camera", "skimage", "data/camera.png", "Lav Varshney, CC0"),
    Photograph("cat", "skimage", "data/chelsea.png", "Stefan van der Walt, CC0"),
    Photograph("cell", "skimage", "data/cell.png", "Paul Mueller et al., CC0"),
    Photograph("coffee", "skimage", "data/coffee.png", "Rachel Michetti, CC0"),
    Photograph("coins", "skimage", "data/coins.png", "Brooklyn Museum, no known copyright restrictions"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", "flickr.com/photos/vultilion, CC BY 2.0"),
    Photograph("galaxies", "skimage", "data/hubble_deep_field.jpg", "NASA, public domain"),
    Photograph("grass", "skimage", "data/grass.png", "linolafett, CC0"),
    Photograph("gravel", "skimage", "data/gravel.png", "CC0Textures, CC0"),
    Photograph("retina", "skimage", "data/retina.jpg", "Mikael Haeggstroem, CC0", (200, 200, 1211, 1211)),
    Photograph("rocket", "skimage", "data/rocket.jpg", "SpaceX, public domain"),
    Photograph("temple", "sklearn", "datasets/images/china.jpg", "flickr.com/photos/danielbuechele, CC BY 2.0"),
    Photograph("text", "skimage", "data/text.png", "Wikimedia Commons, public domain"),
    Photograph("tissue", "skimage", "data/ihc.png", "CMMI, no known copyright restrictions"),
)

_README = """Sample data of webssl_fast, made by `python -m webssl_fast.data.sample`.

{num_classes} classes, {train} training and {test} test tiles (train/<class>/*.jpg, test/<class>/*.jpg). A class is a
photograph or scan; its tiles are squares of {low} to {high} pixels. Training and test tiles come from blocks of the
photograph that do not touch ({gap} pixels between them). Each tile was given a light of its own (gamma, exposure, fog,
colour of the light), in training and test alike.

Sources. The tiles are changed as described above; photographs under CC BY 2.0 keep that license.
{sources}
"""


def make_sample_data(output: Path, seed: int = 0) -> dict[str, int]:
    """Writes `output`/train/<class>/*.jpg, `output`/test/<class>/*.jpg and `output`/README; returns the tiles of each.

    Deterministic in the seed. Replaces what an earlier call wrote.
    Raises UserError where a package that carries the photographs is missing, or `output` holds something else.
    """
    photographs = {source: open_photograph(source) for source in PHOTOGRAPHS}
    _clear(output)
    counts = dict.fromkeys(TILES_PER_CLASS, 0)
    for number, (source, photograph) in enumerate(photographs.items()):
        rng = np.random.default_rng([seed, number])
        for split, blocks in zip(TILES_PER_CLASS, _blocks(*photograph.size), strict=True):
            folder = output / split / source.class_name
            folder.mkdir(parents=True)
            for i in range(TILES_PER_CLASS[split]):
                tile = _relit(_draw_tile(photograph, blocks[i % len(blocks)], rng), rng)
                tile.save(folder / f"{i:03d}.jpg", quality=JPEG_QUALITY)
                counts[split] += 1
    sources = "\n".join(f"  {p.class_name:10} {p.package}/{p.path}: {p.credit}" for p in PHOTOGRAPHS)
    low, high = TILE_PX
    text = _README.format(num_classes=len(PHOTOGRAPHS), low=low, high=high, gap=GAP_PX, sources=sources, **counts)
    (output / "README").write_text(text)
    return counts


def open_photograph(source: Photograph, max_side_px: int = MAX_SIDE_PX) -> Image.Image:
    """What is used of it, RGB, reduced to `max_side_px`. Raises UserError where its package is missing."""
    spec = importlib.util.find_spec(source.package)
    path = Path(spec.submodule_search_locations[0]) / source.path if spec and spec.submodule_search_locations else None
    if path is None or not path.exists():
        raise UserError(f"{source.path} of the package {source.package} is missing: pip install 'webssl_fast[sample]'")
    photograph = Image.open(path).convert("RGB")
    if source.box:
        photograph = photograph.crop(source.box)
    photograph.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return photograph


def _clear(output: Path) -> None:
    if not output.exists():
        return
    foreign = [path for path in output.iterdir() if path.name not in ("README", *TILES_PER_CLASS)]
    foreign = [path for path in foreign if not path.name.startswith(".")]
    readme = output / "README"
    if (
        foreign
        or (any(output.iterdir()) and not readme.exists())
        or (readme.exists() and not readme.read_text().startswith(_README.splitlines()[0]))
    ):
        raise UserError(f"{output} holds something else than sample data; choose another --output")
    for split in TILES_PER_CLASS:
        shutil.rmtree(output / split, ignore_errors=True)


def _blocks(width: int, height: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Boxes (left, top, right, bottom) for training and for test: every third diagonal of a grid is for test."""
    columns, rows = max(3, round(width / BLOCK_PX)), max(1, round(height / BLOCK_PX))
    inset = GAP_PX // 2
    train: list[tuple[int, ...]] = []
    test: list[tuple[int, ...]] = []
    for row in range(rows):
        for column in range(columns):
            left, right = column * width // columns, (column + 1) * width // columns
            top, bottom = row * height // rows, (row + 1) * height // rows
            box = (left + inset, top + inset, right - inset, bottom - inset)
            (test if (column + row) % 3 == 1 else train).append(box)
    return train, test


def _draw_tile(photograph: Image.Image, block: tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    left, top, right, bottom = block
    for _ in range(20):  # a block may be plain all over: then the last draw has to do
        side = int(rng.integers(TILE_PX[0], min(right - left, bottom - top, TILE_PX[1]) + 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
        tile = photograph.crop((x, y, x + side, y + side))
        if np.asarray(tile.convert("L")).std() >= MIN_CONTRAST:
            break
    return tile


def _relit(tile: Image.Image, rng: np.random.Generator) -> Image.Image:
    gamma, exposure, fog = np.exp(rng.uniform(-LOG_GAMMA, LOG_GAMMA)), rng.uniform(*EXPOSURE), rng.uniform(*FOG)
    tint = rng.uniform(1 - TINT, 1 + TINT, 3)
    color = (np.asarray(tile, np.float64) / 255) ** gamma * exposure * tint + fog
    return Image.fromarray((color.clip(0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write (replaced if it is sample data)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        counts = make_sample_data(arguments.output, arguments.seed)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{arguments.output}: " + ", ".join(f"{n} {split} tiles" for split, n in counts.items()))


if __name__ == "__main__":
    main()
