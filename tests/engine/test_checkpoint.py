import json
import resource
import shutil

import pytest
import torch
from torch import nn

from tests.engine.toy_method import ToyMethod
from webssl_fast.engine.checkpoint import CheckpointError, Checkpoints, load_weights
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


def make(folder, keep=3, keep_every=None):
    return Checkpoints(folder, CPU, keep=keep, keep_every=keep_every)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


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


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(tmp_path):
    checkpoints = make(tmp_path)
    whole = checkpoints.save(1, make_tensors(1.0), {"step": 1})
    shutil.copytree(whole, tmp_path / "saving_step_00000002")
    shutil.copytree(whole, tmp_path / "removing_step_00000000")
    (tmp_path / "saving_step_00000002/manifest.json").unlink()
    assert checkpoints.load_newest(make_tensors()) == {"step": 1}
    checkpoints.save(3, make_tensors(1.0), {"step": 3})
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_full_disk_is_an_error_and_the_last_checkpoint_survives(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(1, make_tensors(1.0), {"step": 1})
    large = make_tensors(2.0) | {"method.large": torch.zeros(300_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # the kernel then refuses the write, as a full disk does
    try:
        with pytest.raises(CheckpointError, match=r"could not save .*step_00000001\. Make room"):
            checkpoints.save(2, large, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoints.load_newest(make_tensors()) == {"step": 1}
    checkpoints.save(2, large, {"step": 2})
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


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
