"""Sizes as data.

Sizes of Web-DINO and Web-MAE: Web-SSL (arXiv 2504.01017) Table 1 and its released model code. The table's "MLP" column
is nominal for Web-DINO, whose SwiGLU has the hidden size of `swiglu_hidden_dim`. The 5B of Web-MAE (Table 11) was not
released; its shape is taken from Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from webssl_fast.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """What networks of all sizes have in common.

    mlp             "swiglu"; "gelu": two layers, hidden size 4 x width
    layer_scale     a learned factor for each channel of a residual branch
    positions       an embedding that is "learned", or the fixed one of sines and cosines
    mask_token      a learned token that stands in for masked patches
    initialization  of DINOv2 (truncated normal) or MAE (Xavier)
    """

    mlp: Literal["swiglu", "gelu"]
    layer_scale: bool
    positions: Literal["learned", "sine_cosine"]
    mask_token: bool
    initialization: Literal["dinov2", "mae"]


WEB_DINO = Architecture("swiglu", layer_scale=True, positions="learned", mask_token=True, initialization="dinov2")
WEB_MAE = Architecture("gelu", layer_scale=False, positions="sine_cosine", mask_token=False, initialization="mae")


@dataclass(frozen=True)
class ViTPreset:
    width: int
    depth: int
    num_heads: int
    patch_size: int = 14
    architecture: Architecture = WEB_DINO

    def hidden_dim(self, swiglu_pad_multiple: int = 1) -> int:
        """Hidden size of the MLP."""
        if self.architecture.mlp == "gelu":
            return 4 * self.width
        return swiglu_hidden_dim(self.width, swiglu_pad_multiple)


PRESETS = {
    "vit_nano_patch14": ViTPreset(64, 2, 2),  # for tests
    "vit_tiny_patch14": ViTPreset(192, 12, 3),
    "vit_small_patch14": ViTPreset(384, 12, 6),
    "vit_base_patch14": ViTPreset(768, 12, 12),
    "vit_300m_patch14": ViTPreset(1024, 24, 16),
    "vit_1b_patch14": ViTPreset(1536, 40, 24),
    "vit_2b_patch14": ViTPreset(2688, 24, 21),
    "vit_3b_patch14": ViTPreset(3072, 26, 24),
    "vit_5b_patch14": ViTPreset(3584, 32, 28),
    "vit_7b_patch14": ViTPreset(4096, 32, 32),
    "vit_7b_slice_patch14": ViTPreset(4096, 8, 32),  # eight of the 7B's blocks, to be measured on one GPU
    "vit_mae_nano_patch14": ViTPreset(64, 2, 2, architecture=WEB_MAE),  # for tests
    "vit_mae_tiny_patch14": ViTPreset(192, 12, 3, architecture=WEB_MAE),
    "vit_mae_base_patch16": ViTPreset(768, 12, 12, 16, architecture=WEB_MAE),
    "vit_mae_300m_patch16": ViTPreset(1024, 24, 16, 16, architecture=WEB_MAE),
    "vit_mae_700m_patch14": ViTPreset(1280, 32, 16, architecture=WEB_MAE),
    "vit_mae_1b_patch14": ViTPreset(1536, 40, 24, architecture=WEB_MAE),
    "vit_mae_2b_patch14": ViTPreset(2688, 24, 21, architecture=WEB_MAE),
    "vit_mae_3b_patch14": ViTPreset(3072, 26, 24, architecture=WEB_MAE),
    "vit_mae_5b_patch14": ViTPreset(3584, 32, 28, architecture=WEB_MAE),
}


def swiglu_hidden_dim(width: int, pad_multiple: int = 1) -> int:
    """Two thirds of 4x the width, rounded up to a multiple of 8, as DINOv2 and Web-SSL have it; then up to
    `pad_multiple` (FP8 GEMMs want 16 or more; 9560 and 10928 of the 5B and 7B are not)."""
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    return -(-hidden // pad_multiple) * pad_multiple


def check_architecture(name: str, wanted: Architecture, method: str) -> None:
    """ConfigError where the preset of that name is not of the architecture that a method trains."""
    if preset(name).architecture != wanted:
        known = ", ".join(key for key, size in PRESETS.items() if size.architecture == wanted)
        raise ConfigError(f"model.preset is {name}, which method.name={method} does not train; allowed: {known}")


def refuse_drop_path(rate: float, method: str) -> None:
    """ConfigError where a run asks for drop-path of a method that has none."""
    if rate > 0:
        raise ConfigError(f"model.drop_path_rate is {rate}, but method.name={method} has no drop-path; set it to 0")


def preset(name: str) -> ViTPreset:
    """The preset of that name; ConfigError with the known names otherwise."""
    if name not in PRESETS:
        import difflib

        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"model.preset: no preset {name!r}; {hint}known: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class TextPreset:
    width: int
    depth: int
    num_heads: int


# The text towers of OpenAI's CLIP B and L (arXiv 2103.00020, Table 19), OpenCLIP's H, and its bigG, which MetaCLIP's
# largest model has.
TEXT_PRESETS = {
    "text_nano": TextPreset(64, 2, 2),  # for tests
    "text_tiny": TextPreset(192, 6, 3),
    "text_small": TextPreset(512, 12, 8),
    "text_base": TextPreset(768, 12, 12),
    "text_large": TextPreset(1024, 24, 16),
    "text_bigg": TextPreset(1280, 32, 20),
}


def text_preset(name: str) -> TextPreset:
    """The preset of that name; ConfigError with the known names otherwise."""
    if name not in TEXT_PRESETS:
        raise ConfigError(f"method.text.preset: no preset {name!r}; known: {', '.join(TEXT_PRESETS)}")
    return TEXT_PRESETS[name]
