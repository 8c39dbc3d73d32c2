"""`webssl filter configs/filter/text_ocr.yaml` finds the images that contain text."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.judges.labelled_images import LabelledImage, labelled_images
from webssl_fast.cli import main
from webssl_fast.data.index import Index
from webssl_fast.data.subset import Subset

parquet = pytest.importorskip("pyarrow.parquet")
for package in ("pyroaring", "rapidocr_onnxruntime", "matplotlib"):
    pytest.importorskip(package)
CONFIG = Path(__file__).parents[2] / "configs" / "filter" / "text_ocr.yaml"
REQUIRED = {1: 0.9, 10: 0.95}  # by scale; of the few images of scale 1 one may be wrong
REQUIRED_OF_PROXY = 0.9


def write_jpegs(images: Sequence[LabelledImage], folder: Path) -> dict[str, LabelledImage]:
    """By file name."""
    folder.mkdir()
    named = {f"{image.name.replace('/', '-')}.jpg": image for image in images}
    assert len(named) == len(images)
    for name, image in named.items():
        image.image.save(folder / name, quality=90)
    return named


def figures(found: Sequence[bool], true: Sequence[bool]) -> tuple[float, float]:
    """Precision and recall."""
    both = sum(f and t for f, t in zip(found, true, strict=True))
    return both / sum(found), both / sum(true)


# The defaults were chosen on images of seed 0: those of seed 1 are the judgement.
@pytest.mark.parametrize(
    ("scale", "seed"), [(1, 0), *(pytest.param(10, seed, marks=pytest.mark.nightly) for seed in (0, 1))]
)
def test_finds_text_where_there_is_some(scale, seed, tmp_path, capsys):
    images = write_jpegs(list(labelled_images(scale, seed)), tmp_path / "images")
    (tmp_path / "images/damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more of it")
    out = tmp_path / "out"
    assert main(["filter", str(CONFIG), f"data.source={tmp_path}/images", f"output_dir={out}"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(images)} images judged by ocr, 1 bad" in printed and "a proxy of charts" in printed

    rows = {row["name"]: row for row in parquet.read_table(out / "scores.parquet").to_pylist()}
    assert rows.pop("damaged.jpg")["light"] is None and rows.keys() == images.keys()
    with capsys.disabled():
        print(f"\n{len(images)} images: {dict(Counter(image.kind for image in images.values()))}")
    for answer, label, required in (
        ("light", "has_text", REQUIRED[scale]),
        ("heavy", "is_document", REQUIRED_OF_PROXY),
    ):
        precision, recall = figures(
            [rows[name][answer] for name in images], [getattr(image, label) for image in images.values()]
        )
        wrong = [name for name, image in images.items() if rows[name][answer] != getattr(image, label)]
        with capsys.disabled():
            kinds = dict(Counter(images[name].kind for name in wrong))
            print(f"  {answer}: precision {precision:.3f}, recall {recall:.3f}; wrong: {kinds} {wrong}")
        assert min(precision, recall) >= required, answer

    index = Index.open(str(out / "source.index"))
    subset = Subset.of(out / "light.subset", index)
    named = {index.name(int(sample_id)) for sample_id in subset.select(np.arange(len(subset)))}
    assert named == {name for name, row in rows.items() if row["light"]}
