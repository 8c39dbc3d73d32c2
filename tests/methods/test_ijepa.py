import numpy as np
import pytest
import torch

from tests.methods.tiny import batch_at, tiny_ijepa
from tests.methods.vit_fp64 import blocks_fp64, patch_tokens_fp64, positions_fp64
from webssl_fast.errors import ConfigError
from webssl_fast.methods.base import Method
from webssl_fast.records import Batch

SIDE = 6


def noise(method, first_position=0, num_images=4):
    return batch_at(method, np.arange(first_position, first_position + num_images))


def parts(whole, *sizes):
    """The batch as several, each with what was prepared for its images."""
    batches, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        host = {name: tensor[rows] for name, tensor in whole.host.items()}
        batches.append(
            Batch(whole.positions[rows], whole.sample_ids[rows], [whole.crops[0][:, rows]], whole.labels[rows], host)
        )
        start += size
    return batches


def shaken(method):
    """Values that no symmetry hides; student and teacher apart from each other."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return method


def encoded_fp64(p, network, tokens_ND, patches):
    pos = positions_fp64(64, SIDE)
    rows = [p[f"{network}.cls_token"][0] + pos[:1], tokens_ND[patches] + pos[1:][patches]]
    return blocks_fp64(p, f"{network}.", torch.cat(rows)[None], num_heads=2)[0, 1:]


def objective_fp64(p, batch, loss):
    """I-JEPA (Assran et al., arXiv 2301.08243, section 3), image by image and block by block."""
    images = batch.crops[0][0].double()
    pos, distances = positions_fp64(32, SIDE)[1:], []
    seen, known = (patch_tokens_fp64(p, images, f"{network}.backbone.").unbind() for network in ("student", "teacher"))
    for b, context in enumerate(batch.host["context_BK"].tolist()):
        target_NE = encoded_fp64(p, "teacher.backbone", known[b], list(range(SIDE**2)))
        deviation_NE = target_NE - target_NE.mean(-1, keepdim=True)
        target_NE = deviation_NE / (deviation_NE.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        context_KE = encoded_fp64(p, "student.backbone", seen[b], context)
        context_KD = context_KE @ p["student.predictor.embed.weight"].T + p["student.predictor.embed.bias"]
        for block in batch.host["targets_BSM"][b].tolist():
            x = torch.cat([context_KD + pos[context], p["student.predictor.mask_token"] + pos[block]])
            y = blocks_fp64(p, "student.predictor.", x[None], num_heads=2)[0, len(context) :]
            y = y @ p["student.predictor.to_features.weight"].T + p["student.predictor.to_features.bias"]
            error = (y - target_NE[block].detach()).abs()
            if loss == "l2":
                distances.append((error**2).mean())
            else:
                distances.append(torch.where(error < 1, error**2 / 2, error - 0.5).mean())
    return torch.stack(distances).mean()


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
def test_loss_and_gradients_match_the_formula(loss):
    method = shaken(tiny_ijepa(loss=loss, context_ratio=0.2))
    batch = noise(method)
    p = {name: parameter.detach().double().requires_grad_() for name, parameter in method.named_parameters()}
    expected = objective_fp64(p, batch, loss)
    found, _ = method.training_step(batch, step=0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    trained = dict(method.student.named_parameters(prefix="student"))
    ours = torch.autograd.grad(found, list(trained.values()))
    theirs = torch.autograd.grad(expected, [p[name] for name in trained])
    for name, a, b in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_keeps_the_protocol():
    method = tiny_ijepa(init=False)
    assert isinstance(method, Method) and not method.wants_captions and method.balanced_over_pass is None
    assert list(method.trained_modules()) == ["backbone", "predictor"]
    grouped = [id(p) for g in method.parameter_groups() for p in g.parameters]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in method.student.parameters()}
    assert {id(p) for p in method.parameters() if p.requires_grad} == set(grouped)
    (recipe,) = method.crop_recipes()
    assert (recipe.size_px, recipe.scale, recipe.flip_probability) == (84, (0.3, 1.0), 0.0)
    assert not recipe.jitter_probability + recipe.blur_probability + recipe.grayscale_probability


def test_masks_are_a_pure_function_of_seed_and_position():
    method = tiny_ijepa(init=False)
    whole = noise(method, num_images=8).host
    assert whole["context_BK"].shape == (8, 9) and whole["targets_BSM"].shape == (8, 4, 6)
    later = noise(method, first_position=4).host
    other = noise(tiny_ijepa(init=False, seed=1), num_images=8).host
    for name, drawn in whole.items():
        assert drawn.dtype == torch.int64
        assert torch.equal(later[name], drawn[4:]) and not torch.equal(other[name], drawn)
    assert len({str(row) for row in whole["targets_BSM"].tolist()}) == 8


def pixels_changed(batch, patches_of_image):
    changed = batch.crops[0].clone()
    for b, patches in enumerate(patches_of_image):
        for row, column in (divmod(n, SIDE) for n in patches):
            changed[0, b, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] += torch.randn(3, 14, 14)
    return changed[0]


def test_only_the_context_is_seen():
    method = tiny_ijepa()
    batch = noise(method)
    context_BK, targets_BSM = batch.host["context_BK"], batch.host["targets_BSM"]
    changed = pixels_changed(batch, [set(range(SIDE**2)) - set(row) for row in context_BK.tolist()])
    with torch.no_grad():
        ours, others = (
            method.predict_targets(images, context_BK, targets_BSM) for images in (batch.crops[0][0], changed)
        )
        assert torch.equal(ours, others)
        # The target encoder does see them.
        targets = [method.target_features(images, targets_BSM) for images in (batch.crops[0][0], changed)]
    assert not torch.allclose(*targets)


def test_blocks_are_predicted_one_at_a_time():
    method = shaken(tiny_ijepa())
    batch = noise(method)
    images, context_BK, targets_BSM = batch.crops[0][0], batch.host["context_BK"], batch.host["targets_BSM"]
    with torch.no_grad():
        together = method.predict_targets(images, context_BK, targets_BSM).view(4, 4, 6, -1)
        alone = method.predict_targets(images, context_BK, targets_BSM[:, 2:3]).view(4, 6, -1)
    torch.testing.assert_close(together[:, 2], alone)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    """So gradients that are accumulated, or averaged over ranks, are those of one pass."""
    method = tiny_ijepa()
    whole = noise(method, num_images=8)
    losses = [method.training_step(part, 0)[0].item() for part in parts(whole, 4, 4)]
    assert method.training_step(whole, 0)[0].item() == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_the_target_encoder_is_an_average_of_the_context_encoder():
    method = tiny_ijepa(num_steps=10)
    student, teacher = method.student.backbone, method.teacher.backbone
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    before = [p.clone() for p in teacher.parameters()]
    shaken(method.student)
    method.after_step(5)
    for average, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(average, 0.998 * old + 0.002 * new.detach())
    assert [method.schedule_values(step)["ema_momentum"] for step in (0, 10)] == [0.996, 1.0]


def test_what_is_judged_is_the_patch_mean_of_the_target_encoder():
    method = shaken(tiny_ijepa())
    encoder, images = method.encoder(), noise(method).crops[0][0]
    with torch.no_grad():
        found, (of_block,) = encoder(images), encoder.block_features(images, [-1])
        expected = method.teacher.backbone([images])[0].patch_tokens
    assert encoder.cls_source == "patch_mean"
    for features in (found, of_block):
        assert torch.equal(features.patch_tokens, expected)
        assert torch.equal(features.cls_token, expected.mean(dim=1))


def test_equal_targets_have_no_deviation():
    method = shaken(tiny_ijepa())
    batch = noise(method)
    assert method.training_step(batch, 0)[1]["target_deviation"] > 0.1
    batch.crops[0][:] = 0.5
    method.teacher.backbone.pos_embed.zero_()
    assert method.training_step(batch, 0)[1]["target_deviation"] < 1e-5


def test_a_run_that_starts_on_meta_ends_equal():
    with torch.device("meta"):
        described = tiny_ijepa(init=False)
    described.to_empty(device="cpu")
    described.initialize(0)
    direct = tiny_ijepa().state_dict()
    assert all(torch.equal(v, direct[k]) for k, v in described.state_dict().items())
    assert not any(v.isnan().any() for v in direct.values())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"drop_path_rate": 0.1}, "model.drop_path_rate is 0.1, but method.name=ijepa has no drop-path"),
        ({"preset": "vit_nano_patch14"}, "vit_nano_patch14, which method.name=ijepa does not train; allowed: vit_mae"),
        ({"predictor_width": 30}, "method.predictor_width is 30, which must be a multiple of"),
        ({"image_size_px": 56}, r"no rectangle of patches in a grid of 4 x 4 is within both; widen one of them"),
        ({"context_scale": (0.85, 0.9)}, r"method.context_scale is \(0.85, 0.9\), but no square of patches"),
        ({"context_ratio": 0.9}, "method.context_ratio is 0.9, which is 32 of 36 patches; .* from 1 to the 30"),
        ({"context_ratio": 0.01}, "method.context_ratio is 0.01, which is 0 of 36 patches"),
    ],
)
def test_rejects_what_it_cannot_do(overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        tiny_ijepa(init=False, **overrides)
