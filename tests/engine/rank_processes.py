"""Ranks of a run as processes of the test, without torchrun: they are forked from one process that has torch loaded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from webssl_fast.engine.distributed import Distributed, start

PROCESSES = multiprocessing.get_context("forkserver")
# FSDP imports torch._dynamo when it wraps its first parameter, which takes a second in every process.
PROCESSES.set_forkserver_preload(["tests.engine.toy_run", "tests.engine.dinov2_run", "torch._dynamo"])


def start_ranks(target: Callable[..., Any], *arguments: Any, logs: Path, num_ranks: int = 2) -> list[BaseProcess]:
    """Starts `target(distributed, *arguments)` in each of `num_ranks` processes; returned exit statuses are theirs, and
    what they print lies in `logs`/rankN."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    ranks = [
        PROCESSES.Process(target=_run, args=(rank, num_ranks, port, logs / f"rank{rank}", target, arguments))
        for rank in range(num_ranks)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def run_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """The values of `function(distributed, *arguments)` on each rank, in rank order.

    Raises AssertionError with the traceback of the first rank that failed.
    """
    answers = PROCESSES.Queue()
    values: dict[int, Any] = {}
    with TemporaryDirectory() as logs:
        ranks = start_ranks(_answer, answers, function, arguments, logs=Path(logs), num_ranks=num_ranks)
        try:
            for _ in ranks:
                rank, value, failure = answers.get(timeout=timeout_s)
                assert failure is None, f"rank {rank} of {num_ranks}:\n{failure}"
                values[rank] = value
            assert exit_statuses(ranks) == [0] * num_ranks
        except queue.Empty:
            raise AssertionError(f"only ranks {sorted(values)} of {num_ranks} answered in {timeout_s} s") from None
        finally:
            for process in ranks:
                process.kill()
    return [values[rank] for rank in range(num_ranks)]


def _answer(distributed: Distributed, answers: Any, function: Callable[..., Any], arguments: tuple) -> int:
    try:
        value = function(distributed, *arguments)
    except BaseException:
        answers.put((distributed.rank, None, traceback.format_exc()))
        return 1
    answers.put((distributed.rank, value, None))
    return 0


def exit_statuses(ranks: list[BaseProcess], timeout_s: float = 60.0) -> list[int | None]:
    """Waits for the ranks; None for one that had to be killed because it did not end."""
    for rank in ranks:
        rank.join(timeout_s)
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
    return statuses


def _run(rank: int, num_ranks: int, port: int, log: Path, target: Callable[..., Any], arguments: tuple) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with start("cpu", num_threads=1) as distributed:
        status = target(distributed, *arguments)
    sys.exit(status)
