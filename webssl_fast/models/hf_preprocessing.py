"""What a Hugging Face `preprocessor_config.json` says about images, and the one that goes with our weights.

Read as JSON, since transformers' own image processors depend on torchvision, which this project does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webssl_fast.errors import UserError
from webssl_fast.records import Preprocessing

FILE_NAMES = ("preprocessor_config.json", "processor_config.json")

_PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling's numbers


def parse_preprocessing(content: Mapping[str, Any], source: str, native_px: int) -> Preprocessing:
    """From the content of one of FILE_NAMES, for images of `native_px`, where the file names no size of its own.

    Raises UserError where it is not understood in full: an evaluation must not guess what a network was fed.
    """
    content = content.get("image_processor", content)

    def refuse(what: str) -> UserError:
        return UserError(
            f"{source}: {what}; understood are a resize of the shorter side with a central crop, or a resize to a "
            "square, then a rescale by 1/255 and a normalisation by image_mean and image_std"
        )

    factor = content.get("rescale_factor", 1 / 255)
    if not content.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
        raise refuse(f"do_rescale is {content.get('do_rescale')} with the factor {factor}")
    mean, std = content.get("image_mean"), content.get("image_std")
    if not content.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not all(isinstance(v, list | tuple) and len(v) == 3 for v in (mean, std)):
        raise refuse(f"image_mean is {mean} and image_std is {std}, not three numbers each")
    resample = content.get("resample", 3)
    if resample not in _PILLOW_FILTERS:
        raise refuse(f"resample is {resample}, not one of {_PILLOW_FILTERS}")

    size = content.get("size")
    if size is None and "max_num_patches" in content:  # SigLIP 2 with images of any shape
        size = native_px
    # ViT's feature extractors of old write the side of a square as a number, CLIP's the shorter side.
    if isinstance(size, int):
        size = {"shortest_edge": size} if content.get("do_center_crop") else {"height": size, "width": size}
    crop = content.get("crop_size") if content.get("do_center_crop", "crop_size" in content) else None
    crop_px = _side(crop) if crop is not None else None
    if isinstance(size, Mapping) and "shortest_edge" in size and crop_px is not None:
        resize_px, keep_aspect = int(size["shortest_edge"]), True
    elif isinstance(size, Mapping) and (side := _side(size)) is not None:
        resize_px, keep_aspect = side, False
        crop_px = side if crop_px is None else crop_px
    else:
        raise refuse(f"size is {size} and crop_size {crop}")
    if crop_px > resize_px:
        raise refuse(f"the crop of {crop_px} pixels is larger than the resized image of {resize_px}")
    return Preprocessing(resize_px, crop_px, _PILLOW_FILTERS[resample], tuple(mean), tuple(std), keep_aspect)  # type: ignore[arg-type]


def preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """The content of preprocessor_config.json, as transformers' BitImageProcessor reads it."""
    crop_px = preprocessing.crop_px
    size = {"shortest_edge": preprocessing.resize_px}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size if preprocessing.keep_aspect else dict.fromkeys(("height", "width"), preprocessing.resize_px),
        "resample": {name: number for number, name in _PILLOW_FILTERS.items()}[preprocessing.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": crop_px, "width": crop_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _side(size: Any) -> int | None:
    """The side of a square, None where it is something else."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and size.get("height") == size.get("width"):
        return size.get("height")
    return None
