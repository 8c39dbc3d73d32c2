"""A Ray cluster for tests: a head without CPUs and two machines with one each, all of them processes on one machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster

from webssl_fast.config.executor import ExecutorConfig

OBJECT_STORE_BYTES = 80 * 2**20


class TwoMachines:
    def __init__(self, environment: dict[str, str] | None = None):
        """environment: of the actors, beside this process's own."""
        self._environment = environment or {}
        head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.machines = []
        self.executor = ExecutorConfig(kind="ray", num_workers=2, address=self.cluster.address)

    def mend(self):
        """Two machines again, whatever happened to the last ones."""
        self.machines = [machine for machine in self.machines if alive(raylet_of(machine))]
        while len(self.machines) < 2:
            self.machines.append(
                self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, env_vars=self._environment)
            )

    def actors(self) -> list[int]:
        children = [child for machine in self.machines for child in children_of(raylet_of(machine))]
        return [pid for pid in children if b"ray::MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    @contextmanager
    def killed_at_work(self, victim: str, num_done: Callable[[], int], at_least: int) -> Iterator[list[int]]:
        """Beside what is done within: once so many tasks are done and both actors work, one of them is killed, with its
        machine where `victim` is "machine". The list then holds how many were done."""
        struck: list[int] = []

        def kill() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not struck:
                done = num_done()
                if done >= at_least and len(actors := self.actors()) == 2:
                    if victim == "machine":
                        os.kill(raylet_of(self.machines[0]), signal.SIGKILL)
                    os.kill(actors[0], signal.SIGKILL)
                    struck.append(done)
                time.sleep(0.005)

        killer = threading.Thread(target=kill)
        killer.start()
        yield struck
        killer.join()


def raylet_of(machine) -> int:
    return machine.all_processes["raylet"][0].process.pid


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
