import hashlib
import importlib.util

import numpy as np
import pytest
from PIL import Image

from webssl_fast.data import sample
from webssl_fast.data.index import Index
from webssl_fast.errors import UserError

needs_photographs = pytest.mark.skipif(
    not (importlib.util.find_spec("skimage") and importlib.util.find_spec("sklearn")),
    reason="the photographs' packages are missing: pip install 'webssl_fast[sample]'",
)


def fingerprint(root):
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.jpg")}


@needs_photographs
def test_data_set_is_complete(tmp_path):
    assert sample.make_sample_data(tmp_path) == {"train": 1920, "test": 640}
    train = Index.open(str(tmp_path / "train"))
    test = Index.open(str(tmp_path / "test"), class_names=train.class_names)
    assert len(train.class_names) == 16
    assert np.bincount(train.labels).tolist() == [120] * 16 and np.bincount(test.labels).tolist() == [40] * 16
    readme = (tmp_path / "README").read_text()
    assert all(f"{p.package}/{p.path}: {p.credit}" in readme for p in sample.PHOTOGRAPHS)


@needs_photographs
def test_data_set_is_deterministic_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "PHOTOGRAPHS", sample.PHOTOGRAPHS[:2])
    first, second, other = (tmp_path / name for name in "abc")
    sample.make_sample_data(first)
    sample.make_sample_data(second, seed=2)
    sample.make_sample_data(second)
    sample.make_sample_data(other, seed=1)
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)


@pytest.mark.parametrize("size", [(512, 512), (640, 427), (451, 300), (448, 172), (384, 303), (640, 640)])
def test_training_and_test_blocks_do_not_touch(size):
    train, test = sample._blocks(*size)
    assert len(train) >= 2 * len(test) - 2 and test
    covered = np.zeros(size[::-1], int)
    for left, top, right, bottom in train:
        assert min(right - left, bottom - top) >= sample.TILE_PX[0]
        covered[top:bottom, left:right] += 1
    for left, top, right, bottom in test:
        gap = sample.GAP_PX - 1
        assert min(right - left, bottom - top) >= sample.TILE_PX[0]
        assert not covered[max(0, top - gap) : bottom + gap, max(0, left - gap) : right + gap].any()
    assert covered.max() == 1


def test_tiles_stay_in_their_block():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8))
    marked = photograph.copy()
    marked.paste((0, 255, 0), (0, 0, 300, 300))
    marked.paste(photograph.crop((100, 100, 200, 200)), (100, 100))
    for seed in range(20):
        tile = sample._draw_tile(marked, (100, 100, 200, 200), np.random.default_rng(seed))
        assert tile.width == tile.height >= sample.TILE_PX[0]
        assert not (np.asarray(tile) == (0, 255, 0)).all(axis=2).any()


@pytest.mark.parametrize("files", [{"cat.jpg": b"x"}, {"README": b"My holiday"}, {"train/x.jpg": b"x"}])
def test_a_folder_of_something_else_is_left_alone(tmp_path, files, monkeypatch):
    monkeypatch.setattr(sample, "PHOTOGRAPHS", ())
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="choose another --output"):
        sample.make_sample_data(tmp_path)
    assert all((tmp_path / name).read_bytes() == data for name, data in files.items())


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    missing = sample.Photograph("x", "no_such_package", "a.png", "")
    monkeypatch.setattr(sample, "PHOTOGRAPHS", (missing,))
    with pytest.raises(UserError, match=r"webssl_fast\[sample\]"):
        sample.make_sample_data(tmp_path / "out")
