"""The sample data's tiles of real photographs with captions beside them."""

from __future__ import annotations

from pathlib import Path

from webssl_fast.data.sample import make_sample_data

DESCRIPTIONS = {
    "astronaut": "an astronaut in an orange space suit before a flag",
    "brick": "a wall of red bricks",
    "camera": "a man with a film camera on a tripod",
    "cat": "a ginger cat that looks into the lens",
    "cell": "a biological cell under a microscope",
    "coffee": "a cup of coffee with a spoon on a wooden table",
    "coins": "ancient Greek coins in rows",
    "flower": "a red dahlia flower in the sun",
    "galaxies": "far galaxies in the dark night sky",
    "grass": "green grass of a lawn",
    "gravel": "small stones of a gravel path",
    "retina": "the retina of a human eye with its blood vessels",
    "rocket": "a rocket on its launch pad at night",
    "temple": "a Chinese temple with a golden roof",
    "text": "a scanned page of printed text",
    "tissue": "stained tissue of a biopsy",
}
PHRASES = ("a photograph of {}", "{}, seen close", "part of a picture that shows {}", "a detail: {}")


def caption_tiles(root: Path) -> None:
    """Makes the sample data in `root` and writes a caption beside each tile, in one of four phrases."""
    make_sample_data(root)
    for tile in sorted(root.glob("*/*/*.jpg")):
        phrase = PHRASES[int(tile.stem) % len(PHRASES)]
        tile.with_suffix(".txt").write_text(phrase.format(DESCRIPTIONS[tile.parent.name]))
