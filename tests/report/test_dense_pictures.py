"""Colours that tell classes and depths apart, under the names that were agreed."""

import numpy as np
from PIL import Image

from tests.report.evaluations import write_pictures
from webssl_fast.report.dense_pictures import class_colors, depth_colors, load_pictures, save_depth, save_segmentation


def test_every_class_has_a_colour_of_its_own_and_nothing_is_black():
    colors = class_colors(np.arange(256).reshape(1, -1))[0]
    assert colors.dtype == np.uint8 and (colors[255] == 0).all() and (colors[:255].max(1) > 100).all()
    assert len(np.unique(colors[:151], axis=0)) == 151
    neighbours = np.abs(np.diff(colors[:255].astype(int), axis=0)).sum(1)
    assert neighbours.min() > 60


def test_near_is_light_and_far_is_dark_and_unknown_grey():
    colors = depth_colors(np.array([[0.0, 1.0, 2.0, 3.0, 9.0]]), 1.0, 3.0)[0].astype(int)
    assert (colors[0] == 128).all()
    lightness = colors.sum(1)
    assert lightness[1] > lightness[2] > lightness[3] == lightness[4]


def test_files_are_named_by_kind(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    truth = np.full((4, 5), 1)
    truth[0] = 255
    save_segmentation(tmp_path, 3, image, truth, np.full((4, 5), 1))
    save_depth(tmp_path, 0, image, np.ones((4, 5)), np.zeros((4, 5)))
    kinds = ("image", "prediction", "truth")
    expected = [f"{name}_{kind}.png" for name in ("depth_0", "segmentation_3") for kind in kinds]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    maps = [np.array(Image.open(tmp_path / f"segmentation_3_{kind}.png")) for kind in ("truth", "prediction")]
    assert np.array_equal(*maps)  # where nothing counts, the prediction is not shown either


def test_pictures_are_loaded_in_order_and_broken_ones_are_named(tmp_path):
    folder = tmp_path / "run" / "eval"
    write_pictures(tmp_path / "run", 12)
    notes: list[str] = []
    pictures = load_pictures(folder, "depth", notes)
    assert [picture.index for picture in pictures] == list(range(12)) and notes == []
    assert np.array_equal(pictures[3].truth, np.array(Image.open(folder / "depth_3_truth.png")))
    (folder / "depth_3_truth.png").write_bytes((folder / "depth_3_truth.png").read_bytes()[:200])
    (folder / "depth_4_prediction.png").unlink()
    (folder / "depth_5_image.png").write_text("<html>")
    assert [picture.index for picture in load_pictures(folder, "depth", notes)] == [0, 1, 2, *range(6, 12)]
    assert len(notes) == 3 and all(note.startswith("A picture of run/eval is left out: ") for note in notes)
    for note, reason in zip(
        notes, ("depth_3_truth.png cannot", "depth_4_prediction.png is missing", "5_image"), strict=True
    ):
        assert reason in note


def test_large_maps_are_cut_down_without_new_colours(tmp_path):
    truth = np.random.default_rng(0).integers(0, 5, (700, 1000))
    save_segmentation(tmp_path, 0, np.zeros((700, 1000, 3), np.uint8), truth, truth)
    (picture,) = load_pictures(tmp_path, "segmentation", [])
    assert picture.truth.shape == (336, 480, 3) == picture.image.shape
    assert {tuple(c) for c in picture.truth.reshape(-1, 3)} <= {tuple(c) for c in class_colors(np.arange(5)[None])[0]}
