import numpy as np
import pytest
import torch

from tests.methods.tiny import noise_batch, tiny_mae
from tests.methods.vit_fp64 import blocks_fp64, patch_tokens_fp64, positions_fp64
from webssl_fast.methods.base import Method, Reconstructs
from webssl_fast.methods.parameter_groups import vit_parameter_groups
from webssl_fast.records import Batch


def objective_fp64(p, batch, normalize=True):
    """MAE (He et al., arXiv 2111.06377), image by image: encode what is visible, decode all, compare what is masked."""
    images = batch.crops[0][0].double()
    pos, decoder_pos = positions_fp64(64, 4), positions_fp64(32, 4)
    tokens = patch_tokens_fp64(p, images)
    errors = []
    for b, visible in enumerate(batch.host["visible_BV"].tolist()):
        x = torch.cat([p["backbone.cls_token"][0] + pos[:1], tokens[b, visible] + pos[1:][visible]])
        x = blocks_fp64(p, "backbone.", x[None], num_heads=2)[0]
        x = x @ p["decoder.embed.weight"].T + p["decoder.embed.bias"]
        rows = [x[0] + decoder_pos[0]]
        for n in range(16):
            token = x[1 + visible.index(n)] if n in visible else p["decoder.mask_token"][0]
            rows.append(token + decoder_pos[1 + n])
        y = blocks_fp64(p, "decoder.", torch.stack(rows)[None], num_heads=2)[0]
        y = y @ p["decoder.to_pixels.weight"].T + p["decoder.to_pixels.bias"]
        for n in set(range(16)) - set(visible):
            row, column = divmod(n, 4)
            target = images[b, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14].flatten()
            if normalize:
                deviation = target - target.mean()
                target = deviation / (deviation.square().sum() / (len(target) - 1) + 1e-6).sqrt()
            errors.append((y[1 + n] - target).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_and_gradients_match_the_formula(normalize):
    method = tiny_mae(normalize_pixels=normalize)
    with torch.no_grad():  # values that no symmetry hides
        generator = torch.Generator().manual_seed(1)
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    batch = noise_batch(method)
    p = {name: parameter.detach().double().requires_grad_() for name, parameter in method.named_parameters()}
    expected = objective_fp64(p, batch, normalize)
    loss, _ = method.training_step(batch, step=0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours = torch.autograd.grad(loss, list(method.parameters()))
    theirs = torch.autograd.grad(expected, list(p.values()))
    for name, a, b in zip(p, ours, theirs, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_encoder_is_the_whole_image_through_the_final_norm():
    method = tiny_mae()
    p = {name: parameter.detach().double() for name, parameter in method.named_parameters()}
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    cls = p["backbone.cls_token"].expand(2, -1, -1)
    x = torch.cat([cls, patch_tokens_fp64(p, images.double())], dim=1) + positions_fp64(64, 4)
    expected = blocks_fp64(p, "backbone.", x, num_heads=2)
    with torch.no_grad():
        found = method.encoder()(images)
    torch.testing.assert_close(found.cls_token.double(), expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patch_tokens.double(), expected[:, 1:], atol=1e-5, rtol=1e-5)


def test_satisfies_the_protocol_and_names_its_modules():
    method = tiny_mae()
    assert isinstance(method, Method)
    assert list(method.trained_modules()) == ["backbone", "decoder"]
    grouped = [id(p) for g in method.parameter_groups() for p in g.parameters]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in method.parameters()}
    (recipe,) = method.crop_recipes()
    assert (recipe.size_px, recipe.scale, recipe.flip_probability) == (56, (0.2, 1.0), 0.5)
    assert not recipe.jitter_probability + recipe.blur_probability + recipe.grayscale_probability


def test_the_decoder_learns_as_the_last_layer_does():
    method = tiny_mae(layerwise_decay=0.5, init=False)
    groups = vit_parameter_groups(method, 2, method.optim)
    factors = {p: (g.lr_factor, g.weight_decay_factor) for g in groups for p in g.parameters}
    found = {name: factors[p] for name, p in method.named_parameters()}
    assert found["backbone.blocks.0.mlp.fc1.weight"] == (0.25, 1) and found["backbone.blocks.1.norm1.bias"] == (0.5, 0)
    assert found["decoder.mask_token"] == found["decoder.blocks.0.mlp.fc1.weight"] == (1, 1)
    assert found["decoder.embed.bias"] == found["decoder.norm.weight"] == (1, 0)


def test_masks_are_a_pure_function_of_seed_and_position():
    method = tiny_mae()
    whole = noise_batch(method, num_images=8)
    visible, masked = whole.host["visible_BV"], whole.host["masked_BM"]
    assert visible.shape == (8, 4) and masked.shape == (8, 12)
    assert torch.equal(torch.cat([visible, masked], dim=1).sort().values, torch.arange(16).expand(8, 16))
    assert len({tuple(row) for row in visible.tolist()}) > 4
    assert torch.equal(noise_batch(tiny_mae(), first_position=4).host["visible_BV"], visible[4:])
    assert not torch.equal(noise_batch(tiny_mae(seed=1), num_images=8).host["visible_BV"], visible)


def test_every_patch_is_as_likely_to_be_seen():
    method = tiny_mae(init=False)
    positions = np.arange(4000)
    batch = Batch(positions, positions, [], torch.full((4000,), -1))
    method.prepare(batch)
    counts = torch.bincount(batch.host["visible_BV"].flatten(), minlength=16)
    # Binomial(4000, 1/4): mean 1000, standard deviation 27.
    assert (counts - 1000).abs().max() < 5 * 27.4


def test_what_is_masked_is_not_seen():
    method = tiny_mae()
    batch = noise_batch(method)
    changed = batch.crops[0].clone()
    for b, masked in enumerate(batch.host["masked_BM"].tolist()):
        for n in masked:
            row, column = divmod(n, 4)
            changed[0, b, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] += torch.randn(3, 14, 14)
    visible, masked = batch.host["visible_BV"], batch.host["masked_BM"]
    with torch.no_grad():
        predictions = [method.predict_masked(images, visible, masked) for images in (batch.crops[0][0], changed[0])]
    assert torch.equal(*predictions)


def test_the_loss_of_a_batch_is_the_mean_of_its_halves():
    """So gradients that are accumulated, or averaged over ranks, are those of one pass."""
    method = tiny_mae()
    whole = noise_batch(method, num_images=8)
    halves = []
    for i in (0, 4):
        part = slice(i, i + 4)
        half = Batch(whole.positions[part], whole.sample_ids[part], [whole.crops[0][:, part]], whole.labels[part])
        method.prepare(half)
        halves.append(method.training_step(half, 0)[0].item())
    assert method.training_step(whole, 0)[0].item() == pytest.approx(sum(halves) / 2, rel=1e-6)


def test_a_run_that_starts_on_meta_ends_equal():
    with torch.device("meta"):
        described = tiny_mae(init=False)
    described.to_empty(device="cpu")
    described.initialize(0)
    direct = tiny_mae().state_dict()
    assert all(torch.equal(v, direct[k]) for k, v in described.state_dict().items())
    assert not any(v.isnan().any() for v in direct.values())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"drop_path_rate": 0.1}, "model.drop_path_rate is 0.1, but method.name=mae has no drop-path"),
        (
            {"preset": "vit_nano_patch14"},
            "vit_nano_patch14, which method.name=mae does not train; allowed: vit_mae_nano",
        ),
        ({"mask_ratio": 0.97}, "method.mask_ratio is 0.97, which leaves 0 of 16 patches"),
        ({"decoder_width": 30, "decoder_num_heads": 2}, "method.decoder_width is 30, which must be a multiple of"),
    ],
)
def test_rejects_what_it_cannot_do(overrides, expected):
    with pytest.raises(ValueError, match=expected):
        tiny_mae(init=False, **overrides)


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstructions_keep_what_is_seen_and_are_as_near_as_the_loss_says(normalize):
    method = tiny_mae(normalize_pixels=normalize)
    assert isinstance(method, Reconstructs)
    batch = noise_batch(method)
    images = batch.crops[0][0]
    seen, reconstruction = method.reconstruct(images)
    hidden = seen == 0
    assert hidden.float().mean() == 0.75
    assert torch.equal(seen[~hidden], images[~hidden]) and torch.equal(reconstruction[~hidden], images[~hidden])
    error = torch.where(hidden, reconstruction - images, 0.0).unfold(2, 14, 14).unfold(3, 14, 14)
    if normalize:
        variance = images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).var(-1)
        error = error / (variance[:, None, :, :, None, None] + 1e-6).sqrt()
    loss = method.training_step(batch, 0)[0]
    assert error.square().sum() / hidden.sum() == pytest.approx(loss.item(), rel=1e-5)
