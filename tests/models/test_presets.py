import pytest
import torch

from webssl_fast.config.schema import ModelConfig
from webssl_fast.models.presets import preset, swiglu_hidden_dim
from webssl_fast.models.vit import VisionTransformer

# Web-SSL's released models: parameters at 224 px, real SwiGLU hidden sizes.
PUBLISHED = {
    "vit_300m_patch14": (303_655_168, 2736),
    "vit_1b_patch14": (1_134_771_200, 4096),
    "vit_2b_patch14": (2_084_237_568, 7168),
    "vit_3b_patch14": (2_948_317_184, 8192),
    "vit_5b_patch14": (4_938_338_816, 9560),
    "vit_7b_patch14": (6_450_170_880, 10928),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones_to_the_unit(name):
    with torch.device("meta"):
        model = VisionTransformer(ModelConfig(preset=name))
    num_parameters, hidden = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert all(block.mlp.w3.in_features == hidden for block in model.blocks)


# Web-MAE: width, blocks, patch size. A GELU MLP of 4x the width, no LayerScale, fixed positions (not counted).
WEB_MAE = {
    "vit_mae_300m_patch16": (1024, 24, 16),
    "vit_mae_700m_patch14": (1280, 32, 14),
    "vit_mae_1b_patch14": (1536, 40, 14),
    "vit_mae_2b_patch14": (2688, 24, 14),
    "vit_mae_3b_patch14": (3072, 26, 14),
    "vit_mae_5b_patch14": (3584, 32, 14),
}


@pytest.mark.parametrize("name", WEB_MAE)
def test_web_mae_sizes(name):
    with torch.device("meta"):
        model = VisionTransformer(ModelConfig(preset=name))
    width, depth, patch = WEB_MAE[name]
    block = 12 * width**2 + 13 * width
    expected = depth * block + (3 * patch**2 + 1) * width + width + 2 * width
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.pos_embed.shape == (1, 1 + (224 // patch) ** 2, width) and not model.pos_embed.requires_grad


def test_a_gelu_mlp_is_not_padded():
    with pytest.raises(ValueError, match="swiglu_pad_multiple is 64, but vit_mae_nano_patch14 has no SwiGLU"):
        VisionTransformer(ModelConfig(preset="vit_mae_nano_patch14", image_size_px=56, swiglu_pad_multiple=64))


def test_swiglu_padding_rounds_up():
    assert swiglu_hidden_dim(4096) == 10928
    assert swiglu_hidden_dim(4096, pad_multiple=64) == 10944
    assert swiglu_hidden_dim(4096, pad_multiple=128) == 11008
    assert swiglu_hidden_dim(3072, pad_multiple=64) == 8192


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'vit_7b_patch14'"):
        preset("vit_7b_patch16")
