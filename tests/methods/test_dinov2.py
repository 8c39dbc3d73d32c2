import numpy as np
import pytest
import torch

from tests.methods.tiny import noise_batch, tiny_method
from webssl_fast.methods.base import Method
from webssl_fast.methods.masking import group_masks, max_masked_patches
from webssl_fast.records import Batch


def sinkhorn_fp64(logits_RK, temperature, num_iterations=3):
    """DINOv2's Sinkhorn-Knopp, as its formula has it: alternate prototype and row normalisation of exp(logits / T)."""
    Q = torch.exp((logits_RK.double() - logits_RK.double().max()) / temperature).T
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(num_iterations):
        Q /= Q.sum(dim=1, keepdim=True) * K
        Q /= Q.sum(dim=0, keepdim=True) * B
    return (Q * B).T


def cross_entropy_fp64(target_K, student_K, temperature=0.1):
    return -(target_K * torch.log_softmax(student_K.double() / temperature, dim=-1)).sum()


def objective_fp64(method, batch, temperature):
    """The loss of DINOv2 (facts: 18-pair mean for 2 + 8 crops, iBOT over all global crops, KoLeo per view), pair by
    pair."""
    B, num_local = batch.num_images, batch.crops[1].shape[0]
    global_crops, local_crops = (c.flatten(0, 1) for c in batch.crops)
    mask_RN = batch.host["mask_RN"]
    student, teacher = method.student, method.teacher
    t = teacher.backbone([global_crops])[0]
    s_global = student.backbone([global_crops], [mask_RN])[0]
    s_local = student.backbone([local_crops])[0]
    targets = sinkhorn_fp64(teacher.dino_head(t.cls_token), temperature)
    logits = torch.cat([student.dino_head(s_global.cls_token), student.dino_head(s_local.cls_token)])
    dino, num_pairs = 0.0, 0
    for crop in range(2 + num_local):
        for view in range(2):
            if crop == view:
                continue
            num_pairs += 1
            for b in range(B):
                dino = dino + cross_entropy_fp64(targets[view * B + b], logits[crop * B + b]) / B
    dino = dino / num_pairs

    patch_targets = sinkhorn_fp64(teacher.ibot_head(t.patch_tokens[mask_RN]), temperature)
    patch_logits = student.ibot_head(s_global.patch_tokens[mask_RN])
    ibot, m = 0.0, 0
    for row in range(2 * B):
        count = int(mask_RN[row].sum())
        for _ in range(count):
            ibot = ibot + cross_entropy_fp64(patch_targets[m], patch_logits[m]) / count / (2 * B)
            m += 1

    koleo = 0.0
    for view in range(2):
        x = torch.nn.functional.normalize(s_global.cls_token[view * B : (view + 1) * B].double(), dim=-1)
        G = method.group_size
        for start in range(0, B, G):
            for i in range(start, start + G):
                others = [j for j in range(start, start + G) if j != i]
                nearest = max(others, key=lambda j: (x[i] @ x[j]).item())
                koleo = koleo - torch.log((x[i] - x[nearest] + 1e-8).norm() + 1e-8) / B
    return dino + ibot + 0.1 * koleo, {"dino": dino, "ibot": ibot, "koleo": koleo}


@pytest.mark.parametrize(("num_images", "group_size"), [(4, 4), (8, 4)])
def test_loss_and_gradients_match_the_formula(num_images, group_size):
    method = tiny_method(group_size=group_size)
    batch = noise_batch(method, num_images=num_images)
    temperature = method.schedule_values(0)["teacher_temperature"]
    loss, parts = method.training_step(batch, step=0)
    expected, expected_parts = objective_fp64(method, batch, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (parts["dino_global"] + parts["dino_local"]).item() == pytest.approx(expected_parts["dino"].item(), rel=1e-5)
    assert parts["ibot"].item() == pytest.approx(expected_parts["ibot"].item(), rel=1e-5)
    assert parts["koleo"].item() == pytest.approx(expected_parts["koleo"].item(), rel=1e-4)

    parameters = dict(method.student.named_parameters())
    ours = torch.autograd.grad(loss, list(parameters.values()))
    theirs = torch.autograd.grad(expected, list(parameters.values()))
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b, rtol=2e-3, atol=2e-6 + 1e-4 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_satisfies_the_protocol_and_names_its_modules():
    method = tiny_method()
    assert isinstance(method, Method)
    assert list(method.trained_modules()) == ["backbone", "dino_head", "ibot_head"]
    trained = {id(p) for m in method.trained_modules().values() for p in m.parameters()}
    grouped = [id(p) for g in method.parameter_groups() for p in g.parameters]
    assert len(grouped) == len(set(grouped)) and set(grouped) == trained
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_halves_of_a_batch_have_the_joint_masks_drop_paths_and_koleo():
    """What depends on neighbours is defined over fixed groups, so two ranks see what one would."""
    method = tiny_method(drop_path_rate=0.5)
    whole, halves = noise_batch(method, num_images=8), []
    for i in (0, 1):
        part = slice(4 * i, 4 * i + 4)
        crops = [c[:, part] for c in whole.crops]
        half = Batch(whole.positions[part], whole.sample_ids[part], crops, whole.labels[part])
        method.prepare(half)
        halves.append(half)
    masks = torch.cat([h.host["mask_RN"].view(2, 4, -1) for h in halves], dim=1).view(16, -1)
    assert torch.equal(masks, whole.host["mask_RN"])
    parts = [method.training_step(b, 0)[1] for b in (whole, *halves)]
    assert parts[0]["koleo"].item() == pytest.approx((parts[1]["koleo"] + parts[2]["koleo"]).item() / 2, rel=1e-5)


def test_drop_path_keeps_whole_sequences_in_the_stated_share():
    method = tiny_method(drop_path_rate=0.4)
    batch = noise_batch(method, num_images=8)
    tokens = batch.host["kept_tokens"]
    num_global, num_local = 2 * int(8 * 0.6), 2 * int(12 * 0.6)  # two groups of 4 images
    assert tokens.shape == (2, 2, num_global * 17 + num_local * 5)
    first = tokens[0, 0, : num_global * 17].view(-1, 17)
    assert torch.equal(first, first[:, :1] + torch.arange(17)) and not (first[:, 0] % 17).any()
    assert tokens.unique(dim=-1).shape == tokens.shape
    assert tokens.max() < 16 * 17 + 24 * 5
    assert not torch.equal(tokens[0, 0], tokens[0, 1]), "the branches choose separately"


def test_drop_path_keeps_the_expected_gradient_finite_and_trains():
    method = tiny_method(drop_path_rate=0.4)
    loss, _ = method.training_step(noise_batch(method), 0)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in method.student.parameters())


def test_blur_as_trained_and_as_written():
    trained, written = (tiny_method(blur=b, init=False).crop_recipes() for b in ("as_trained", "as_written"))
    assert [r.blur_probability for r in trained] == [0.0, 0.9, 0.5, 0.5, 0.5]
    assert [r.blur_probability for r in written] == [1.0, 0.1, 0.5, 0.5, 0.5]
    assert [r.solarize_probability for r in trained] == [0.0, 0.2, 0.0, 0.0, 0.0]


def test_teacher_follows_the_student_by_the_momentum():
    method = tiny_method(ema_momentum=(0.9, 0.9))
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0)
    for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)


def test_centering_targets():
    method = tiny_method(target="centering")
    batch = noise_batch(method)
    with torch.no_grad():
        logits = method.teacher.dino_head(method.teacher.backbone([batch.crops[0].flatten(0, 1)])[0].cls_token)
    loss, _ = method.training_step(batch, 0)
    assert loss.isfinite()
    torch.testing.assert_close(method.dino_targets.center_K, 0.1 * logits.mean(0), rtol=1e-4, atol=1e-6)
    logits, row_R, prototype_K = method.dino_targets(logits, 0.05)
    center = 0.1 * logits.double().mean(0)
    expected = torch.softmax((logits.double() - center) / 0.05, dim=-1)
    got = torch.exp(logits.double() / 0.05 + row_R[:, None].double() + prototype_K[None].double())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_run_that_starts_on_meta_ends_equal():
    with torch.device("meta"):
        described = tiny_method(init=False)
    described.to_empty(device="cpu")
    described.initialize(0)
    direct = tiny_method().state_dict()
    assert all(torch.equal(v, direct[k]) for k, v in described.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"local_crops": dict(num=8, size_px=96, scale=(0.05, 0.32))}, "local_crops.size_px is 96.*84 and 98"),
        ({"global_crops": dict(num=3, size_px=56, scale=(0.3, 1))}, "global_crops.num must be 2"),
    ],
)
def test_rejects_bad_crops(overrides, expected):
    with pytest.raises(ValueError, match=expected):
        tiny_method(init=False, **overrides)


def test_rejects_groups_of_one_and_batches_that_do_not_fall_into_groups():
    with pytest.raises(ValueError, match="KoLeo needs neighbours"):
        tiny_method(group_size=1, init=False)
    method = tiny_method(group_size=4)
    with pytest.raises(ValueError, match="groups of 4"):
        noise_batch(method, num_images=6)


def test_masks_are_a_pure_function_of_seed_and_position():
    a, b = tiny_method(), tiny_method()
    again = noise_batch(b, first_position=8)
    assert torch.equal(noise_batch(a, first_position=8).host["mask_RN"], again.host["mask_RN"])
    assert not np.array_equal(noise_batch(a, first_position=4).host["mask_RN"], again.host["mask_RN"])


@pytest.mark.parametrize("target", ["sinkhorn_knopp", "centering"])
def test_a_fixed_masked_count_changes_shapes_and_nothing_else(target):
    counts, plain, padded = set(), tiny_method(target=target), tiny_method(target=target, fixed_masked_count=True)
    for step in range(4):
        batches = [noise_batch(method, 4 * step, seed=step) for method in (plain, padded)]
        found = []
        for method, batch in zip((plain, padded), batches, strict=True):
            loss, parts = method.training_step(batch, step)
            gradient = torch.autograd.grad(loss, list(method.student.parameters()))
            found.append((loss, parts, gradient))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
        real = batches[1].host["masked_is_real_M"]
        assert torch.equal(batches[1].host["masked_index_M"][real], batches[0].host["masked_index_M"])
        assert len(real) > real.sum()  # a batch without padding would show nothing
        counts.add((len(real), len(batches[0].host["masked_index_M"])))
    assert len({fixed for fixed, _ in counts}) == 1 < len({drawn for _, drawn in counts})
    if target == "centering":
        torch.testing.assert_close(plain.ibot_targets.center_K, padded.ibot_targets.center_K)


def test_a_fixed_masked_count_needs_no_more_than_the_ratios_allow():
    grid, ratio = (16, 16), (0.1, 0.5)
    most = max_masked_patches(32, grid, 0.5, ratio)
    drawn = [group_masks(np.random.default_rng(i), 32, grid, 0.5, ratio).sum() for i in range(50)]
    assert max(drawn) <= most < 1.15 * np.mean(drawn)
