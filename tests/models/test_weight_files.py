"""Files of tensors: written and read bit for bit, and every wrong file refused without running anything in it."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.models.published import NANO, assert_same_bits, authors_shapes, random_state
from webssl_fast.errors import UserError
from webssl_fast.models.weight_files import (
    INDEX,
    read_json,
    read_pth,
    read_safetensors_folder,
    safetensors_files,
    write_pth,
    write_safetensors_folder,
)

STATE = random_state(authors_shapes(NANO, 56))


class PlantedCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pth_comes_back_bit_for_bit(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    write_pth(tmp_path / "x.pth", {"teacher": STATE, "half": half})
    content = read_pth(tmp_path / "x.pth")
    assert_same_bits(content["teacher"], STATE)
    assert_same_bits(content["half"], half)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_view_is_written_alone(tmp_path):
    whole = torch.randn(1000, 100)
    write_pth(tmp_path / "x.pth", {"part": whole[3:5], "turned": whole.t()})
    write_safetensors_folder(tmp_path, {"part": whole[3:5], "other": whole[5:7]})
    assert (tmp_path / "x.pth").stat().st_size < 420_000
    assert torch.equal(read_pth(tmp_path / "x.pth")["turned"], whole.t())
    assert torch.equal(read_safetensors_folder(tmp_path)["part"], whole[3:5])


def test_pth_is_mapped_not_read(tmp_path):
    write_pth(tmp_path / "x.pth", {"x": torch.ones(1000)})
    tensor = read_pth(tmp_path / "x.pth")["x"]
    with open("/proc/self/maps") as maps:
        assert str(tmp_path / "x.pth") in maps.read()
    assert tensor.sum() == 1000


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_safetensors_come_back_bit_for_bit(tmp_path, shard_bytes):
    write_safetensors_folder(tmp_path, STATE, shard_bytes)
    assert_same_bits(read_safetensors_folder(tmp_path), STATE)
    files = sorted(path.name for path in tmp_path.iterdir())
    if shard_bytes == 10**9:
        assert files == ["model.safetensors"]
        return
    assert len(files) > 3
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"].keys() == STATE.keys()
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in STATE.values())
    largest = max(4 * tensor.numel() for tensor in STATE.values())
    assert all((tmp_path / name).stat().st_size < max(largest, shard_bytes) + 4000 for name in files)


# ---------------------------------------------------------------- refusals

WRONG = {
    "HTML": (b"\n<!DOCTYPE html><html>404</html>", "an HTML or XML page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
    "nothing": (b"", "empty"),
    "a tar of old": (b"\x1f\x8b\x08", "a gzip archive"),
    "noise": (bytes(range(200, 250)), "begins with"),
    "JSON": (b'{"error": "not found"}', "a JSON text"),
}


@pytest.mark.parametrize(("data", "found"), WRONG.values(), ids=WRONG)
def test_refuses_what_is_no_file_of_torch(tmp_path, data, found):
    path = tmp_path / "webssl.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"webssl\.pth is .*{found}.*; expected a zip archive of torch\.save"):
        read_pth(path)


def test_refuses_an_unfinished_download(tmp_path):
    path = tmp_path / "webssl.pth"
    write_pth(path, STATE)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"webssl\.pth is a zip archive that breaks off"):
        read_pth(path)


def test_refuses_a_zip_that_is_not_of_torch(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "webssl.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"webssl\.pth is a zip archive, but not an intact one of torch\.save"):
        read_pth(tmp_path / "webssl.pth")


def test_refuses_pickled_code_without_running_it(tmp_path):
    planted = tmp_path / "planted"
    torch.save({"cls_token": torch.zeros(1), "epoch": PlantedCode(planted)}, tmp_path / "zip.pth")
    with pytest.raises(UserError, match=r"zip\.pth asks for \w+\.mkdir, so .* nothing in it was executed"):
        read_pth(tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(PlantedCode(planted)))
    with pytest.raises(UserError, match=r"bare\.pth is a bare pickle, which could run code"):
        read_pth(tmp_path / "bare.pth")
    assert not planted.exists()


def test_refuses_another_container(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth holds a list; expected"):
        read_pth(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no file .*y\.pth"):
        read_pth(tmp_path / "y.pth")


@pytest.mark.parametrize("length", [0, 5, 600, -8])
def test_refuses_truncated_safetensors(tmp_path, length):
    save_file(STATE, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is no intact safetensors file .* expected the whole file"):
        safetensors_files(tmp_path)


def test_refuses_a_folder_with_gaps(tmp_path):
    with pytest.raises(UserError, match=r"has no model\.safetensors; expected model\.safetensors, or model\.safe"):
        read_safetensors_folder(tmp_path)
    write_safetensors_folder(tmp_path, STATE, 40_000)
    (tmp_path / next(name for name in os.listdir(tmp_path) if name.startswith("model-00002"))).unlink()
    with pytest.raises(UserError, match=r"has no model-00002-of"):
        read_safetensors_folder(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": ["x"]}')
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        read_safetensors_folder(tmp_path)


def test_refuses_what_is_no_json_object(tmp_path):
    for text, reason in (("<html>", "not a readable JSON"), ("[1]", "holds a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config\.json .*{reason}|config\.json is {reason}"):
            read_json(tmp_path / "config.json")
