import concurrent.futures
import json
import resource
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.engine.toy_method import ToyMethod
from webssl_fast.engine import checkpoint
from webssl_fast.engine.checkpoint import METHOD_PREFIX, CheckpointError, Checkpoints, load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.tensor_files import TensorMismatch

CPU = Distributed(torch.device("cpu"))


def make_tensors(fill: float = 0.0):
    generator = torch.Generator().manual_seed(3)
    return {
        "method.weight": torch.randn(5, 3, generator=generator) * fill,
        "method.half": torch.randn(4, generator=generator).bfloat16() * fill,
        "method.scale": torch.tensor(2.5 * fill),
        "method.count": torch.tensor(int(7 * fill)),
        "method.empty": torch.zeros(0, 3),
        "method.mask": torch.full((3,), bool(fill)),
        "optimizer.weight.step": torch.tensor(float(fill)),
        "optimizer.view": (torch.arange(12.0) * fill).reshape(3, 4).t(),
    }


def make(folder, keep=3, keep_every=None, asynchronous=False):
    return Checkpoints(folder, CPU, keep=keep, keep_every=keep_every, asynchronous=asynchronous)


def make_large_tensors(fill):
    return make_tensors(fill) | {"method.large": torch.zeros(300_000)}


@contextmanager
def full_disk():
    """The kernel refuses files of more than 1 MiB, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


@pytest.fixture
def held(monkeypatch):
    """Writing waits for this event."""
    event, plain = threading.Event(), checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *arguments: (event.wait(10), plain(*arguments)))
    return event


def test_every_dtype_and_shape_comes_back(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(10, make_tensors(1.0), {"step": 10})
    tensors = make_tensors(0.0)
    assert checkpoints.load_newest(tensors) == {"step": 10}
    for name, expected in make_tensors(1.0).items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected), name


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    folder = make(tmp_path).save(10, make_tensors(1.0), {"step": 10})
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert folder.name == "step_00000010"


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert make(tmp_path / "checkpoints").load_newest(make_tensors()) is None


@pytest.mark.parametrize("what", ["shard-00001-model-00001-of-00001.safetensors", "state.json", "manifest.json"])
def test_flipped_bit_is_named_and_the_previous_checkpoint_used(tmp_path, caplog, what):
    checkpoints = make(tmp_path)
    checkpoints.save(1, make_tensors(1.0), {"step": 1})
    newest = checkpoints.save(2, make_tensors(2.0), {"step": 2})
    flip_bit(newest / what)
    tensors = make_tensors()
    assert checkpoints.load_newest(tensors) == {"step": 1}
    assert torch.equal(tensors["method.weight"], make_tensors(1.0)["method.weight"])
    errors = [record.getMessage() for record in caplog.records if record.name.startswith("webssl_fast")]
    assert len(errors) == 1 and what in errors[0] and errors[0].startswith("DAMAGED CHECKPOINT")
    assert names(tmp_path) == ["step_00000001", "step_00000002.damaged"]
    checkpoints.save(2, make_tensors(2.0), {"step": 2})
    assert checkpoints.load_newest(tensors) == {"step": 2}


def test_missing_and_cut_files_are_damage(tmp_path):
    checkpoints = make(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, make_tensors(1.0), {"step": step})
    (tmp_path / "step_00000003/state.json").unlink()
    shard = tmp_path / "step_00000002/shard-00001-model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert checkpoints.load_newest(make_tensors()) == {"step": 1}


def test_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path):
    checkpoints = make(tmp_path)
    flip_bit(checkpoints.save(1, make_tensors(1.0), {"step": 1}) / "state.json")
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged.*state\.json"):
        checkpoints.load_newest(make_tensors())
    assert names(tmp_path) == ["step_00000001"]


def test_another_architecture_is_refused_before_anything_changes(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(1, make_tensors(1.0), {"step": 1})
    tensors = make_tensors()
    del tensors["method.scale"]
    tensors |= {"method.weight": torch.zeros(5, 4), "method.new": torch.zeros(1), "method.half": torch.zeros(4)}
    with pytest.raises(TensorMismatch) as caught:
        checkpoints.load_newest(tensors)
    message = str(caught.value)
    assert "method.new is missing in the checkpoint" in message
    assert "method.scale is in the checkpoint only" in message
    assert "method.weight is float32[5, 3] in the checkpoint and float32[5, 4] in this model" in message
    assert "method.half is bfloat16[4] in the checkpoint and float32[4]" in message
    assert all(not tensor.any() for tensor in tensors.values())


def test_retention_keeps_the_newest_and_the_milestones(tmp_path):
    checkpoints = make(tmp_path, keep=2, keep_every=30)
    for step in range(10, 80, 10):
        checkpoints.save(step, make_tensors(1.0), {"step": step})
    assert names(tmp_path) == [f"step_{step:08d}" for step in (30, 60, 70)]


def test_fewer_checkpoints_to_keep_make_room_before_the_next_is_written(tmp_path, held):
    held.set()
    for step in (1, 2, 3):
        make(tmp_path).save(step, make_tensors(1.0), {"step": step})
    held.clear()
    with make(tmp_path, keep=2, asynchronous=True) as checkpoints:
        checkpoints.save(4, make_tensors(1.0), {"step": 4})
        while not (tmp_path / "saving_step_00000004").exists():
            time.sleep(0.01)
        assert names(tmp_path) == ["saving_step_00000004", "step_00000002", "step_00000003"]
        held.set()
    assert names(tmp_path) == ["step_00000003", "step_00000004"]


def test_leftovers_of_a_killed_save_are_ignored_named_and_cleaned(tmp_path, caplog):
    checkpoints = make(tmp_path)
    whole = checkpoints.save(1, make_tensors(1.0), {"step": 1})
    shutil.copytree(whole, tmp_path / "saving_step_00000002")
    shutil.copytree(whole, tmp_path / "removing_step_00000000")
    (tmp_path / "saving_step_00000002/manifest.json").unlink()
    assert checkpoints.load_newest(make_tensors()) == {"step": 1}
    assert "saving_step_00000002 is what a process left that ended while it saved" in caplog.text
    checkpoints.save(3, make_tensors(1.0), {"step": 3})
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_full_disk_is_an_error_and_the_last_checkpoint_survives(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(1, make_tensors(1.0), {"step": 1})
    large = make_large_tensors(2.0)
    with full_disk(), pytest.raises(CheckpointError, match=r"could not save .*step_00000001\. Make room"):
        checkpoints.save(2, large, {"step": 2})
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoints.load_newest(make_tensors()) == {"step": 1}
    checkpoints.save(2, large, {"step": 2})
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


# ---------------------------------------------------------------- in the background


def test_training_goes_on_while_what_it_had_is_written(tmp_path, held):
    with make(tmp_path, asynchronous=True) as checkpoints:
        tensors = make_tensors(1.0)
        folder = checkpoints.save(1, tensors, {"step": 1})
        assert not folder.exists()
        for tensor in tensors.values():
            tensor.zero_()
        held.set()
        checkpoints.finish()
        assert names(tmp_path) == ["step_00000001"]
        assert checkpoints.load_newest(tensors) == {"step": 1}
    for name, expected in make_tensors(1.0).items():
        assert torch.equal(tensors[name], expected), name


def test_background_saves_are_complete_in_order_and_before_the_end(tmp_path):
    with make(tmp_path, keep=2, asynchronous=True) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_tensors(float(step)), {"step": step})
            assert step == 1 or f"step_{step - 1:08d}" in names(tmp_path)
    assert names(tmp_path) == ["step_00000002", "step_00000003"]


def test_error_elsewhere_still_waits_for_the_save_in_the_making(tmp_path, held):
    threading.Timer(0.2, held.set).start()
    with pytest.raises(ZeroDivisionError), make(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, make_tensors(1.0), {"step": 1})
        raise ZeroDivisionError
    assert names(tmp_path) == ["step_00000001"]


def test_failed_background_save_is_logged_at_once_and_made_good_by_the_next(tmp_path, caplog):
    with make(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, make_tensors(1.0), {"step": 1})
        checkpoints._outcome()
        with full_disk():
            checkpoints.save(2, make_large_tensors(2.0), {"step": 2})
            concurrent.futures.wait([checkpoints._pending])
        assert "STEP 2 IS NOT SAVED, and the next checkpoint must succeed: could not save" in caplog.text
        assert names(tmp_path) == ["step_00000001"]
        checkpoints.save(3, make_large_tensors(3.0), {"step": 3})
        assert names(tmp_path) == ["step_00000001", "step_00000003"]  # this one was waited for


def test_second_failure_in_a_row_ends_the_run(tmp_path):
    with full_disk(), make(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, make_large_tensors(1.0), {"step": 1})
        with pytest.raises(CheckpointError, match="there is no earlier one"):
            checkpoints.save(2, make_large_tensors(2.0), {"step": 2})
        checkpoints.finish()  # told once
    assert names(tmp_path) == []


def test_failure_of_the_last_save_reaches_the_caller(tmp_path):
    with full_disk(), pytest.raises(CheckpointError), make(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, make_large_tensors(1.0), {"step": 1})


def test_failure_of_the_last_save_does_not_hide_another_error(tmp_path, caplog):
    with full_disk(), pytest.raises(ZeroDivisionError), make(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, make_large_tensors(1.0), {"step": 1})
        raise ZeroDivisionError
    assert "the last save failed too: could not save" in caplog.text


# ---------------------------------------------------------------- weights alone


def save_method(method, folder, step=4):
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {"optimizer.x.exp_avg": torch.ones(2)}
    return make(folder / "checkpoints").save(step, tensors, {"step": step})


@pytest.mark.parametrize("level", ["", "checkpoints", "checkpoints/step_00000004"])
def test_weights_load_from_a_run_its_checkpoints_or_one_of_them(tmp_path, level):
    trained, fresh = ToyMethod(), ToyMethod()
    trained.initialize(1)
    fresh.initialize(2)
    save_method(trained, tmp_path)
    assert load_weights(tmp_path / level, fresh, CPU)["step"] == 4
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


def test_weights_of_one_module_load_into_it(tmp_path):
    trained, fresh = ToyMethod(), ToyMethod()
    trained.initialize(1)
    save_method(trained, tmp_path)
    load_weights(tmp_path, fresh.encoder(), CPU, prefix=f"{METHOD_PREFIX}teacher.backbone.")
    for name, tensor in fresh.encoder().state_dict().items():
        assert torch.equal(tensor, trained.encoder().state_dict()[name]), name


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_method(ToyMethod(width=7), tmp_path)
    other = ToyMethod(width=9)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(TensorMismatch, match=r"method\.student\.backbone\.0\.weight is float32\[7, 12\]"):
        load_weights(tmp_path, other, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_damaged_weights_are_refused(tmp_path):
    flip_bit(next(save_method(ToyMethod(), tmp_path).glob("*.safetensors")))
    with pytest.raises(CheckpointError, match=r"safetensors is damaged"):
        load_weights(tmp_path, ToyMethod(), CPU)


def test_missing_checkpoint_says_what_to_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*name a run's output_dir"):
        load_weights(tmp_path, nn.Linear(1, 1), CPU)


def test_manifest_lists_every_file(tmp_path):
    folder = make(tmp_path).save(1, make_tensors(1.0), {"step": 1})
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(files) == sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    assert all(files[name]["bytes"] == (folder / name).stat().st_size for name in files)
