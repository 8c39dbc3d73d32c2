"""One process or many: what torchrun's environment says, as one object that the rest of the engine asks.

A single process has no process group, and every collective here is then the identity. Several processes share one
default group that speaks gloo for tensors on the host and, where there are GPUs, nccl for those on the device.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from webssl_fast.errors import UserError

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """This process's place among the `world_size` processes of the run, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None  # None: the default group

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Returns on every rank once every rank has come here; waits on the host, not for the device."""
        self.gather(None)

    def sum_(self, x: Tensor) -> Tensor:
        """Adds up `x` over the ranks, in place; enqueued on the device, not waited for."""
        if self.world_size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def concatenate(self, x: Tensor) -> Tensor:
        """The ranks' rows (x has the same shape on all of them) in rank order, on every rank."""
        if self.world_size == 1:
            return x
        rows = x.new_empty(self.world_size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(rows, x.contiguous(), group=self.group)
        return rows

    def gather(self, value: T) -> list[T]:
        """The ranks' `value`s (small host objects), on every rank, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def for_another_thread(self, timeout_s: float) -> Distributed:
        """The same ranks in a group of their own, for collectives of host objects on a thread beside this one.

        Every rank calls this. `timeout_s`: how long a collective may wait for a rank.
        """
        if self.world_size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))


@contextmanager
def start(device: str = "auto", num_threads: int = 0) -> Iterator[Distributed]:
    """Joins the run that torchrun's environment describes (none: a run of one process) and leaves it in the end.

    device       "cpu", "cuda", or "auto": cuda where there is one. A rank takes the GPU of its number on the host.
    num_threads  compute threads of this process; 0: every core that it may use, shared out among the host's ranks.

    Raises UserError where a GPU is asked for and missing, or where a host has more ranks than GPUs.
    """
    env = {k: int(os.environ.get(k, d)) for k, d in _TORCHRUN_DEFAULTS.items()}
    target = _device(device, env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(num_threads or max(1, num_cores() // env["LOCAL_WORLD_SIZE"]))
    distributed = Distributed(target, env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"])
    if target.type == "cuda":
        torch.cuda.set_device(target)
    if distributed.world_size == 1:
        yield distributed
        return
    store = _store_of_this_life()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo",
        store=store,
        rank=distributed.rank if store else -1,  # torch finds out for itself, and accepts no rank without a store
        world_size=distributed.world_size if store else -1,
        device_id=target if target.type == "cuda" else None,
    )
    yield distributed
    # Only after a clean run: a rank that failed must not wait for the others, which torchrun is about to end.
    distributed.barrier()
    dist.destroy_process_group()
    # A gloo thread frees the tensors of the last collective, for which it needs the interpreter; if that is already
    # shutting down, torch aborts the process (seen in one run out of five).
    time.sleep(0.2)


def _store_of_this_life() -> dist.Store | None:
    """Where the ranks that torchrun started on one host find each other; None: where torch looks by itself.

    torchrun keeps one store over all restarts, and torch reads from it what it finds first: a rank that comes up before
    another one then waits for the address that the other had in its former life (pytorch issue 167288).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if not shared or not restarts:
        return None
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:  # whose torchruns count their restarts each for itself
        if os.environ["RANK"] == "0":
            _log.warning(
                "RESTARTS MAY FAIL: torchrun --max-restarts=%d on several hosts needs the environment variable "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started (docs/cluster.md); without it, ranks "
                "that are started again can look for each other at addresses of before",
                restarts,
            )
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"life_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def num_cores() -> int:
    """Cores that this process may use, which a container or taskset may have cut down."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_TORCHRUN_DEFAULTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


def _device(name: str, local_rank: int, local_world_size: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.device is cuda, but torch finds no GPU here; set train.device=cpu or auto")
    num_gpus = torch.cuda.device_count()
    if local_world_size > num_gpus:
        raise UserError(
            f"{local_world_size} processes on a host with {num_gpus} GPUs; start at most one process a GPU "
            f"(torchrun --nproc-per-node {num_gpus}), or set train.device=cpu"
        )
    return torch.device("cuda", local_rank)
