"""The loop: what it optimises, its schedule, and that two ranks train what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.evals.dense_run import evaluate
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.evals.head_training import train_head

ALONE = Distributed(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(count, size=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.randn(size, 3, generator=generator)
        yield x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1


def train(head, num_steps=200, lr=0.05, **settings):
    train_head(
        head,
        batches(num_steps),
        lambda step, x, y: (head(x) - y).square().mean(),
        lambda step: {"lr": lr, "momentum": 0.9},
        ALONE,
        num_steps=num_steps,
        weight_decay=0.0,
        **settings,
    )


def test_a_linear_head_finds_the_linear_map_and_ends_in_eval_mode():
    head = nn.Linear(3, 1)
    train(head)
    torch.testing.assert_close(head.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), rtol=0, atol=0.02)
    assert not head.training


def test_the_loop_is_adamw_with_the_settings_of_each_step():
    head, expected = nn.Linear(3, 1), nn.Linear(3, 1)
    expected.load_state_dict(head.state_dict())
    optimizer = torch.optim.AdamW(expected.parameters(), weight_decay=0.3)
    for step, (x, y) in enumerate(batches(5)):
        optimizer.param_groups[0].update(lr=0.01 * (step + 1), betas=(0.95 - 0.02 * step, 0.999))
        optimizer.zero_grad()
        (expected(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        optimizer.step()
    steps = []
    train_head(
        head,
        batches(5),
        lambda step, x, y: (head(x) - y).square().mean(),
        lambda step: {"lr": 0.01 * (step + 1), "momentum": 0.95 - 0.02 * step},
        ALONE,
        num_steps=5,
        weight_decay=0.3,
        clip_grad_norm=0.5,
        after_step=steps.append,
    )
    assert torch.equal(head.weight, expected.weight) and torch.equal(head.bias, expected.bias)
    assert steps == [1, 2, 3, 4, 5]


def test_a_loss_that_is_not_finite_stops_with_what_to_try():
    head = nn.Linear(3, 1)
    nn.init.constant_(head.bias, float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 0.*train.precision=fp32"):
        train(head, num_steps=3)


def test_two_ranks_give_the_scores_of_one(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.evals.dense_run", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    one, two = evaluate(ALONE), torch.load(tmp_path / "two", weights_only=True)
    assert one.keys() == two.keys() and {"miou", "rmse"} <= one.keys()
    for name, score in one.items():
        assert two[name] == pytest.approx(score, rel=1e-3), name
