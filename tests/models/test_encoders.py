"""Our own network as an Encoder: any block, with or without the final norm, at any size."""

import pytest
import torch

from webssl_fast.config.schema import ModelConfig
from webssl_fast.models.encoders import BackboneEncoder, Encoder, compile_encoder
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.records import Preprocessing


@pytest.fixture(scope="module")
def encoder():
    backbone = VisionTransformer(ModelConfig(preset="vit_tiny_patch14", image_size_px=56, layer_scale_init=0.5))
    backbone.initialize(0, "backbone")
    return BackboneEncoder(backbone, "tiny").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 70, 42, generator=torch.Generator().manual_seed(0))


def test_is_an_encoder(encoder):
    assert isinstance(encoder, Encoder)
    assert (encoder.patch_size, encoder.width, encoder.num_blocks, encoder.image_size_px) == (14, 192, 12, 56)
    assert encoder.preprocessing == Preprocessing(resize_px=64, crop_px=56)


def test_last_block_is_what_a_call_gives(encoder, images):
    called, (last,) = encoder(images), encoder.block_features(images, [-1])
    assert called.cls_token.shape == (2, 192) and called.patch_tokens.shape == (2, 15, 192)
    assert torch.equal(called.cls_token, last.cls_token) and torch.equal(called.patch_tokens, last.patch_tokens)


def test_every_block_follows_from_the_one_before(encoder, images):
    backbone = encoder.backbone
    raw = encoder.block_features(images, range(12), final_norm=False)
    normed = encoder.block_features(images, range(12))
    for i in range(1, 12):
        before = torch.cat([raw[i - 1].cls_token[:, None], raw[i - 1].patch_tokens], 1)
        after = backbone.blocks[i](before.flatten(0, 1), ((2, 16),)).view(2, 16, 192)
        torch.testing.assert_close(raw[i].cls_token, after[:, 0])
        torch.testing.assert_close(raw[i].patch_tokens, after[:, 1:])
        torch.testing.assert_close(normed[i].patch_tokens, backbone.norm(after[:, 1:]))


def test_blocks_come_in_the_order_asked_for(encoder, images):
    found = encoder.block_features(images, [-1, 3, 0, 3])
    alone = [encoder.block_features(images, [i])[0] for i in (11, 3, 0, 3)]
    for several, one in zip(found, alone, strict=True):
        assert torch.equal(several.cls_token, one.cls_token)


@pytest.mark.parametrize("blocks", [[12], [-13], []])
def test_refuses_blocks_that_are_not_there(encoder, images, blocks):
    with pytest.raises(ValueError, match=r"blocks: got .*allowed are one or more of 0 to 11, or -1 to -12"):
        encoder.block_features(images, blocks)


def test_preprocessing_keeps_its_ratio_at_other_sizes():
    assert Preprocessing(256, 224).at(518) == Preprocessing(592, 518)
    assert Preprocessing(224, 224, "bilinear", keep_aspect=False).at(384).resize_px == 384


def test_compiled_it_says_the_same(images):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    backbone = VisionTransformer(ModelConfig(preset="vit_nano_patch14", image_size_px=56, layer_scale_init=0.5))
    backbone.initialize(0, "backbone")
    encoder = BackboneEncoder(backbone, "nano").eval().requires_grad_(False)
    expected = encoder.block_features(images, [0, 1])
    compile_encoder(encoder, backend)
    for found, wanted in zip(encoder.block_features(images, [0, 1]), expected, strict=True):
        torch.testing.assert_close(found.patch_tokens, wanted.patch_tokens)
    assert graphs, "nothing was compiled"
