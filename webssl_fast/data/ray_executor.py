"""Work on many shards by a Ray cluster: Ray Data's pool of actors, whose placing, retries and back-pressure are Ray's.

Every machine of the cluster needs this package, and must see the sources and the folder of the output under the same
paths. An actor or a machine that dies costs the tasks that it was at; Ray starts another and has them done there.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

MAX_BLOCKS = 10_000  # each costs Ray Data some 10 ms; with more tasks, a block, its unit of retries, has several
MAX_ATTEMPTS = 5  # at one task: Ray has no such limit (a dead machine may take it many to notice)
_OBJECT_STORE_BYTES = 128 * 2**20  # of a cluster of its own: tasks and results are small, images do not travel by Ray


def run_on_ray(
    make_work: Callable[[], Callable[[Any], Any]], tasks: Sequence[Any], executor: ExecutorConfig, output_dir: Path
) -> Iterator[Any]:
    """As `executors.run_tasks` says; `make_work`, tasks and results travel by cloudpickle."""
    ray = _import_ray()
    connected_here = not ray.is_initialized()
    if connected_here:
        _connect(ray, executor)
    notes = Path(tempfile.mkdtemp(prefix=".ray.", dir=output_dir.absolute()))
    try:
        for packed in _results(ray, make_work, tasks, executor, notes):
            result, error, trace = pickle.loads(packed)
            if error is not None:
                raise error from RuntimeError(f"in an actor:\n{trace}")
            yield result
    finally:
        shutil.rmtree(notes, ignore_errors=True)
        if connected_here:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"executor ray needs Ray Data ({error}): pip install 'webssl_fast[ray]'") from error
    return ray


def _connect(ray: Any, executor: ExecutorConfig) -> None:
    address = executor.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        logger.warning("no address of a Ray cluster: this machine becomes one of its own")
        options = {
            "num_cpus": executor.num_workers,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        logger.info("connecting to the Ray cluster at %s, which may take Ray minutes where none answers", address)
    try:
        # Not to the driver: each actor would repeat our warnings, between Ray's own about what died.
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"executor ray: no Ray cluster answers at address {address!r}: {error}") from error
    logger.info("what the actors print is in Ray's logs: `ray logs cluster`, or ray/session_latest/logs of a machine")


def _results(ray: Any, make_work: Any, tasks: Sequence[Any], executor: ExecutorConfig, notes: Path) -> Iterator[bytes]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller shows its own
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one block may take longer than Ray's half an hour
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    pickled = [{"number": number, "task": ray.cloudpickle.dumps(task)} for number, task in enumerate(tasks)]
    num_workers = min(executor.num_workers, len(tasks))
    placed_by = {"num_gpus": executor.gpus_per_worker} if executor.gpus_per_worker else {"num_cpus": 1}
    results = ray.data.from_items(pickled, override_num_blocks=min(len(tasks), MAX_BLOCKS)).map_batches(
        _Actor,
        fn_constructor_args=(ray.cloudpickle.dumps(make_work), notes),
        batch_size=1,
        # From one actor on: work begins, or goes on after a machine died, with fewer than were asked for.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers, initial_size=num_workers),
        **placed_by,
    )
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from batch["result"]
    except ray.exceptions.RayError as error:
        raise UserError(
            f"executor ray: Ray gave up; what is done is kept, and the same command goes on. It says: {error}"
        ) from error


class _Actor:
    """Exceptions of the work are results: those of Ray's own hide them, and end a run with pages of its frames."""

    def __init__(self, make_work: bytes, notes: Path):
        self._make_work, self._notes = make_work, notes
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        done = [self._do(number, task) for number, task in zip(batch["number"], batch["task"], strict=True)]
        return {"result": np.array(done, object)}

    def _do(self, number: int, task: bytes) -> bytes:
        from ray import cloudpickle

        try:
            self._note_attempt(number)
            if self._work is None:
                self._work = cloudpickle.loads(self._make_work)()
            return cloudpickle.dumps((self._work(cloudpickle.loads(task)), None, ""))
        except Exception as error:
            return cloudpickle.dumps((None, error, traceback.format_exc()))

    def _note_attempt(self, number: int) -> None:
        """Counts in a file, which outlives the actor, how often a task was begun."""
        try:
            with open(self._notes / str(number), "ab") as file:
                file.write(b".")
                num_attempts = file.tell()
        except FileNotFoundError as error:
            raise UserError(
                f"executor ray: machine {os.uname().nodename!r} does not see {str(self._notes.parent)!r} as this one "
                "does: the output must lie on storage that all machines of the cluster have under the same path"
            ) from error
        if num_attempts > MAX_ATTEMPTS:
            raise UserError(
                f"executor ray: task {number} killed its actor {MAX_ATTEMPTS} times (is the memory full?): what is "
                "done is kept, and the same command goes on"
            )
