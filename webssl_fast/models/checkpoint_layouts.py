"""The names under which a network of Web-SSL is stored: by its authors, on the Hugging Face hub, and here.

Three layouts of the same tensors, so that going from one to another moves bits and changes none.

  authors       blocks.{chunk}.{block}.attn.qkv.weight, ...; a teacher's file has {"teacher": {"backbone.blocks...",
                "dino_head...", "ibot_head..."}}; a Web-MAE's blocks are not in chunks
  Hugging Face  encoder.layer.{block}.attention.attention.{query,key,value}.weight, ... (transformers' Dinov2Model; of a
                Web-MAE ViTModel, see models/mae_layout.py)
  here          blocks.{block}.attn.qkv.weight, ...: a VisionTransformer's state_dict, without padding of the SwiGLU

Source: the module classes of facebookresearch/webssl and dinov2 (its BlockChunk numbers blocks through all chunks), and
transformers' conversion of DINOv2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from webssl_fast.config.schema import HeadConfig, ModelConfig
from webssl_fast.errors import UserError
from webssl_fast.models.heads import PrototypeHead
from webssl_fast.models.mae_layout import from_vit_model, is_web_mae, to_vit_model
from webssl_fast.models.presets import PRESETS, WEB_DINO, WEB_MAE
from webssl_fast.models.vit import VisionTransformer

State = dict[str, Tensor]

HEADS = ("dino_head", "ibot_head")
NUM_CHUNKS = 4  # block_chunks of every published size

_BLOCK = re.compile(r"blocks\.(?:(\d+)\.)?(\d+)\.(.+)")
_HF_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_HF_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_HF_BLOCK_NAMES = {
    **{f"norm{i}.{kind}": f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")},
    **{f"ls{i}.gamma": f"layer_scale{i}.lambda1" for i in (1, 2)},
    **{f"attn.proj.{kind}": f"attention.output.dense.{kind}" for kind in ("weight", "bias")},
    **{f"mlp.w12.{kind}": f"mlp.weights_in.{kind}" for kind in ("weight", "bias")},
    **{f"mlp.w3.{kind}": f"mlp.weights_out.{kind}" for kind in ("weight", "bias")},
}
_HF_QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Weights:
    """A network that was read from somewhere; names and shapes are those of its preset.

    source    where it came from, for messages
    backbone  VisionTransformer's names, SwiGLU without padding
    heads     "dino_head.mlp.0.weight", ...; empty where the source has none
    """

    source: str
    preset: str
    image_size_px: int
    backbone: State
    heads: State = field(default_factory=dict)

    def head_config(self, head: str) -> HeadConfig:
        """Sizes of one of HEADS."""
        return _head_config(self.heads[f"{head}.last_layer.weight_v"], self.heads[f"{head}.mlp.0.weight"])


# ---------------------------------------------------------------- the authors' layout


def from_authors(contents: Mapping[str, Mapping[str, Any]]) -> Weights:
    """One network from the contents of the authors' files, by file name: a backbone, a teacher, or a backbone and its
    heads. Raises UserError for a missing, an unknown or an ill-shaped tensor, naming the file."""
    backbone: State = {}
    heads: State = {}
    backbone_file = heads_file = ""
    for name, content in contents.items():
        found_backbone, found_heads = _split_authors_file(name, content)
        for part, found in (("a backbone", backbone and found_backbone), ("heads", heads and found_heads)):
            if found:
                raise UserError(f"{' and '.join(contents)} both hold {part}; expected one backbone and its heads")
        backbone, backbone_file = (found_backbone, name) if found_backbone else (backbone, backbone_file)
        heads, heads_file = (found_heads, name) if found_heads else (heads, heads_file)
    if not backbone:
        raise UserError(f"{' and '.join(contents)} holds heads only; name the file of their backbone beside it")
    preset, image_size_px = _check_backbone(backbone, backbone_file)
    if heads:
        _check_heads(heads, PRESETS[preset].width, heads_file)
    return Weights(backbone_file, preset, image_size_px, backbone, heads)


def to_authors(backbone: Mapping[str, Tensor]) -> State:
    """A backbone under the authors' names, blocks in chunks (their loader drops names that it does not know)."""
    if is_web_mae(backbone):
        return dict(backbone)
    chunk_size = max(_num_blocks(backbone) // NUM_CHUNKS, 1)
    return {_BLOCK.sub(lambda m: f"blocks.{int(m[2]) // chunk_size}.{m[2]}.{m[3]}", k): v for k, v in backbone.items()}


def _split_authors_file(name: str, content: Mapping[str, Any]) -> tuple[State, State]:
    inner = content.get("teacher", content)
    state = {key: value for key, value in inner.items()} if isinstance(inner, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{name} holds the entries {_few(content)}, which are not all tensors; expected a backbone (cls_token, "
            'blocks...), or {"teacher": {backbone..., dino_head..., ibot_head...}}'
        )
    heads = {key: value for key, value in state.items() if key.startswith(tuple(f"{head}." for head in HEADS))}
    rest = {key: value for key, value in state.items() if key not in heads}
    if any(key.startswith("backbone.") for key in rest):
        rest = {key.removeprefix("backbone."): value for key, value in rest.items()}
    return {_BLOCK.sub(r"blocks.\2.\3", key): value for key, value in rest.items()}, heads


# ---------------------------------------------------------------- Hugging Face's layout


def from_hugging_face(state: Mapping[str, Tensor], source: str) -> Weights:
    """A network from the tensors of a folder of a Dinov2Model or ViTModel. Raises UserError as `from_authors` does."""
    if any(".intermediate.dense." in key for key in state):
        ours, unknown = from_vit_model(state)
        if unknown:
            raise UserError(
                f"{source} holds {_few(unknown)}, which no Web-MAE model in the Hugging Face layout has; expected a "
                "ViTModel: embeddings, encoder.layer.*, layernorm"
            )
        return Weights(source, *_check_backbone(ours, source), ours)
    ours = {name: state[theirs] for name, theirs in _HF_NAMES.items() if theirs in state}
    block_names = {theirs: name for name, theirs in _HF_BLOCK_NAMES.items()}
    used = set(_HF_NAMES.values())
    for key, tensor in state.items():
        match = _HF_BLOCK.fullmatch(key)
        if match and match[2] in block_names:
            ours[f"blocks.{match[1]}.{block_names[match[2]]}"] = tensor
            used.add(key)
    for i in sorted({int(match[1]) for key in state if (match := _HF_BLOCK.fullmatch(key))}):
        for kind in ("weight", "bias"):
            parts = [f"encoder.layer.{i}.attention.attention.{part}.{kind}" for part in _HF_QKV]
            if all(part in state for part in parts):
                ours[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([state[part] for part in parts])
                used.update(parts)
    unknown = [key for key in state if key not in used]
    if unknown:
        raise UserError(
            f"{source} holds {_few(unknown)}, which no Web-DINO model in the Hugging Face layout has; expected a "
            f"Dinov2Model with use_swiglu_ffn and no registers: {_few(_HF_NAMES.values())}, encoder.layer.*"
        )
    return Weights(source, *_check_backbone(ours, source), ours)


def to_hugging_face(backbone: Mapping[str, Tensor]) -> State:
    """A backbone under the names of transformers' Dinov2Model or ViTModel; query, key and value are views of our one
    matrix."""
    if is_web_mae(backbone):
        return to_vit_model(backbone)
    state: State = {}
    for name, tensor in backbone.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            state[_HF_NAMES[name]] = tensor
        elif match[3].startswith("attn.qkv."):
            for part, third in zip(_HF_QKV, tensor.chunk(3), strict=True):
                kind = match[3].removeprefix("attn.qkv.")
                state[f"encoder.layer.{match[2]}.attention.attention.{part}.{kind}"] = third
        else:
            state[f"encoder.layer.{match[2]}.{_HF_BLOCK_NAMES[match[3]]}"] = tensor
    return state


# ---------------------------------------------------------------- checks


def backbone_config(preset: str, image_size_px: int) -> ModelConfig:
    """Of published weights: no padding, and the interpolation of positions that their models have."""
    by_offset = PRESETS[preset].architecture == WEB_DINO
    interpolation: Literal["scale_offset", "size"] = "scale_offset" if by_offset else "size"
    return ModelConfig(preset=preset, image_size_px=image_size_px, pos_embed_interpolation=interpolation)


def _check_backbone(backbone: State, source: str) -> tuple[str, int]:
    """Preset and native image size. Raises UserError unless every tensor of that preset is there, and no other."""
    num_dims = {"cls_token": 3, "patch_embed.proj.weight": 4, "pos_embed": 3}
    missing = [name for name, n in num_dims.items() if name not in backbone or backbone[name].ndim != n]
    if missing or not _num_blocks(backbone):
        raise UserError(
            f"{source} holds {_few(backbone)}, but not {', '.join(missing) or 'blocks'}; expected a vision "
            "transformer of Web-SSL with a class token: cls_token, pos_embed, patch_embed.proj, blocks, norm"
        )
    shape = backbone["patch_embed.proj.weight"].shape
    found = (backbone["cls_token"].shape[-1], _num_blocks(backbone), shape[-1])
    kind, architecture = ("Web-MAE", WEB_MAE) if is_web_mae(backbone) else ("Web-DINO", WEB_DINO)
    sizes = {k: (p.width, p.depth, p.patch_size) for k, p in PRESETS.items() if p.architecture == architecture}
    preset = next((k for k, size in sizes.items() if size == found), None)
    if preset is None:
        known = "; ".join(f"{', '.join(map(str, size))} ({k})" for k, size in sizes.items())
        raise UserError(
            f"{source} is a {kind} network of width, blocks and patch size {', '.join(map(str, found))}; known are "
            f"{known}"
        )
    side = max(math.isqrt(max(backbone["pos_embed"].shape[1] - 1, 0)), 1)
    image_size_px = side * found[2]
    with torch.device("meta"):
        expected = VisionTransformer(backbone_config(preset, image_size_px)).state_dict()
    _check_tensors(backbone, expected, source, f"the backbone of {preset} at {image_size_px} px")
    return preset, image_size_px


def _check_heads(heads: State, width: int, source: str) -> None:
    for head in HEADS:
        own = {key: value for key, value in heads.items() if key.startswith(f"{head}.")}
        prototypes, first = own.get(f"{head}.last_layer.weight_v"), own.get(f"{head}.mlp.0.weight")
        if prototypes is None or first is None or prototypes.ndim != 2 or first.ndim != 2:
            raise UserError(
                f"{source} has no matrices {head}.last_layer.weight_v and {head}.mlp.0.weight; found {_few(own)}"
            )
        with torch.device("meta"):
            expected = PrototypeHead(width, _head_config(prototypes, first)).state_dict()
        _check_tensors(own, {f"{head}.{k}": v for k, v in expected.items()}, source, f"a {head} on width {width}")


def _head_config(prototypes: Tensor, first: Tensor) -> HeadConfig:
    num_prototypes, bottleneck_dim = prototypes.shape
    return HeadConfig(hidden_dim=first.shape[0], bottleneck_dim=bottleneck_dim, num_prototypes=num_prototypes)


def _check_tensors(state: State, expected: Mapping[str, Tensor], source: str, what: str) -> None:
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is not part of it" for name in state if name not in expected]
    faults += [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults += [f"{name} is {t.dtype}, expected floats" for name, t in state.items() if not t.is_floating_point()]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{source} does not hold {what}: {'; '.join(faults[:5])}{more}")


def _num_blocks(backbone: Mapping[str, Tensor]) -> int:
    return len({match[2] for key in backbone if (match := _BLOCK.fullmatch(key))})


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(map(str, names[:4])) or "nothing") + more
