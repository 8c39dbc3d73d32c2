import pytest
import torch

from tests.methods.tiny import tiny_method
from webssl_fast.config.schema import OptimConfig
from webssl_fast.methods.parameter_groups import vit_parameter_groups


def factors(layerwise_decay=0.9, frozen=10):
    method = tiny_method(init=False)
    optim = OptimConfig(layerwise_decay=layerwise_decay, patch_embed_lr_factor=0.2)
    groups = vit_parameter_groups(method.student, 2, optim, frozen)
    return {
        name: (g.lr_factor, g.weight_decay_factor, g.scheduled_lr_off_steps)
        for name, p in method.student.named_parameters()
        for g in groups
        if any(q is p for q in g.parameters)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.cls_token", (0.9**3, 1, 0)),
        ("backbone.pos_embed", (0.9**3, 1, 0)),
        ("backbone.mask_token", (0.9**3, 1, 0)),
        ("backbone.patch_embed.proj.weight", (0.9**3 * 0.2, 1, 0)),
        ("backbone.patch_embed.proj.bias", (0.9**3 * 0.2, 0, 0)),
        ("backbone.blocks.0.attn.qkv.weight", (0.9**2, 1, 0)),
        ("backbone.blocks.1.norm1.weight", (0.9, 0, 0)),
        ("backbone.blocks.1.ls2.gamma", (0.9, 0, 0)),
        ("backbone.norm.weight", (1, 0, 0)),
        ("dino_head.mlp.0.weight", (1, 1, 0)),
        ("dino_head.mlp.0.bias", (1, 0, 0)),
        ("ibot_head.last_layer.weight_g", (1, 1, 10)),
        ("ibot_head.last_layer.weight_v", (1, 1, 10)),
    ],
)
def test_dinov2_rules(name, expected):
    assert factors()[name] == pytest.approx(expected)


def test_equal_factors_share_a_group():
    method = tiny_method(init=False)
    groups = vit_parameter_groups(method.student, 2, OptimConfig(layerwise_decay=1.0), 0)
    keys = [(g.lr_factor, g.weight_decay_factor, g.scheduled_lr_off_steps) for g in groups]
    assert len(keys) == len(set(keys)) == 4
    assert all(isinstance(p, torch.nn.Parameter) for g in groups for p in g.parameters)
