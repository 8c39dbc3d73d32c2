"""Features and gradients between three ranks, where a ring has a direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.engine.rank_processes import run_ranks
from webssl_fast.engine.distributed import Distributed
from webssl_fast.methods.rank_exchange import from_next_rank, gathered, rank_and_world_size


def exchange(distributed: Distributed) -> dict[str, Any]:
    """Rank r has r + 1 in every element of [2, 3]; its loss weighs element i of what it received by (r + 1) * i."""
    rank = distributed.rank
    assert rank_and_world_size() == (rank, 3)
    answers: dict[str, Any] = {}
    for name, function in (("gathered", gathered), ("next", from_next_rank)):
        x_BD = torch.full((2, 3), rank + 1.0, requires_grad=True)
        received = function(x_BD)
        weights = torch.arange(received.numel()).view_as(received) * (rank + 1)
        (received * weights).sum().backward()
        answers |= {name: received.detach().numpy().copy(), f"{name}_grad": x_BD.grad.numpy().copy()}
    return answers


def test_three_ranks_exchange_features_and_gradients():
    answers = run_ranks(3, exchange)
    rows = np.arange(6).reshape(2, 3)
    for rank, answer in enumerate(answers):
        assert (answer["gathered"] == np.repeat([1, 1, 2, 2, 3, 3], 3).reshape(6, 3)).all()
        # Every rank has a weight for these rows: 1, 2 and 3 times their places in the gathered matrix.
        assert (answer["gathered_grad"] == (1 + 2 + 3) * (6 * rank + rows)).all()
        assert (answer["next"] == (rank + 1) % 3 + 1).all()
        # The rank before received these.
        assert (answer["next_grad"] == ((rank - 1) % 3 + 1) * rows).all()


def test_one_process_has_its_own():
    x_BD = torch.ones(2, 3)
    assert gathered(x_BD) is x_BD
