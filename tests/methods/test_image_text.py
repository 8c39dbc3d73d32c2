"""CLIP and SigLIP on their own: what they ask of a config, what they train, what they say."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.tiny import noise_pairs, tiny_pairs_method
from webssl_fast.config.schema import ClipConfig, CropsConfig, ModelConfig, OptimConfig, TextConfig
from webssl_fast.errors import ConfigError
from webssl_fast.methods.base import Method
from webssl_fast.methods.clip import Clip
from webssl_fast.models.encoders import Encoder

METHODS = ["clip", "siglip"]


@pytest.mark.parametrize("name", METHODS)
def test_keeps_the_protocol_and_trains_everything_but_the_mask_token(name):
    method = tiny_pairs_method(name)
    assert isinstance(method, Method) and isinstance(method.encoder(), Encoder)
    loss, scalars = method.training_step(noise_pairs(method), 0)
    loss.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"backbone.mask_token"}
    assert "logit_scale" in scalars and not any(value.requires_grad for value in scalars.values())
    grouped = [p for group in method.parameter_groups() for p in group.parameters]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters()} and len(grouped) == len(set(grouped))


def test_a_first_loss_is_that_of_a_guess():
    """Untrained features are nearly the same for all: CLIP picks one of 8, at a scale of 1 exactly so."""
    method = tiny_pairs_method("clip", init_logit_scale=1e-3)
    loss, _ = method.training_step(noise_pairs(method), 0)
    assert loss.item() == pytest.approx(math.log(8), abs=1e-2)


@pytest.mark.parametrize("name", METHODS)
def test_the_scale_is_clamped(name):
    method = tiny_pairs_method(name, max_logit_scale=20.0)
    with torch.no_grad():
        method.logit_scale.log_scale.fill_(9.0)
    method.after_step(0)
    assert method.logit_scale()[0].item() == pytest.approx(20.0)


def test_biases_norms_and_the_scale_do_not_decay():
    method = tiny_pairs_method("siglip")
    names = {id(p): n for n, p in method.named_parameters()}
    fixed = {names[id(p)] for g in method.parameter_groups() if g.weight_decay_factor == 0 for p in g.parameters}
    scale = {"logit_scale.log_scale", "logit_scale.logit_bias"}
    assert scale | {"text.norm.weight", "text.blocks.0.mlp.fc1.bias"} <= fixed
    assert not {"text.token_embedding.weight", "joint.text_projection.weight", "text.pos_embed"} & fixed


def test_texts_alone_are_embedded_as_in_pairs():
    method = tiny_pairs_method("clip")
    batch = noise_pairs(method)
    _, text_BD = method.embed(batch.crops[0][0], batch.host["tokens_BN"], batch.host["num_tokens_B"])
    torch.testing.assert_close(method.embed_texts(batch.captions), text_BD)
    torch.testing.assert_close(text_BD.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ({"drop_path_rate": 0.1}, {}, "drop_path_rate is 0.1, but method.name=clip has no drop-path"),
        ({}, {"crops": CropsConfig(num=2, size_px=28, scale=(0.9, 1))}, "method.crops.num must be 1"),
        ({}, {"crops": CropsConfig(num=1, size_px=30, scale=(0.9, 1))}, "not a multiple of the patch size 14"),
        ({}, {"text": TextConfig(preset="text_huge")}, "no preset 'text_huge'"),
    ],
)
def test_rejects_what_does_not_fit(model, method, message):
    model = ModelConfig(preset="vit_nano_patch14", image_size_px=28, **model)
    method = {"crops": CropsConfig(num=1, size_px=28, scale=(0.9, 1)), **method}
    with pytest.raises(ConfigError, match=message):
        Clip(ClipConfig(**method), model, OptimConfig(), num_steps=1, group_size=1, seed=0)


def test_a_vocabulary_that_is_too_small_is_named():
    method = tiny_pairs_method("clip", text=TextConfig(preset="text_nano", vocabulary_size=1000), init=False)
    with pytest.raises(ConfigError, match="vocabulary_size is 1000, but the tokenizer has 49408 tokens"):
        method.initialize(0)
