"""Work on many shards by Ray: what is written is the same when actors, or a whole machine, are killed."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_indexing import index_command, write_shards
from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.column_file import Column, write_columns
from webssl_fast.data.executors import run_tasks
from webssl_fast.data.indexing import build_index
from webssl_fast.data.ray_executor import MAX_ATTEMPTS, _Actor
from webssl_fast.errors import UserError

ray = pytest.importorskip("ray", reason="pip install 'webssl_fast[ray]' (make nightly does)")

from tests.data.two_machines import TwoMachines  # noqa: E402

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def two_machines():
    machines = TwoMachines()
    yield machines
    machines.cluster.shutdown()


@pytest.fixture
def machines(two_machines):
    two_machines.mend()
    yield two_machines
    assert not ray.is_initialized(), "a connection of our own is closed"


# ---------------------------------------------------------------- work of the filters' kind: a part for each task


def make_writer(folder: Path, victim: str = ""):
    (folder / f"made.{os.getpid()}.{time.monotonic_ns()}").touch()
    return partial(write_part, folder, victim)


def write_part(folder: Path, victim: str, task: int) -> tuple[int, int]:
    """Answers about 1000 samples. Who comes to task 7 first is killed while it writes, alone or with its machine."""
    time.sleep(0.05)
    answers = np.sin(np.arange(1000) * (task + 1)).astype(np.float32)
    if task == 7 and victim and not (struck := folder / "struck").exists():
        struck.touch()
        (folder / "7.part.unfinished").write_bytes(answers.tobytes()[:500])
        if victim == "machine":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    write_columns(folder / f"{task}.part", {"kind": "part", "task": task}, {"answers": Column.of(answers)})
    return task, os.getpid()


def parts_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.part")}


@pytest.mark.parametrize("victim", ["", "actor", "machine"])
def test_parts_are_the_same_whoever_is_killed(tmp_path, machines, victim):
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    tasks = range(24)
    list(run_tasks(partial(make_writer, here), tasks, ExecutorConfig(), here))
    results = list(run_tasks(partial(make_writer, there, victim), tasks, machines.executor, there))
    assert sorted(task for task, _ in results) == list(tasks)
    assert len(parts_of(there)) == 24 and parts_of(there) == parts_of(here)
    assert (there / "struck").exists() == bool(victim) and not list(there.glob(".ray.*"))
    made_by = [int(path.name.split(".")[1]) for path in there.glob("made.*")]
    assert len(set(made_by)) == len(made_by) == 2 + bool(victim), "once an actor, and one instead of the dead"
    assert {pid for _, pid in results} <= set(made_by)


# ---------------------------------------------------------------- indexing


@pytest.mark.parametrize("victim", ["actor", "machine"])
def test_the_index_is_the_same_whoever_is_killed(tmp_path, machines, victim):
    source = write_shards(tmp_path, 60, 400)
    (tmp_path / "007.tar").write_bytes((tmp_path / "007.tar").read_bytes()[:100_000])
    build_index(source, tmp_path / "undisturbed", find_duplicates=True)
    parts_dir = tmp_path / "i.parts"
    with machines.killed_at_work(victim, lambda: len(list(parts_dir.glob("*.part"))), at_least=5) as struck:
        report = build_index(source, tmp_path / "i", executor=machines.executor, find_duplicates=True)
    assert len(struck) == 1 and struck[0] < 50, "killed while there was work"
    assert [problem.kind for problem in report.problems] == ["damaged"]
    for suffix in ("", ".duplicates.jsonl"):
        assert (tmp_path / f"i{suffix}").read_bytes() == (tmp_path / f"undisturbed{suffix}").read_bytes()
    assert not (tmp_path / "i.parts").exists()


def test_the_command_on_a_cluster_of_its_own_is_not_buried_in_logs(tmp_path):
    source = write_shards(tmp_path, 8, 20)
    build_index(source, tmp_path / "undisturbed", find_duplicates=True)
    command = [*index_command(source, Path("i"), 2), "--executor", "ray"]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "i").read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert "becomes one of its own" in done.stderr and "8/8" not in done.stdout
    assert len(done.stderr.splitlines()) < 12, done.stderr


# ---------------------------------------------------------------- errors


def fail_at(reason: str, task: int) -> int:
    if task == 3:
        if reason == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("shard 3 is sour")
    return task


def test_what_the_work_raises_comes_through(tmp_path, machines):
    make_work = partial(partial, fail_at, "raised")
    with pytest.raises(UserError, match="^shard 3 is sour$") as raised:
        list(run_tasks(make_work, range(8), machines.executor, tmp_path))
    assert "in fail_at" in str(raised.value.__cause__) and not list(tmp_path.iterdir())


def test_work_that_kills_every_actor_is_given_up(tmp_path, machines):
    make_work = partial(partial, fail_at, "killed")
    with pytest.raises(UserError, match=f"task 3 killed its actor {MAX_ATTEMPTS} times"):
        list(run_tasks(make_work, range(8), machines.executor, tmp_path))


def test_a_folder_that_an_actor_does_not_see_is_an_error(tmp_path):
    actor = _Actor(ray.cloudpickle.dumps(partial(partial, fail_at, "")), tmp_path / "elsewhere" / ".ray.x")
    (packed,) = actor({"number": np.array([0]), "task": np.array([ray.cloudpickle.dumps(0)], object)})["result"]
    _, error, _ = ray.cloudpickle.loads(packed)
    assert isinstance(error, UserError) and "does not see" in str(error) and "elsewhere" in str(error)


def test_no_cluster_where_one_is_expected(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("nobody there")))
    with pytest.raises(UserError, match="no Ray cluster answers at address 'auto': nobody there"):
        list(run_tasks(make_writer, range(2), ExecutorConfig(kind="ray", address="auto"), tmp_path))
