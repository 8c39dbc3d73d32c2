"""The folder layout of ADE20K with its refusals, and what training and testing make of an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.dense_folders import write_ade
from webssl_fast.config.schema import SegmentationConfig
from webssl_fast.data.segmentation_data import SegmentationSplit, SegmentationTransforms
from webssl_fast.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_a_missing_folder_is_named(tmp_path):
    write_ade(tmp_path, {"training": 1})
    with pytest.raises(UserError, match=r"no folder .*images/validation and no .*annotations/validation.*ADEChallenge"):
        SegmentationSplit.open(tmp_path, "validation", 3, allow_subset=True)


def test_an_incomplete_set_says_what_was_found_and_the_way_out(tmp_path):
    write_ade(tmp_path)
    with pytest.raises(UserError, match=r"found 3 images .* 3 annotations .* 20,210 .*allow_subset=true"):
        SegmentationSplit.open(tmp_path, "training", 3, allow_subset=False)
    with pytest.raises(UserError, match=r"found 2 images .* 2,000"):
        SegmentationSplit.open(tmp_path, "validation", 3, allow_subset=False)
    split = SegmentationSplit.open(tmp_path, "training", 3, allow_subset=True)
    assert len(split) == 3 and not split.is_complete


def test_an_image_without_annotation_is_named_even_in_a_subset(tmp_path):
    write_ade(tmp_path)
    (tmp_path / "annotations" / "training" / "ADE_00000001.png").unlink()
    with pytest.raises(UserError, match=r"3 images .* 2 annotations .*1 images have no annotation.*ADE_00000001"):
        SegmentationSplit.open(tmp_path, "training", 3, allow_subset=True)


def test_classes_count_from_zero_and_nothing_becomes_255(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "training", 3, allow_subset=True)
    image, labels = split.read(1)
    stored = np.array(Image.open(split.pairs[1][1]))
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), np.where(stored == 0, 255, stored - 1)) and (labels[:3] == 255).all()


def test_annotations_of_another_size_or_kind_are_refused(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "training", 3, allow_subset=True)
    Image.new("L", (60, 41)).save(split.pairs[0][1])
    Image.new("RGB", (60, 40)).save(split.pairs[1][1])
    for index in (0, 1):
        with pytest.raises(UserError, match=rf"{split.pairs[index][1].name} must be 8-bit .*40x60.*full ADE20K"):
            split.read(index)


def test_a_class_beyond_the_config_is_named(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "training", 2, allow_subset=True)
    with pytest.raises(UserError, match=r"ADE_00000000.png holds class 3, but eval.segmentation.num_classes is 2"):
        split.read(0)


def transforms(**settings):
    return SegmentationTransforms(SegmentationConfig(**{"stride_px": 10, **settings}), MEAN, STD)


def test_training_crops_are_padded_after_the_colours(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "training", 3, allow_subset=True)
    made = transforms(short_side_px=40, max_long_side_px=160, crop_px=64, train_scales=(1.0, 1.0))
    image, labels = made.training_crop(*split.read(0), np.random.default_rng(0))
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    assert labels.shape == (64, 64) and labels.dtype == torch.int64
    assert (image[:, 40:] == 0).all() and (labels[40:] == 255).all()
    assert (labels[:, 60:] == 255).all() and (image[:, :40, :60] != 0).any()


def test_labels_stay_with_their_pixels(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path, size=(60, 90)), "training", 3, allow_subset=True)
    made = transforms(short_side_px=60, max_long_side_px=None, crop_px=48, train_scales=(0.8, 1.5))
    for seed in range(8):  # brightness and class rise together, whatever happened to the image
        image, labels = made.training_crop(*split.read(0), np.random.default_rng(seed))
        grey = image.mean(0)
        means = [grey[labels == c].mean() for c in range(3) if (labels == c).sum() > 20]
        assert len(means) > 1 and all(low < high for low, high in zip(means, means[1:], strict=False))


def test_a_crop_of_one_class_is_drawn_again(tmp_path):
    labels = torch.full((20, 200), 7, dtype=torch.uint8)
    labels[:, 90:110] = 3
    image = labels.expand(3, -1, -1)
    made = transforms(short_side_px=20, max_long_side_px=None, crop_px=20, train_scales=(1.0, 1.0))
    any_crop = transforms(
        short_side_px=20, max_long_side_px=None, crop_px=20, train_scales=(1.0, 1.0), max_class_share=1.0
    )
    shares = []
    for each in (made, any_crop):
        crops = [each.training_crop(image, labels, np.random.default_rng(seed))[1] for seed in range(100)]
        shares.append(np.mean([7 in crop.unique() and 3 in crop.unique() for crop in crops]))
    # Of 181 places 38 hold two classes, 18 of them less than three quarters of either; of 11 draws the last one stays.
    refused = (163 / 181) ** 11
    assert shares[0] == pytest.approx(1 - refused + refused * 20 / 163, abs=0.13)
    assert shares[1] == pytest.approx(1 - (143 / 181) ** 11, abs=0.13)


def test_training_crops_depend_on_their_generator_alone(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "training", 3, allow_subset=True)
    made = transforms(short_side_px=40, crop_px=32)
    first, again, other = (made.training_crop(*split.read(0), np.random.default_rng(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])


def test_test_views_are_the_image_at_each_scale(tmp_path):
    split = SegmentationSplit.open(write_ade(tmp_path), "validation", 3, allow_subset=True)
    image, labels = split.read(0)
    sample = transforms(short_side_px=20, max_long_side_px=None, test_scales=(1.0, 1.32, 3.0)).test_sample(
        0, image, labels
    )
    assert [tuple(view.shape) for view in sample.views] == [(3, 20, 30), (3, 26, 39), (3, 60, 90)]  # int(20 * 1.32)
    assert sample.target.dtype == torch.int64 and torch.equal(sample.target, labels.long())
    as_it_was = transforms(short_side_px=40).test_sample(0, image, labels).views[0]
    restored = as_it_was * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(restored * 255, image.float(), rtol=0, atol=1e-2)
