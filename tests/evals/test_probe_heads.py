"""Fifty-two heads in one against fifty-two torch modules with optimizers of their own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from webssl_fast.evals.probe_heads import ProbeHeads, Variant, top_k_hits

WIDTH, NUM_CLASSES = 24, 10
VARIANTS = [Variant(num_blocks, patch_mean) for num_blocks in (1, 4) for patch_mean in (False, True)]
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


def batches(num_steps: int, batch: int = 16):
    """Per step: the patch mean and four class tokens (the last block's first), and labels that they tell of."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_CLASSES, 5, WIDTH, generator=generator)
    for _ in range(num_steps):
        labels = torch.randint(NUM_CLASSES, (batch,), generator=generator)
        yield centers[labels] + torch.randn(batch, 5, WIDTH, generator=generator), labels


def feature_of(tokens: torch.Tensor, variant: Variant) -> torch.Tensor:
    """The definition: class tokens of the last blocks, with or without the patch mean."""
    parts = [tokens[:, 0]] if variant.patch_mean else []
    return torch.cat([*parts, *(tokens[:, 1 + i] for i in range(variant.num_blocks))], 1)


def make_heads(rates=RATES, **options) -> ProbeHeads:
    return ProbeHeads(VARIANTS, rates, width=WIDTH, num_classes=NUM_CLASSES, seed=3, **options)


def test_matches_separate_modules():
    """40 steps on a cosine. Tolerance: 1e-5 of the largest weight; both are fp32 and sum in another order."""
    heads, num_steps = make_heads(), 40
    start = {name: tensor.clone() for name, tensor in heads.state().items()}
    modules, optimizers = {}, {}
    for variant in VARIANTS:
        for rate in RATES:
            name = f"{variant.name}_lr_{rate:g}"
            module = nn.Linear(WIDTH * (variant.num_blocks + variant.patch_mean), NUM_CLASSES)
            module.load_state_dict({part: start[f"{name}.{part}"] for part in ("weight", "bias")})
            modules[name] = variant, module
            optimizers[name] = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=0)
    assert len(modules) == len(heads) == 52 and list(modules) == heads.names()

    for step, (tokens, labels) in enumerate(batches(num_steps)):
        factor = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        expected = []
        for rate_name, (variant, module) in modules.items():
            optimizer = optimizers[rate_name]
            optimizer.param_groups[0]["lr"] = float(rate_name.split("_lr_")[1]) * factor
            loss = F.cross_entropy(module(feature_of(tokens, variant)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.detach())
        losses = heads.step(tokens.flatten(1), labels, lr_factor=factor, momentum=0.9)
        torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-6)

    state = heads.state()
    for name, (_, module) in modules.items():
        for part, expected_tensor in module.named_parameters():
            close = 1e-5 * expected_tensor.abs().max().item()
            torch.testing.assert_close(state[f"{name}.{part}"], expected_tensor.detach(), rtol=0, atol=close)
    moved = {name: (state[f"{name}.weight"] - start[f"{name}.weight"]).abs().max() for name in heads.names()}
    assert moved["blocks_1_lr_0.1"] > 100 * moved["blocks_1_lr_1e-05"] > 0


def test_initial_weights_are_normal_and_biases_zero():
    state = make_heads().state()
    weights = torch.cat([tensor.flatten() for name, tensor in state.items() if name.endswith(".weight")])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02) and abs(weights.mean().item()) < 2e-4
    assert not any(tensor.any() for name, tensor in state.items() if not name.endswith(".weight"))
    assert not torch.equal(state["blocks_1_lr_0.1.weight"], state["blocks_1_lr_0.05.weight"])


def test_a_rank_with_a_share_of_the_rates_trains_the_same_heads():
    whole, parts = make_heads(), [make_heads(RATES[rank::3]) for rank in range(3)]
    for tokens, labels in batches(5):
        for heads in (whole, *parts):
            heads.step(tokens.flatten(1), labels, lr_factor=1.0, momentum=0.9)
    state = {name: tensor for part in parts for name, tensor in part.state().items()}
    assert state.keys() == whole.state().keys()
    for name, tensor in whole.state().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_rank_beyond_the_rates_has_no_heads():
    heads = make_heads([])
    tokens, labels = next(batches(1))
    assert heads.step(tokens.flatten(1), labels, lr_factor=1.0, momentum=0.9).shape == (0,)
    assert heads.hits(tokens.flatten(1), labels, (1, 5)).shape == (0, 2) and not heads.names()


def test_a_head_that_diverges_harms_no_other_and_is_never_right():
    wild, tame = make_heads([0.01, 1e38]), make_heads([0.01])
    for tokens, labels in batches(6):
        losses = wild.step(tokens.flatten(1), labels, lr_factor=1.0, momentum=0.9)
        tame.step(tokens.flatten(1), labels, lr_factor=1.0, momentum=0.9)
    assert losses[0].isfinite() and not losses[1].isfinite()
    for name, tensor in tame.state().items():
        torch.testing.assert_close(wild.state()[name], tensor, rtol=1e-6, atol=1e-7)
    hits = wild.hits(tokens.flatten(1), labels, (1, 5))
    assert hits[0, 0] > 0 and hits[1].tolist() == [0, 0]


def test_state_goes_on_bit_for_bit():
    steps = list(batches(8))
    through, halted = make_heads(), make_heads()
    for tokens, labels in steps:
        through.step(tokens.flatten(1), labels, lr_factor=0.5, momentum=0.9)
    for tokens, labels in steps[:5]:
        halted.step(tokens.flatten(1), labels, lr_factor=0.5, momentum=0.9)
    resumed = ProbeHeads(VARIANTS, RATES, width=WIDTH, num_classes=NUM_CLASSES, seed=99)
    resumed.load_state({name: tensor.clone() for name, tensor in halted.state().items()})
    for tokens, labels in steps[5:]:
        resumed.step(tokens.flatten(1), labels, lr_factor=0.5, momentum=0.9)
    assert all(torch.equal(resumed.state()[name], tensor) for name, tensor in through.state().items())


def test_learns():
    heads = make_heads([0.1])
    for tokens, labels in batches(60):
        heads.step(tokens.flatten(1), labels, lr_factor=1.0, momentum=0.9)
    hits = heads.hits(tokens.flatten(1), labels, (1,))
    assert (hits >= 0.9 * len(labels)).all()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_hits_match_torchmetrics(k: int):
    classification = pytest.importorskip("torchmetrics.classification")
    logits, labels = torch.randn(3, 200, 12), torch.randint(12, (200,))
    hits = top_k_hits(logits, labels, (k,))
    for of_head, found in zip(logits, hits[:, 0], strict=True):
        metric = classification.MulticlassAccuracy(12, top_k=k, average="micro")
        assert found.item() / 200 == pytest.approx(metric(of_head, labels).item())


def test_equal_logits_and_nan_count_as_wrong():
    logits = torch.tensor([[[1.0, 1.0, 0.0]], [[math.nan, 1.0, 0.0]], [[2.0, 1.0, 0.0]]])
    assert top_k_hits(logits, torch.tensor([0]), (1, 2)).tolist() == [[0, 1], [0, 0], [1, 1]]


def test_rejects_repeated_heads():
    with pytest.raises(ValueError, match="must differ"):
        make_heads([0.1, 0.1])
