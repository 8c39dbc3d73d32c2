"""What goes wrong on one rank of two, or on both."""

import ctypes
import os
import resource
import shutil
import signal
import time

import pytest
import torch

from tests.engine.comparison import assert_same_run, metrics_of, module_weights, tensors_of
from tests.engine.rank_processes import exit_statuses, start_ranks
from tests.engine.toy_method import ToyMethod
from tests.engine.toy_run import run_toy
from webssl_fast.engine.checkpoint import CheckpointError
from webssl_fast.errors import EXIT_HUNG, EXIT_INTERRUPTED

TRAIN = {"log_every": 2}


def run(distributed, folder, on_batch=None, train=None, **settings):
    def call(step):
        if on_batch is not None:
            on_batch(distributed.rank, step)

    result, _ = run_toy(
        folder, distributed=distributed, train_settings={**TRAIN, **(train or {})}, on_batch=call, **settings
    )
    return 0 if result.interrupted_by is None else EXIT_INTERRUPTED


def log_of(logs, rank):
    return (logs / f"rank{rank}").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two ranks to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_statuses(start_ranks(run, folder, logs=folder / "logs")) == [0, 0]
    return folder


# ---------------------------------------------------------------- hanging


def hang_in_loading(rank, step):
    if (rank, step) == (1, 7):
        time.sleep(1000)


def test_hanging_rank_is_ended_with_its_stacks_and_the_run_goes_on(tmp_path, whole):
    settings = {"watchdog": {"step_s": 1.5}}
    statuses = exit_statuses(start_ranks(run, tmp_path, hang_in_loading, settings, logs=tmp_path / "logs"))
    assert statuses[1] == EXIT_HUNG and statuses[0] in (EXIT_HUNG, 1)  # the other hangs with it, or misses it
    log = log_of(tmp_path / "logs", 1)
    assert "HANG: rank 1 has been in the phase 'loading data' of step 8 for" in log
    assert "train.watchdog.step_s=1.5" in log and "in hang_in_loading" in log
    assert exit_statuses(start_ranks(run, tmp_path, logs=tmp_path / "logs")) == [0, 0]
    assert_same_run(tmp_path, whole)


def hang_with_the_interpreter_lock(rank, step):
    if step == 7:
        time.sleep(0.5)  # the watchdog looks every tenth of a limit, and must have seen this step
        ctypes.PyDLL(None).sleep(1000)


def test_hang_that_holds_the_interpreter_lock_is_ended_too(tmp_path):
    settings = {"watchdog": {"step_s": 1.0}}
    arguments = (tmp_path, hang_with_the_interpreter_lock, settings)
    assert exit_statuses(start_ranks(run_with_little_grace, *arguments, logs=tmp_path, num_ranks=1)) == [1]
    log = log_of(tmp_path, 0)
    assert "Timeout (" in log and "in hang_with_the_interpreter_lock" in log


def run_with_little_grace(*arguments):
    from webssl_fast.engine import watchdog

    watchdog._GRACE_S = 1.0
    return run(*arguments)


# ---------------------------------------------------------------- pre-emption


def terminate_at_step_8(rank, step):
    if step == 8:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def preempted(tmp_path_factory):
    """A run both of whose ranks got SIGTERM in step 9, and its logs."""
    folder = tmp_path_factory.mktemp("preempted")
    statuses = exit_statuses(start_ranks(run, folder, terminate_at_step_8, logs=folder / "logs"))
    assert statuses == [EXIT_INTERRUPTED] * 2
    return folder


def test_sigterm_stops_both_ranks_after_the_same_step_and_loses_nothing(tmp_path, whole, preempted):
    assert [path.name for path in sorted((preempted / "checkpoints").iterdir())] == ["step_00000005", "step_00000010"]
    assert "stopped by signal 15 after step 10" in log_of(preempted / "logs", 0)
    shutil.copytree(preempted, tmp_path, dirs_exist_ok=True)
    assert exit_statuses(start_ranks(run, tmp_path, logs=tmp_path / "logs")) == [0, 0]
    assert "resuming after step 10" in log_of(tmp_path / "logs", 0)
    assert_same_run(tmp_path, whole)


# ---------------------------------------------------------------- not finite on one rank


class BadOnOneRank(ToyMethod):
    """On rank 1, the loss alone is not finite in step 7, and the gradient alone in step 13 (from 0)."""

    def __init__(self, rank):
        super().__init__(num_steps=20)
        self.rank = rank

    def training_step(self, batch, step):
        loss, scalars = super().training_step(batch, step)
        if (self.rank, step) == (1, 7):
            loss = loss + torch.tensor(float("nan"))
        if (self.rank, step) == (1, 13):
            loss.register_hook(lambda grad: grad * float("inf"))
        return loss, scalars


def run_bad(distributed, folder):
    return run(distributed, folder, method=BadOnOneRank(distributed.rank))


def test_nonfinite_on_one_rank_is_skipped_by_both(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    assert exit_statuses(start_ranks(run_bad, two, logs=two / "logs")) == [0, 0]
    run_toy(one, train_settings=TRAIN, nonfinite_positions=[7 * 8, 13 * 8])
    assert (two / "nonfinite_batches.jsonl").read_text() == (one / "nonfinite_batches.jsonl").read_text()
    assert metrics_of(two)[-1]["skipped_steps"] == 2
    expected, got = module_weights(one, "student"), module_weights(two, "student")
    assert expected.keys() == got.keys() and len(got) == 8
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- disks


def fill_the_disk_of_rank_1(rank, step):
    if (rank, step) == (1, 6):  # the checkpoint of step 5 is complete, or just in the making
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    if (rank, step) == (1, 12):
        time.sleep(3)  # step 10 is saved beside training: its write must come while there is no room
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_disk_that_is_full_for_a_while_costs_one_checkpoint(tmp_path, whole):
    logs = tmp_path / "logs"
    ranks = start_ranks(run, tmp_path, fill_the_disk_of_rank_1, {"checkpoint_every": 10}, logs=logs)
    assert exit_statuses(ranks) == [0, 0]
    assert "STEP 10 IS NOT SAVED, and the next checkpoint must succeed: could not save" in log_of(logs, 0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000020"]
    assert_same_run(tmp_path, whole)


def fill_the_disk_of_rank_1_for_good(rank, step):
    if step < 12:
        fill_the_disk_of_rank_1(rank, step)


def test_disk_that_stays_full_ends_the_run_and_the_last_checkpoint_is_whole(tmp_path):
    logs = tmp_path / "logs"
    ranks = start_ranks(run, tmp_path, fill_the_disk_of_rank_1_for_good, logs=logs)
    assert exit_statuses(ranks) == [1, 1]
    assert "STEP 10 IS NOT SAVED" in log_of(logs, 0)
    assert "CheckpointError: could not save a checkpoint" in log_of(logs, 0)
    assert "step_00000005. Make room" in log_of(logs, 0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
    assert module_weights(tmp_path, "student")


def test_flipped_bit_in_one_rank_s_file_takes_the_run_back_one_checkpoint(tmp_path, whole, preempted):
    shutil.copytree(preempted, tmp_path, dirs_exist_ok=True)
    (shard,) = (tmp_path / "checkpoints/step_00000010").glob("shard-00002-*")
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard-00002.* is damaged: its bytes do not match"):
        module_weights(tmp_path, "teacher.backbone")
    logs = tmp_path / "logs"
    assert exit_statuses(start_ranks(run, tmp_path, logs=logs)) == [0, 0]
    assert "DAMAGED CHECKPOINT set aside, the run goes back to step_00000005" in log_of(logs, 0)
    assert "resuming after step 5" in log_of(logs, 0)
    assert_same_run(tmp_path, whole)


def test_teacher_of_two_ranks_reads_whole_in_one_process(tmp_path, whole):
    whole_tensors = module_weights(whole, "teacher.backbone")
    assert {name: tuple(tensor.shape) for name, tensor in whole_tensors.items()} == {
        "0.weight": (7, 12),
        "0.bias": (7,),
        "2.weight": (7, 7),
        "2.bias": (7,),
    }
    shards = sorted(tensors_of(whole).items())  # by file
    parts = [tensor for name, tensor in shards if name.endswith(" method.teacher.backbone.0.weight")]
    assert len(parts) == 2 and torch.equal(torch.cat(parts), whole_tensors["0.weight"])
