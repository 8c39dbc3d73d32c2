import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import storage_sides
from benchmarks.loader_rivals import installed, torchvision_loaders, unpack, webdataset_loaders
from benchmarks.photo_shards import write_shards
from tests.data.image_files import encode, picture, write_folder
from webssl_fast.config.schema import DecodeConfig
from webssl_fast.data.decode import PillowDecoder
from webssl_fast.data.index import Index
from webssl_fast.data.read import SampleReader


def test_every_stage_is_measured_and_a_missing_gpu_is_said(tmp_path: Path):
    folder = write_folder(tmp_path, {f"{i}.jpg": encode(picture(80, 100, seed=i)) for i in range(3)})
    arguments = ["--images", str(folder), "--device", "cpu", "--num-images", "32", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, "-m", "benchmarks.bench_data", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["stage"] for line in lines} == {"read", "decode", "augment", "together"}
    assert all(line["images_per_second"] > 0 and line["device"] == "cpu" for line in lines)
    assert "not measured" in done.stderr


def test_photo_shards_are_the_same_photographs_each_time(tmp_path: Path):
    for folder in ("a", "b"):
        write_shards(tmp_path / folder, num_shards=2, num_images=5)
    shards = [[(tmp_path / folder / f"{i}.tar").read_bytes() for i in range(2)] for folder in ("a", "b")]
    assert shards[0] == shards[1] and shards[0][0] != shards[0][1]
    index = Index.open(f"{tmp_path}/a/*.tar")
    (*images, last) = PillowDecoder(DecodeConfig()).decode(SampleReader().read_many([*map(index.locate, range(10))]))
    assert len(images) == 9 and all(sorted(image.shape) == [3, 375, 500] for image in (*images, last))


@pytest.mark.skipif(not all(installed().values()), reason="torchvision and webdataset are in no extra of ours")
def test_other_loaders_load_as_many_images(tmp_path: Path):
    write_shards(tmp_path, num_shards=2, num_images=32)
    for rival in torchvision_loaders(unpack([f"{tmp_path}/0.tar"], tmp_path / "files"), 32, 16, [2]):
        rival.epoch()
    for rival in webdataset_loaders([f"{tmp_path}/{i}.tar" for i in range(2)], 32, 16, [1, 2]):
        rival.epoch()


def test_storage_and_index_are_measured(tmp_path: Path, monkeypatch, capsys):
    for name, value in (("NUM_SHARDS", 2), ("IMAGES_PER_SHARD", 40), ("READ_IMAGES", 32), ("IMAGE_BYTES", 70_000)):
        monkeypatch.setattr(storage_sides, name, value)
    scratch = {"scratch": str(tmp_path), "record": None}
    storage_sides.measure_storage(argparse.Namespace(latency_ms=1.0, storage_threads=4, repeats=1, **scratch))
    storage_sides.measure_index(argparse.Namespace(**scratch))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    requests = {line["run_length"]: line["requests_per_image"] for line in lines if line.get("place") == "http"}
    assert requests[1] > 0.4 and requests[16] < 0.2, "runs of neighbours are one request"
    assert lines[-1]["case"] == "index" and lines[-1]["open_ms"] < 1000 and lines[-1]["bytes_per_sample"] <= 16
    assert not list(tmp_path.iterdir())
