import math

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from webssl_fast.config.schema import ModelConfig
from webssl_fast.models.block import KeptSequences
from webssl_fast.models.embed import interpolate_pos_embed
from webssl_fast.models.vit import VisionTransformer


def make(**overrides) -> VisionTransformer:
    config = ModelConfig(**{"preset": "vit_nano_patch14", "image_size_px": 98, "layer_scale_init": 0.5, **overrides})
    model = VisionTransformer(config)
    model.initialize(0, "backbone")
    generator = torch.Generator().manual_seed(1)
    state = {  # values that no symmetry hides
        name: value + torch.empty(value.shape).normal_(std=0.05, generator=generator)
        for name, value in model.unpadded_state_dict().items()
    }
    model.assign_unpadded(state)
    return model


def hugging_face_twin(model: VisionTransformer, folder) -> nn.Module:
    """transformers' Dinov2Model with the same weights, through a folder in the published layout."""
    config = transformers.Dinov2Config(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.blocks[0].attn.num_heads,
        mlp_ratio=4,
        image_size=model.config.image_size_px,
        patch_size=model.patch_size,
        use_swiglu_ffn=True,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
    )
    state = {
        "embeddings.cls_token": model.cls_token,
        "embeddings.mask_token": model.mask_token,
        "embeddings.position_embeddings": model.pos_embed,
        "embeddings.patch_embeddings.projection.weight": model.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": model.patch_embed.proj.bias,
        "layernorm.weight": model.norm.weight,
        "layernorm.bias": model.norm.bias,
    }
    for i, block in enumerate(model.blocks):
        to = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            q, k, v = getattr(block.attn.qkv, kind).chunk(3)
            for part, value in zip(("query", "key", "value"), (q, k, v), strict=True):
                state[f"{to}attention.attention.{part}.{kind}"] = value
            state[f"{to}attention.output.dense.{kind}"] = getattr(block.attn.proj, kind)
            state[f"{to}mlp.weights_in.{kind}"] = getattr(block.mlp.w12, kind)
            state[f"{to}mlp.weights_out.{kind}"] = getattr(block.mlp.w3, kind)
            state[f"{to}norm1.{kind}"] = getattr(block.norm1, kind)
            state[f"{to}norm2.{kind}"] = getattr(block.norm2, kind)
        state[f"{to}layer_scale1.lambda1"] = block.ls1.gamma
        state[f"{to}layer_scale2.lambda1"] = block.ls2.gamma
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    twin, info = transformers.Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return twin.eval()


@pytest.mark.parametrize(
    ("image_px", "interpolation"), [(98, "scale_offset"), (98, "size"), (126, "size"), (70, "size")]
)
def test_equals_transformers_dinov2(tmp_path, image_px, interpolation):
    model = make(pos_embed_interpolation=interpolation)
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model([images])[0]
        theirs = hugging_face_twin(model, tmp_path)(images).last_hidden_state
    torch.testing.assert_close(ours.cls_token, theirs[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.patch_tokens, theirs[:, 1:], atol=1e-5, rtol=1e-5)


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def interpolation_matrix(out_size: int, in_size: int) -> torch.Tensor:
    """Bicubic weights at a sampling scale of (out + 0.1) / in, from the formula: source = (i + 0.5) / scale - 0.5."""
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    for i in range(out_size):
        source = (i + 0.5) * in_size / (out_size + 0.1) - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            matrix[i, min(max(tap, 0), in_size - 1)] += cubic(source - tap)
    return matrix


@pytest.mark.parametrize("side", [3, 5, 9, 14])
def test_scale_offset_interpolation_matches_its_formula(side):
    M, D = 7, 4
    pos = torch.randn(1, 1 + M * M, D, generator=torch.Generator().manual_seed(3))
    W = interpolation_matrix(side, M)
    expected = torch.einsum("im,jn,mnd->ijd", W, W, pos[0, 1:].double().view(M, M, D)).reshape(-1, D)
    got = interpolate_pos_embed(pos, side, side, "scale_offset")
    assert torch.equal(got[:, 0], pos[:, 0])
    torch.testing.assert_close(got[0, 1:].double(), expected, atol=1e-5, rtol=1e-5)
    by_size = interpolate_pos_embed(pos, side, side, "size")
    assert (by_size - got).abs().max() > 1e-3, "the two ways should differ off the native resolution"


def test_packed_pass_equals_separate_passes():
    model = make()
    a = torch.randn(3, 3, 98, 98)
    b = torch.randn(4, 3, 42, 42)
    mask = torch.rand(3, 49) < 0.3
    with torch.no_grad():
        packed = model([a, b], [mask, None])
        alone_a, alone_b = model([a], [mask])[0], model([b])[0]
    torch.testing.assert_close(packed[0].patch_tokens, alone_a.patch_tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1].cls_token, alone_b.cls_token, atol=1e-5, rtol=1e-5)


def test_masked_patches_do_not_see_their_pixels():
    model = make()
    images = torch.randn(1, 3, 98, 98)
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[0, 0] = True
    changed = images.clone()
    changed[:, :, :14, :14] += 1
    with torch.no_grad():
        same, other = model([images], [mask])[0], model([changed], [mask])[0]
        unmasked = model([changed])[0]
    assert torch.equal(same.patch_tokens, other.patch_tokens)
    assert not torch.equal(same.patch_tokens, unmasked.patch_tokens)


def test_drop_path_leaves_dropped_sequences_and_scales_kept_ones():
    model = make()
    block = model.blocks[0]
    length, kept_sequence = 5, 1
    x = torch.randn(3 * length, model.width)
    index = torch.arange(kept_sequence * length, (kept_sequence + 1) * length)
    kept = KeptSequences(index, ((1, length),), torch.full((length, 1), 3.0))
    nothing = KeptSequences(index[:0], ((0, length),), torch.zeros(0, 1))
    with torch.no_grad():
        out = block(x, ((3, length),), (kept, nothing))
        alone = x[index] + 3.0 * block.ls1(block.attn(block.norm1(x[index]), ((1, length),)))
    torch.testing.assert_close(out[index], alone)
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[index] = False
    assert torch.equal(out[rest], x[rest])


def test_swiglu_padding_changes_nothing_and_exports_exactly():
    plain, padded = make(), make(swiglu_pad_multiple=64)
    hidden, wide = plain.blocks[0].mlp.w3.in_features, padded.blocks[0].mlp.w3.in_features
    assert (hidden, wide) == (176, 192)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in (plain, padded)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        images = torch.randn(2, 3, 98, 98, generator=generator)
        for model, optimizer in zip((plain, padded), optimizers, strict=True):
            optimizer.zero_grad()
            model([images])[0].patch_tokens.square().mean().backward()
            optimizer.step()
    exported = padded.unpadded_state_dict()
    for name, value in plain.state_dict().items():  # two trainings, which add up in another order
        torch.testing.assert_close(exported[name], value, atol=2e-3, rtol=2e-3)
    for block in padded.blocks:
        assert not block.mlp.w12.weight.view(2, wide, -1)[:, hidden:].any()
        assert not block.mlp.w12.bias.view(2, wide)[:, hidden:].any() and block.mlp.w12.bias.any()
        assert not block.mlp.w3.weight[:, hidden:].any()
    again = make(swiglu_pad_multiple=64)
    again.assign_unpadded(exported)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in padded.state_dict().items())
    plain.load_state_dict(exported)
    with torch.no_grad():
        features = [model([images])[0].patch_tokens for model in (plain, padded)]
        torch.testing.assert_close(*features, atol=1e-5, rtol=1e-5)


def test_swiglu_padding_starts_from_the_same_weights():
    plain, padded = make().state_dict(), make(swiglu_pad_multiple=64).unpadded_state_dict()
    assert all(torch.equal(value, padded[name]) for name, value in plain.items())


def test_padding_that_learned_something_is_not_thrown_away():
    padded = make(swiglu_pad_multiple=64)
    with torch.no_grad():
        padded.blocks[1].mlp.w3.weight[0, -1] = 1
    with pytest.raises(ValueError, match="blocks.1.mlp.w3.weight has padding units"):
        padded.unpadded_state_dict()


def test_initialisation_depends_on_the_seed_alone():
    def weights(seed):
        model = VisionTransformer(ModelConfig(preset="vit_nano_patch14", image_size_px=98))
        torch.manual_seed(torch.seed())
        model.initialize(seed, "backbone")
        return model.state_dict()

    first, second, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not any(v.isnan().any() for v in first.values())


def test_rejects_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="224.*238|210.*224"):
        VisionTransformer(ModelConfig(preset="vit_nano_patch14", image_size_px=225))
    with pytest.raises(ValueError, match="100x98"):
        make()([torch.zeros(1, 3, 100, 98)])
