"""Pictures with questions whose answers are known, rendered: shapes to be named, coloured and counted, bars to be
compared, words to be read. As conversations to train on, and as questions to ask."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE_PX = 112
COLORS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 210), "yellow": (240, 210, 30)}
SHAPES = ("circle", "square", "triangle")
WORDS = ("cat", "bread", "moon", "ship")
COUNTS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Asked:
    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    asked: tuple[Asked, ...]


def render(rng: np.random.Generator) -> Scene:
    return (_shapes, _shapes, _bars, _word)[int(rng.integers(4))](rng)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), (255, 255, 255))
    return image, ImageDraw.Draw(image)


def _shapes(rng: np.random.Generator) -> Scene:
    image, draw = _canvas()
    shape, color, count = rng.choice(SHAPES), rng.choice(list(COLORS)), int(rng.choice(COUNTS))
    for cell in rng.permutation(4)[:count]:
        radius = rng.uniform(15, 21)
        x = 28 + 56 * (cell % 2) + rng.uniform(-5, 5)
        y = 28 + 56 * (cell // 2) + rng.uniform(-5, 5)
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            draw.ellipse(box, COLORS[color])
        elif shape == "square":
            draw.rectangle(box, COLORS[color])
        else:
            corners = [
                (x + 1.2 * radius * math.sin(turn), y - 1.2 * radius * math.cos(turn))
                for turn in (0, 2 * math.pi / 3, 4 * math.pi / 3)
            ]
            draw.polygon(corners, COLORS[color])
    return Scene(
        image,
        (
            Asked("color", "What color?", str(color)),
            Asked("shape", "What shape?", str(shape)),
            Asked("count", "How many?", str(count)),
        ),
    )


def _bars(rng: np.random.Generator) -> Scene:
    image, draw = _canvas()
    names = rng.permutation(list(COLORS))[:3]
    heights = rng.permutation([rng.uniform(15, 35), rng.uniform(45, 62), rng.uniform(75, 95)])
    draw.line((8, 6, 8, 104, 106, 104), (20, 20, 20), 2)
    for i, (name, height) in enumerate(zip(names, heights, strict=True)):
        draw.rectangle((16 + 31 * i, 103 - height, 38 + 31 * i, 102), COLORS[name])
    in_order = [str(names[i]) for i in np.argsort(heights)]
    return Scene(
        image,
        (
            Asked("tallest bar", "Tallest bar?", in_order[-1]),
            Asked("shortest bar", "Shortest bar?", in_order[0]),
            Asked("left bar", "Left bar?", str(names[0])),
        ),
    )


def _word(rng: np.random.Generator) -> Scene:
    image, draw = _canvas()
    word = str(rng.choice(WORDS))
    font = ImageFont.load_default(int(rng.integers(30, 36)))
    width = draw.textlength(word, font)
    place = (rng.uniform(3, SIZE_PX - width - 3), rng.uniform(12, 64))
    draw.text(place, word, tuple(int(v) for v in rng.integers(0, 70, 3)), font)
    return Scene(
        image,
        (
            Asked("word", "What word?", word),
            Asked("first letter", "First letter?", word[0]),
            Asked("letters", "How many letters?", str(len(word))),
        ),
    )


def write_scenes(folder: Path, num_scenes: int, seed: int) -> list[Scene]:
    """Writes folder/images/*.png and folder/conversations.jsonl, all questions of a picture in one conversation."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = [render(rng) for _ in range(num_scenes)]
    with open(folder / "conversations.jsonl", "w") as file:
        for i, scene in enumerate(scenes):
            scene.image.save(folder / "images" / f"{i:05d}.png")
            turns = []
            for k in rng.permutation(len(scene.asked)):
                asked = scene.asked[k]
                text = ("<image>\n" if not turns else "") + asked.question
                turns += [{"from": "human", "value": text}, {"from": "gpt", "value": asked.answer}]
            file.write(json.dumps({"id": str(i), "image": f"{i:05d}.png", "conversations": turns}) + "\n")
    return scenes
