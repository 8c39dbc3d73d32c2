"""Who does the work on many shards: this process, several processes of this machine, or actors of a Ray cluster.

A task is one shard's; its result is small, and what the work makes it writes to a file itself, whole or not at all. So
whoever is killed loses one shard's work, and the next run does what is missing. On a cluster a task may also be done
twice, by a machine that was given up and by another: what is written must follow from the task alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

ONE_PROCESS = ExecutorConfig()

_make_work: Callable[[], Callable[[Any], Any]] | None = None  # of a worker process
_work: Callable[[Any], Any] | None = None


def run_tasks(
    make_work: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    executor: ExecutorConfig,
    output_dir: Path,
) -> Iterator[Result]:
    """The result of each task, in the order in which they end.

    make_work   called once in each worker, where it may load a model; can be pickled, as tasks and results can
    output_dir  the folder that the work writes into, which every worker must see

    Raises UserError where a worker was killed (Ray starts another and tries again first), does not see `output_dir`, or
    where Ray is missing; what the work itself raises comes through, and ends the run.
    """
    if not tasks:
        return
    if executor.kind == "ray":
        from webssl_fast.data.ray_executor import run_on_ray

        yield from run_on_ray(make_work, tasks, executor, output_dir)
    elif executor.num_workers == 1 or len(tasks) == 1:
        work = make_work()
        yield from (work(task) for task in tasks)
    else:
        yield from _run_in_processes(make_work, tasks, min(executor.num_workers, len(tasks)))


def _run_in_processes(
    make_work: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], num_workers: int
) -> Iterator[Result]:
    # "spawn": the caller may have threads (torch, fsspec), which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _begin_worker, (os.getpid(), make_work)) as pool:
        futures = [pool.submit(_do, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (is the memory full?): what is done is kept, and the same command goes "
                f"on, perhaps with fewer workers than {num_workers}"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(parent: int, make_work: Callable[[], Callable[[Any], Any]]) -> None:
    """Leaves Ctrl-C to the parent, and ends with it: a worker that loses its parent would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    global _make_work
    _make_work = make_work


def _do(task: Any) -> Any:
    global _work
    if _work is None:  # here and not when the worker begins: what it raises then is taken for a worker's death
        assert _make_work is not None
        _work = _make_work()
    return _work(task)
