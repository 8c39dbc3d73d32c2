"""Who does the work on many shards, without Ray (test_ray_executor.py has that)."""

import os
import signal
import sys
import time
from functools import partial

import pytest

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.executors import run_tasks
from webssl_fast.errors import UserError

TWO = ExecutorConfig(num_workers=2)


def make_doubler(folder):
    """Work that says which process did it; each call of this is a file in the folder."""
    (folder / f"made.{os.getpid()}.{time.monotonic_ns()}").touch()
    return double


def double(task):
    time.sleep(0.002 * task)
    return 2 * task, os.getpid()


def make_faulty(fault):
    return partial(fail, fault)


def fail(fault, task):
    if task == 3:
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("shard 3 is sour")
    return task


def make_nothing():
    raise UserError("the model is missing")


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_every_task_once_and_the_work_made_once_in_each_worker(tmp_path, num_workers):
    executor = ExecutorConfig(num_workers=num_workers)
    results = list(run_tasks(partial(make_doubler, tmp_path), range(20), executor, tmp_path))
    assert sorted(result for result, _ in results) == [2 * task for task in range(20)]
    made_by = [int(path.name.split(".")[1]) for path in tmp_path.glob("made.*")]
    workers = {pid for _, pid in results}
    assert len(made_by) == len(set(made_by)) and set(made_by) == workers and len(workers) <= num_workers
    assert (workers == {os.getpid()}) == (num_workers == 1)


def test_one_process_does_tasks_in_order_and_when_they_are_asked_for(tmp_path):
    begun = []
    results = run_tasks(lambda: begun.append, "abc", ExecutorConfig(), tmp_path)
    next(results)
    assert begun == ["a"]
    list(results)
    assert begun == ["a", "b", "c"]


def test_a_single_task_stays_here_and_no_task_makes_no_work(tmp_path):
    assert [pid for _, pid in run_tasks(partial(make_doubler, tmp_path), [1], TWO, tmp_path)] == [os.getpid()]
    assert list(run_tasks(make_nothing, [], TWO, tmp_path)) == []


def test_results_come_as_tasks_end(tmp_path):
    tasks = [200, 0, 1, 2, 3, 4]
    results = [result for result, _ in run_tasks(partial(make_doubler, tmp_path), tasks, TWO, tmp_path)]
    assert results[-1] == 400 and sorted(results) == [0, 2, 4, 6, 8, 400]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_the_work_raises_comes_through(tmp_path, num_workers):
    executor = ExecutorConfig(num_workers=num_workers)
    with pytest.raises(UserError, match="shard 3 is sour"):
        list(run_tasks(partial(make_faulty, "raised"), range(8), executor, tmp_path))
    with pytest.raises(UserError, match="the model is missing"):
        list(run_tasks(make_nothing, range(8), executor, tmp_path))


def test_a_killed_worker_is_an_error_that_says_so(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed .*fewer workers than 2"):
        list(run_tasks(partial(make_faulty, "killed"), range(8), TWO, tmp_path))


def test_no_worker_is_left_behind(tmp_path):
    results = run_tasks(partial(make_doubler, tmp_path), range(50), TWO, tmp_path)
    workers = {next(results)[1] for _ in range(10)}
    results.close()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"executor ray needs Ray Data .*pip install 'webssl_fast\[ray\]'"):
        list(run_tasks(make_nothing, [1], ExecutorConfig(kind="ray"), tmp_path))


def test_settings_of_ray_are_no_settings_of_this_machine():
    for settings in ({"address": "auto"}, {"gpus_per_worker": 0.5}):
        with pytest.raises(ValueError, match="set kind to ray"):
            ExecutorConfig(**settings)
