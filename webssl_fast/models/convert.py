"""Published Web-DINO weights: read from the authors' files or a Hugging Face folder, and written as either.

Tensors are mapped from the disk and moved as they are: no value changes, and only what a file is cut into is in memory
at a time (the whole network for a .pth that comes from a Hugging Face folder).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from webssl_fast.errors import UserError
from webssl_fast.models.checkpoint_layouts import (
    Weights,
    from_authors,
    from_hugging_face,
    to_authors,
    to_hugging_face,
)
from webssl_fast.models.hf_preprocessing import preprocessor_config
from webssl_fast.models.mae_layout import is_web_mae
from webssl_fast.models.presets import preset
from webssl_fast.models.weight_files import (
    read_json,
    read_pth,
    read_safetensors_folder,
    write_pth,
    write_safetensors_folder,
)
from webssl_fast.records import Preprocessing

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_NORM_EPS = 1e-6


def read_authors(paths: Sequence[Path]) -> Weights:
    """From `webssl_<name>.pth`, `..._ssl_teacher.pth`, or a backbone's file and its `..._ssl_heads.pth`.

    Raises UserError, naming the file, what was found and what is expected.
    """
    contents = {str(path): read_pth(path) for path in paths}
    for name, content in contents.items():
        if is_web_mae(content):
            raise UserError(f"{name} is a Web-MAE network; it can be evaluated, but not yet converted or trained on")
    return from_authors(contents)


def read_hugging_face(folder: Path) -> Weights:
    """From a local folder with a Dinov2Model's config.json and safetensors. Raises UserError as `read_authors` does."""
    config_path = folder / CONFIG
    config = read_json(config_path)
    for key, expected in {"model_type": "dinov2", "use_swiglu_ffn": True, "layer_norm_eps": _NORM_EPS}.items():
        found = config.get(key, _NORM_EPS if key == "layer_norm_eps" else None)
        if found != expected:
            raise UserError(f"{config_path}: {key} is {found!r}; a Web-DINO model has {expected!r}")
    weights = from_hugging_face(read_safetensors_folder(folder), str(folder))
    expected_config = hugging_face_config(weights)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        if config.get(key) != expected_config[key]:
            raise UserError(
                f"{config_path}: {key} is {config.get(key)!r}, but the weights are those of {weights.preset} at "
                f"{weights.image_size_px} px, which has {expected_config[key]!r}"
            )
    return weights


def write_authors(weights: Weights, path: Path) -> list[Path]:
    """Writes the backbone as the authors' flat file and, where there are heads, `<name>_ssl_heads.pth` beside it.

    Returns the files. Raises UserError where one exists.
    """
    if path.suffix != ".pth":
        raise UserError(f"the target is {path}; the authors' layout is a file whose name ends in .pth")
    contents: dict[Path, dict] = {path: to_authors(weights.backbone)}
    if weights.heads:
        contents[path.with_name(f"{path.stem}_ssl_heads.pth")] = {"teacher": weights.heads}
    for target in contents:
        refuse_existing(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in contents.items():
        write_pth(target, content)
    return list(contents)


def write_hugging_face(weights: Weights, folder: Path, preprocessing: Preprocessing) -> None:
    """Writes config.json, preprocessor_config.json and safetensors, for transformers' Dinov2Model; heads are left out.

    Raises UserError where the folder exists.
    """
    refuse_existing(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, content in (
        (CONFIG, hugging_face_config(weights)),
        (PREPROCESSOR, preprocessor_config(preprocessing)),
    ):
        (unfinished / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_safetensors_folder(unfinished, to_hugging_face(weights.backbone))
    for path in unfinished.glob("*.safetensors"):
        shutil.copymode(unfinished / CONFIG, path)  # safetensors makes files that nobody else can read
    unfinished.rename(folder)


def hugging_face_config(weights: Weights) -> dict:
    """config.json of a Dinov2Model with these weights."""
    size = preset(weights.preset)
    dtype: torch.dtype = weights.backbone["cls_token"].dtype
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "image_size": weights.image_size_px,
        "patch_size": size.patch_size,
        "num_channels": 3,
        "mlp_ratio": 4,
        "use_swiglu_ffn": True,
        "qkv_bias": True,
        "layer_norm_eps": _NORM_EPS,
        "layerscale_value": 1e-5,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or name another target")
