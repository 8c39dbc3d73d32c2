"""A Web-MAE network under the names of transformers' ViTModel, which is its Hugging Face form.

The authors' files need no table: they hold timm's vision transformer, whose names are those of our VisionTransformer.
Names: transformers' conversion of ViT; the official folders hold an untrained pooler besides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

_KINDS = ("weight", "bias")
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    **{f"patch_embed.proj.{kind}": f"embeddings.patch_embeddings.projection.{kind}" for kind in _KINDS},
    **{f"norm.{kind}": f"layernorm.{kind}" for kind in _KINDS},
}
_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCK_NAMES = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in _PARTS.items() for kind in _KINDS}
_QKV = ("query", "key", "value")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_HF_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_UNTRAINED = ("pooler.",)


def is_web_mae(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a Web-MAE backbone rather than a Web-DINO one."""
    return "blocks.0.mlp.fc1.weight" in names


def to_vit_model(backbone: Mapping[str, Tensor]) -> State:
    """A backbone under the names of a ViTModel; query, key and value are views of our one matrix."""
    state: State = {}
    for name, tensor in backbone.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            state[_NAMES[name]] = tensor
        elif match[2].startswith("attn.qkv."):
            for part, third in zip(_QKV, tensor.chunk(3), strict=True):
                state[_qkv_name(match[1], part, match[2].rpartition(".")[2])] = third
        else:
            state[f"encoder.layer.{match[1]}.{_BLOCK_NAMES[match[2]]}"] = tensor
    return state


def from_vit_model(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """The inverse, and the names that no Web-MAE network has; what is missing is missing there too."""
    ours = {name: state[theirs] for name, theirs in _NAMES.items() if theirs in state}
    used = set(_NAMES.values())
    block_names = {theirs: name for name, theirs in _BLOCK_NAMES.items()}
    blocks = set()
    for key, tensor in state.items():
        if match := _HF_BLOCK.fullmatch(key):
            blocks.add(match[1])
            if match[2] in block_names:
                ours[f"blocks.{match[1]}.{block_names[match[2]]}"] = tensor
                used.add(key)
    for block in sorted(blocks):
        for kind in _KINDS:
            parts = [_qkv_name(block, part, kind) for part in _QKV]
            if all(part in state for part in parts):
                ours[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([state[part] for part in parts])
                used.update(parts)
    return ours, [key for key in state if key not in used and not key.startswith(_UNTRAINED)]


def _qkv_name(block: str, part: str, kind: str) -> str:
    return f"encoder.layer.{block}.attention.attention.{part}.{kind}"
