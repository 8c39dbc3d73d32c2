"""Published weights of Web-DINO and Web-MAE: the authors' files and Hugging Face folders, read and written.

Tensors are mapped from the disk and moved as they are: no value changes, and only what a file is cut into is in memory
at a time (the whole network for a .pth that comes from a Hugging Face folder).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from webssl_fast.errors import UserError
from webssl_fast.models.checkpoint_layouts import (
    Weights,
    from_authors,
    from_hugging_face,
    to_authors,
    to_hugging_face,
)
from webssl_fast.models.hf_preprocessing import preprocessor_config
from webssl_fast.models.presets import WEB_MAE, preset
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
# model_type -> what it is, and the keys on which its network does not vary: (value, transformers' default)
_FIXED: dict[str, tuple[str, dict]] = {
    "dinov2": ("Web-DINO", {"use_swiglu_ffn": (True, None), "layer_norm_eps": (_NORM_EPS, _NORM_EPS)}),
    "vit": ("Web-MAE", {"hidden_act": ("gelu", "gelu"), "layer_norm_eps": (_NORM_EPS, 1e-12)}),
}


def read_authors(paths: Sequence[Path]) -> Weights:
    """From `webssl_<name>.pth`, `..._ssl_teacher.pth`, or a backbone's file and its `..._ssl_heads.pth`.

    Raises UserError, naming the file, what was found and what is expected.
    """
    return from_authors({str(path): read_pth(path) for path in paths})


def read_hugging_face(folder: Path) -> Weights:
    """From a local folder with config.json and safetensors of a Dinov2Model or ViTModel. Raises UserError as
    `read_authors` does."""
    config_path = folder / CONFIG
    config = read_json(config_path)
    if config.get("model_type") not in _FIXED:
        raise UserError(
            f"{config_path}: model_type is {config.get('model_type')!r}; a model of Web-SSL has {' or '.join(_FIXED)}"
        )
    kind, fixed = _FIXED[config["model_type"]]
    for key, (expected, default) in fixed.items():
        if (found := config.get(key, default)) != expected:
            raise UserError(f"{config_path}: {key} is {found!r}; a {kind} model has {expected!r}")
    weights = from_hugging_face(read_safetensors_folder(folder), str(folder))
    expected_config = hugging_face_config(weights)
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    for key in keys:
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
    """Writes config.json, preprocessor_config.json and safetensors, for transformers' Dinov2Model (Web-DINO) or
    ViTModel (Web-MAE); heads are left out.

    Raises UserError where the folder exists.
    """
    files = {CONFIG: hugging_face_config(weights), PREPROCESSOR: preprocessor_config(preprocessing)}
    write_model_folder(folder, files, to_hugging_face(weights.backbone))


def write_model_folder(folder: Path, files: Mapping[str, dict], state: Mapping[str, Tensor]) -> None:
    """Writes JSON files by name and the weights as safetensors, under another name until all is there.

    Raises UserError where the folder exists.
    """
    refuse_existing(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, content in files.items():
        (unfinished / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_safetensors_folder(unfinished, state)
    for path in unfinished.glob("*.safetensors"):
        shutil.copymode(unfinished / CONFIG, path)  # safetensors makes files that nobody else can read
    unfinished.rename(folder)


def hugging_face_config(weights: Weights) -> dict:
    """config.json of a Dinov2Model or ViTModel with these weights."""
    size = preset(weights.preset)
    dtype: torch.dtype = weights.backbone["cls_token"].dtype
    kind: dict = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "mlp_ratio": 4,
        "use_swiglu_ffn": True,
        "layerscale_value": 1e-5,
        "drop_path_rate": 0.0,
    }
    if size.architecture == WEB_MAE:
        kind = {
            "architectures": ["ViTModel"],
            "model_type": "vit",
            "intermediate_size": size.hidden_dim(),
            "hidden_act": "gelu",
        }
    return {
        **kind,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "image_size": weights.image_size_px,
        "patch_size": size.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": _NORM_EPS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or name another target")
