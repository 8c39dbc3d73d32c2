"""Official Web-MAE files under the names of transformers' ViTModel, which is their Hugging Face form.

The files hold timm's vision transformer: an ordinary GELU MLP, no LayerScale, query, key and value in one matrix. Names
and sizes are those of the model code released with Web-SSL (arXiv 2504.01017), and of transformers' ViT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from webssl_fast.errors import UserError

# (width, depth, patch size) -> attention heads, which no shape tells.
NUM_HEADS = {
    (1024, 24, 16): 16,
    (1280, 32, 14): 16,
    (1536, 40, 14): 24,
    (2688, 24, 14): 21,
    (3072, 26, 14): 24,
}
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_QKV = ("query", "key", "value")
_NUM_DIMS = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}


def is_web_mae(content: Mapping[str, Any]) -> bool:
    """Whether the content of a .pth is a Web-MAE network rather than a Web-DINO one."""
    return "blocks.0.mlp.fc1.weight" in content and "cls_token" in content


def mae_to_hugging_face(content: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a ViTModel. Raises UserError, naming the file, for a tensor that is missing or unknown, and
    for a size that was not published."""
    state: dict[str, Tensor] = {}
    faults = []
    for key, tensor in content.items():
        names = _renamed(key)
        if not names:
            faults.append(f"{key} is not part of it")
        elif not isinstance(tensor, Tensor) or not tensor.ndim or tensor.ndim != _NUM_DIMS.get(key, tensor.ndim):
            faults.append(f"{key} is ill-shaped")
        elif tensor.shape[0] % len(names):
            faults.append(f"{key} does not divide into {', '.join(_QKV)}")
        else:
            state.update(zip(names, tensor.chunk(len(names)), strict=True))
    depth = len({key.split(".")[1] for key in content if key.startswith("blocks.")})
    both = ("weight", "bias")
    expected = ["cls_token", "pos_embed", *(f"{name}.{kind}" for name in ("patch_embed.proj", "norm") for kind in both)]
    for i in range(depth):
        expected += [f"blocks.{i}.{part}.{kind}" for part in ("attn.qkv", *_BLOCK_NAMES) for kind in both]
    faults = [f"{key} is missing" for key in expected if key not in content] + faults
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{source} does not hold a Web-MAE network: {'; '.join(faults[:5])}{more}")
    width, patch_size = content["cls_token"].shape[-1], content["patch_embed.proj.weight"].shape[-1]
    size = (width, depth, patch_size)
    if size not in NUM_HEADS:
        known = "; ".join(", ".join(map(str, each)) for each in NUM_HEADS)
        raise UserError(f"{source} is a Web-MAE of width, blocks and patch size {size}; published are {known}")
    config = {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": NUM_HEADS[size],
        "intermediate_size": content["blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": math.isqrt(content["pos_embed"].shape[1] - 1) * patch_size,
        "patch_size": patch_size,
        "layer_norm_eps": 1e-6,
    }
    return config, state


def _renamed(key: str) -> list[str]:
    """A key's names in transformers: three for a matrix that is cut in three, none for a key that is not known."""
    if key in _NAMES:
        return [_NAMES[key]]
    name, _, kind = key.rpartition(".")
    if name in _NAMES:
        return [f"{_NAMES[name]}.{kind}"]
    if name.startswith("blocks.") and name.count(".") >= 2:
        _, block, part = name.split(".", 2)
        prefix = f"encoder.layer.{block}."
        if part == "attn.qkv":
            return [f"{prefix}attention.attention.{each}.{kind}" for each in _QKV]
        if part in _BLOCK_NAMES:
            return [f"{prefix}{_BLOCK_NAMES[part]}.{kind}"]
    return []
