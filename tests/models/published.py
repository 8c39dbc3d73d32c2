"""The published layouts, written from what is known of them and not from our code: names, shapes, sizes.

Table 1 of Web-SSL (arXiv 2504.01017), its released model code (SwiGLU hidden sizes, four chunks of depth // 4 blocks),
and the Hugging Face names of DINOv2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    preset: str
    width: int
    depth: int
    heads: int
    hidden: int
    chunk_starts: tuple[int, ...]
    num_parameters: int | None = None  # at 224 px


SIZES = [
    Size("vit_300m_patch14", 1024, 24, 16, 2736, (0, 6, 12, 18), 303_655_168),
    Size("vit_1b_patch14", 1536, 40, 24, 4096, (0, 10, 20, 30), 1_134_771_200),
    Size("vit_2b_patch14", 2688, 24, 21, 7168, (0, 6, 12, 18), 2_084_237_568),
    Size("vit_3b_patch14", 3072, 26, 24, 8192, (0, 6, 12, 18, 24), 2_948_317_184),
    Size("vit_5b_patch14", 3584, 32, 28, 9560, (0, 8, 16, 24), 4_938_338_816),
    Size("vit_7b_patch14", 4096, 32, 32, 10928, (0, 8, 16, 24), 6_450_170_880),
]
NANO = Size("vit_nano_patch14", 64, 2, 2, 176, (0, 1))
TINY = Size("vit_tiny_patch14", 192, 12, 3, 512, (0, 3, 6, 9))


def block_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    D, F = size.width, size.hidden
    return {
        "norm1.weight": (D,),
        "norm1.bias": (D,),
        "attn.qkv.weight": (3 * D, D),
        "attn.qkv.bias": (3 * D,),
        "attn.proj.weight": (D, D),
        "attn.proj.bias": (D,),
        "ls1.gamma": (D,),
        "norm2.weight": (D,),
        "norm2.bias": (D,),
        "mlp.w12.weight": (2 * F, D),
        "mlp.w12.bias": (2 * F,),
        "mlp.w3.weight": (D, F),
        "mlp.w3.bias": (D,),
        "ls2.gamma": (D,),
    }


def authors_shapes(size: Size, image_px: int = 224, chunked: bool = True) -> dict[str, tuple[int, ...]]:
    D = size.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, (image_px // 14) ** 2 + 1, D),
        "mask_token": (1, D),
        "patch_embed.proj.weight": (D, 3, 14, 14),
        "patch_embed.proj.bias": (D,),
    }
    for block in range(size.depth):
        chunk = max(i for i, start in enumerate(size.chunk_starts) if start <= block)
        prefix = f"blocks.{chunk}.{block}." if chunked else f"blocks.{block}."
        shapes |= {prefix + name: shape for name, shape in block_shapes(size).items()}
    return shapes | {"norm.weight": (D,), "norm.bias": (D,)}


def hugging_face_shapes(size: Size, image_px: int = 224) -> dict[str, tuple[int, ...]]:
    D, F = size.width, size.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, D),
        "embeddings.mask_token": (1, D),
        "embeddings.position_embeddings": (1, (image_px // 14) ** 2 + 1, D),
        "embeddings.patch_embeddings.projection.weight": (D, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (D,),
        "layernorm.weight": (D,),
        "layernorm.bias": (D,),
    }
    linear = {
        **{f"attention.attention.{part}": (D, D) for part in ("query", "key", "value")},
        "attention.output.dense": (D, D),
        "mlp.weights_in": (2 * F, D),
        "mlp.weights_out": (D, F),
    }
    for block in range(size.depth):
        prefix = f"encoder.layer.{block}."
        for name, shape in linear.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for i in (1, 2):
            shapes |= {f"{prefix}norm{i}.weight": (D,), f"{prefix}norm{i}.bias": (D,)}
            shapes[f"{prefix}layer_scale{i}.lambda1"] = (D,)
    return shapes


def head_shapes(width: int, hidden: int, bottleneck: int, prototypes: int) -> dict[str, tuple[int, ...]]:
    return {
        "mlp.0.weight": (hidden, width),
        "mlp.0.bias": (hidden,),
        "mlp.2.weight": (hidden, hidden),
        "mlp.2.bias": (hidden,),
        "mlp.4.weight": (bottleneck, hidden),
        "mlp.4.bias": (bottleneck,),
        "last_layer.weight_g": (prototypes, 1),
        "last_layer.weight_v": (prototypes, bottleneck),
    }


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    """Values that no symmetry hides."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}


def meta_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def random_heads(size: Size = NANO, seed: int = 1) -> dict[str, Tensor]:
    """Heads of the smoke config's sizes, with bottlenecks that differ."""
    shapes = {f"dino_head.{name}": shape for name, shape in head_shapes(size.width, 32, 24, 64).items()}
    shapes |= {f"ibot_head.{name}": shape for name, shape in head_shapes(size.width, 32, 16, 64).items()}
    return random_state(shapes, seed)


def random_teacher(size: Size = NANO, image_px: int = 56) -> dict:
    """The content of a `..._ssl_teacher.pth`."""
    backbone = random_state(authors_shapes(size, image_px))
    return {"teacher": {**{f"backbone.{name}": tensor for name, tensor in backbone.items()}, **random_heads(size)}}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:5]
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
