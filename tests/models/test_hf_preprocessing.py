"""preprocessor_config.json as the hub's models have them, and what is not understood."""

import pytest

from webssl_fast.errors import UserError
from webssl_fast.models.hf_preprocessing import parse_preprocessing, preprocessor_config
from webssl_fast.records import Preprocessing

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
HALF = ((0.5,) * 3, (0.5,) * 3)
PUBLISHED = {
    "DINOv2": (
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
        | {"resample": 3, "rescale_factor": 0.00392156862745098, **IMAGENET},
        Preprocessing(256, 224),
    ),
    "CLIP, as numbers": (
        {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, **HALVES},
        Preprocessing(224, 224, "bicubic", *HALF),
    ),
    "ViT and MAE, as numbers": (
        {"size": 224, "do_normalize": True, "resample": 2, **IMAGENET},
        Preprocessing(224, 224, "bilinear", keep_aspect=False),
    ),
    "SigLIP": (
        {"size": {"height": 384, "width": 384}, "resample": 3, "do_rescale": True, **HALVES},
        Preprocessing(384, 384, "bicubic", *HALF, keep_aspect=False),
    ),
    "DINOv3": (
        {"size": {"height": 224, "width": 224}, "do_center_crop": None, "crop_size": None, "resample": 2, **IMAGENET},
        Preprocessing(224, 224, "bilinear", keep_aspect=False),
    ),
    "SigLIP 2 with images of any shape": (
        {"max_num_patches": 256, "patch_size": 16, "resample": 2, **HALVES},
        Preprocessing(256, 256, "bilinear", *HALF, keep_aspect=False),
    ),
    "inside a processor": (
        {"processor_class": "P", "image_processor": {"size": {"height": 8, "width": 8}, "resample": 3, **HALVES}},
        Preprocessing(8, 8, "bicubic", *HALF, keep_aspect=False),
    ),
    "without a normalisation": (
        {"size": {"height": 8, "width": 8}, "do_normalize": False, **HALVES},
        Preprocessing(8, 8, "bicubic", (0.0,) * 3, (1.0,) * 3, keep_aspect=False),
    ),
}


@pytest.mark.parametrize(("content", "expected"), PUBLISHED.values(), ids=PUBLISHED)
def test_reads_what_is_published(content, expected):
    assert parse_preprocessing(content, "p.json", native_px=256) == expected


@pytest.mark.parametrize("preprocessing", [Preprocessing(592, 518), *(p for _, p in PUBLISHED.values())])
def test_reads_what_it_writes(preprocessing):
    assert parse_preprocessing(preprocessor_config(preprocessing), "p.json", native_px=1) == preprocessing


WRONG = {
    "no crop to a common size": (
        {"size": {"shortest_edge": 224}, **IMAGENET},
        "size is .*shortest_edge.* crop_size None",
    ),
    "no square": ({"size": {"height": 224, "width": 448}, **IMAGENET}, "size is .*448"),
    "no size": (dict(IMAGENET), "size is None"),
    "no mean": ({"size": 224, "image_std": [1, 1, 1]}, "image_mean is None"),
    "pixels up to 255": ({"size": 224, "do_rescale": False, **IMAGENET}, "do_rescale is False"),
    "pixels up to 2": ({"size": 224, "rescale_factor": 1 / 127.5, **IMAGENET}, "the factor 0.0078"),
    "another filter": ({"size": 224, "resample": 5, **IMAGENET}, "resample is 5"),
    "a crop beyond the image": (
        {"size": {"shortest_edge": 224}, "crop_size": 256, "do_center_crop": True, **IMAGENET},
        "the crop of 256 pixels is larger than the resized image of 224",
    ),
}


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG)
def test_refuses_what_it_does_not_understand(content, reason):
    with pytest.raises(UserError, match=rf"^p\.json: .*{reason}.*; understood are"):
        parse_preprocessing(content, "p.json", native_px=224)
