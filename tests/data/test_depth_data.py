"""The lists and files of NYUd v2 with their refusals, and what training and testing make of an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.dense_folders import write_nyu
from webssl_fast.config.schema import DepthConfig
from webssl_fast.data.depth_data import DepthSplit, DepthTransforms
from webssl_fast.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*nyu_train.txt.*'image depth focal_length'"):
        DepthSplit.open(tmp_path, "train", allow_subset=True)


def test_an_incomplete_set_says_what_was_found_and_the_way_out(tmp_path):
    write_nyu(tmp_path)
    with pytest.raises(UserError, match=r"lists 3 pairs.*24,231.*allow_subset=true"):
        DepthSplit.open(tmp_path, "train", allow_subset=False)
    with pytest.raises(UserError, match=r"lists 2 pairs.*654"):
        DepthSplit.open(tmp_path, "test", allow_subset=False)
    assert not DepthSplit.open(tmp_path, "test", allow_subset=True).is_complete


def test_missing_files_are_counted_and_named_even_in_a_subset(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "train" / "00001_depth.png").unlink()
    (tmp_path / "train" / "00002_rgb.png").unlink()
    with pytest.raises(UserError, match=r"lists 3 pairs and 2 files of it are missing, the first: .*00001_depth.png"):
        DepthSplit.open(tmp_path, "train", allow_subset=True)


def test_a_line_without_a_depth_is_named(tmp_path):
    write_nyu(tmp_path)
    with (tmp_path / "nyu_test.txt").open("a") as file:
        file.write("\nlonely.jpg\n")
    with pytest.raises(UserError, match=r"nyu_test.txt, line 4: expected 'image depth focal_length', got 'lonely.jpg'"):
        DepthSplit.open(tmp_path, "test", allow_subset=True)


def test_depths_are_metres(tmp_path):
    split = DepthSplit.open(write_nyu(tmp_path), "train", allow_subset=True)
    image, depth = split.read(2)
    assert depth.dtype == torch.float32 and depth.shape == (40, 60)
    torch.testing.assert_close(depth, image[0] / 50, rtol=0, atol=5.1e-4)


def test_eight_bit_depths_and_other_sizes_are_refused(tmp_path):
    split = DepthSplit.open(write_nyu(tmp_path), "train", allow_subset=True)
    Image.new("L", (60, 40)).save(split.pairs[0][1])
    Image.fromarray(np.zeros((40, 61), np.uint16)).save(split.pairs[1][1])
    for index in (0, 1):
        with pytest.raises(UserError, match=r"_depth.png must be a 16-bit PNG of millimetres, of 40x60"):
            split.read(index)


def transforms(**settings):
    return DepthTransforms(DepthConfig(**settings), MEAN, STD)


def test_training_crops_come_from_inside_the_frame():
    image = torch.full((3, 480, 640), 255, dtype=torch.uint8)
    depth = torch.full((480, 640), 9.0)
    image[:, 45:472, 43:608], depth[45:472, 43:608] = 100, 2.0
    made = transforms(max_rotation_degrees=0.0)
    for seed in range(6):
        crop, depths = made.training_crop(image, depth, np.random.default_rng(seed))
        assert crop.shape == (3, 416, 544) and depths.shape == (416, 544)
        assert (depths == 2.0).all() and (crop[0] < (1 - MEAN[0]) / STD[0]).all()


def test_depths_stay_with_their_pixels():
    y, x = torch.meshgrid(torch.arange(100), torch.arange(120), indexing="ij")
    image = (40 + y + x // 2).to(torch.uint8).expand(3, -1, -1)
    depth = image[0] / 50.0
    made = transforms(train_box_px=None, crop_px=(96, 116))
    unknown = False
    for seed in range(12):
        crop, depths = made.training_crop(image, depth, np.random.default_rng(seed))
        known = depths > 0
        unknown |= not known.all()
        brightness = crop[1][known]
        both = torch.stack([brightness, depths[known]])
        assert torch.corrcoef(both)[0, 1] > 0.95
    assert unknown  # a rotation leaves corners without a depth


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(UserError, match=r"crop_px is 416x544, but an image has 100x120"):
        transforms(train_box_px=None).training_crop(
            torch.zeros(3, 100, 120, dtype=torch.uint8), torch.ones(100, 120), np.random.default_rng(0)
        )


def test_the_test_view_is_the_whole_image(tmp_path):
    image, depth = DepthSplit.open(write_nyu(tmp_path), "test", allow_subset=True).read(1)
    sample = transforms().test_sample(1, image, depth)
    assert sample.index == 1 and len(sample.views) == 1 and torch.equal(sample.target, depth)
    restored = sample.views[0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(restored * 255, image.float(), rtol=0, atol=1e-2)
