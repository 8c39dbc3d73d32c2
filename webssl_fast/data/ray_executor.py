"""Work on many shards by a Ray cluster: Ray Data's pool of actors, whose placing, retries and back-pressure are Ray's.

Every machine of the cluster needs this package, and must see the sources and the folder of the output under the same
paths. An actor or a machine that dies costs the tasks that it was at; Ray gives them to others.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

MAX_BLOCKS = (
    10_000  # what Ray Data keeps account of; with more tasks than that a block, the unit of retries, has several
)
MAX_RETRIES = 3  # of a block whose actor dies: a task that kills every actor would go round for ever
_OBJECT_STORE_BYTES = 128 * 2**20  # of a cluster of its own: tasks and results are small, images do not travel by Ray


def run_on_ray(
    make_work: Callable[[], Callable[[Any], Any]], tasks: Sequence[Any], executor: ExecutorConfig, output_dir: Path
) -> Iterator[Any]:
    """As `executors.run_tasks` says; `make_work`, tasks and results travel by cloudpickle."""
    ray = _import_ray()
    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray, executor)
    marker = output_dir / f"seen_by_all.{secrets.token_hex(8)}"
    marker.touch()
    try:
        for row in _results(ray, make_work, tasks, executor, marker):
            yield _unpacked(row)
    finally:
        marker.unlink(missing_ok=True)
        if started_here:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"executor ray: {error}. It needs Ray Data: pip install 'webssl_fast[ray]'") from error
    return ray


def _connect(ray: Any, executor: ExecutorConfig) -> None:
    address = executor.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        logger.warning("no address of a Ray cluster and no RAY_ADDRESS: this machine is a cluster of its own")
        options = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"executor ray: no Ray cluster answers at address {address!r}: {error}") from error


def _results(ray: Any, make_work: Any, tasks: Sequence[Any], executor: ExecutorConfig, marker: Path) -> Iterator[bytes]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller shows its own
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    pickled = [{"task": ray.cloudpickle.dumps(task)} for task in tasks]
    num_workers = min(executor.num_workers, len(tasks))
    results = ray.data.from_items(pickled, override_num_blocks=min(len(tasks), MAX_BLOCKS)).map_batches(
        _Worker,
        fn_constructor_args=(ray.cloudpickle.dumps(make_work), marker),
        batch_size=1,
        # From one actor on, so that work begins, or goes on after a machine died, with fewer than asked for.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers, initial_size=num_workers),
        num_cpus=1,
        num_gpus=executor.gpus_per_worker or None,
        max_restarts=-1,
        max_task_retries=MAX_RETRIES,
    )
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from batch["result"]
    except ray.exceptions.RayError as error:
        raise UserError(
            f"executor ray: the same work killed its actor {MAX_RETRIES + 1} times (is the memory full?); what is done "
            f"is kept, and the same command goes on: {error}"
        ) from error


class _Worker:
    """An actor's work. Exceptions are results: Ray would wrap them, and cannot tell those of a user."""

    def __init__(self, make_work: bytes, marker: Path):
        self._make_work, self._marker = make_work, marker
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        packed = np.array([self._do(task) for task in batch["task"]], object)
        return {"result": packed}

    def _do(self, task: bytes) -> bytes:
        import ray

        try:
            if self._work is None:
                if not self._marker.exists():
                    raise UserError(
                        f"executor ray: machine {ray.util.get_node_ip_address()} does not see "
                        f"{str(self._marker.parent)!r} as this one does: the output must lie on storage that all "
                        "machines of the cluster have under the same path"
                    )
                self._work = ray.cloudpickle.loads(self._make_work)()
            return ray.cloudpickle.dumps((self._work(ray.cloudpickle.loads(task)), None, ""))
        except Exception as error:
            return ray.cloudpickle.dumps((None, error, traceback.format_exc()))


def _unpacked(packed: bytes) -> Any:
    result, error, trace = pickle.loads(packed)
    if error is not None:
        raise error from RuntimeError(f"in a worker:\n{trace}")
    return result
