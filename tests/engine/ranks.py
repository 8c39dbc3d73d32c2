"""Several ranks on this host without torchrun: processes forked from a server that has imported torch already, which
start in a tenth of the time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from webssl_fast.engine.distributed import Distributed, start

# What a rank would otherwise spend seconds on: torch._dynamo is imported by the first step of any optimizer.
_PRELOADED = [__name__, "tests.engine.dinov2_run", "torch._dynamo"]


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120) -> list[Any]:
    """The values of `function(distributed, *args)` on each rank, in rank order; all must be picklable.

    Raises AssertionError with the traceback of the first rank that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, answers, function, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    values: dict[int, Any] = {}
    try:
        for _ in range(world_size):
            rank, value, error = answers.get(timeout=timeout_s)
            assert error is None, f"rank {rank} of {world_size}:\n{error}"
            values[rank] = value
        for process in processes:
            process.join(timeout_s)
    except queue.Empty:
        raise AssertionError(f"only ranks {sorted(values)} of {world_size} answered in {timeout_s} s") from None
    finally:
        for process in processes:
            process.kill()
    return [values[rank] for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, answers: Any, function: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        with start("cpu", num_threads=1) as distributed:
            value = function(distributed, *args)
        answers.put((rank, value, None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """`function` in this process, as a run of one rank."""
    return function(Distributed(torch.device("cpu")), *args)
