import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import storage_sides
from tests.data.image_files import encode, picture, write_folder


def test_every_stage_is_measured_and_a_missing_gpu_is_said(tmp_path: Path):
    folder = write_folder(tmp_path, {f"{i}.jpg": encode(picture(80, 100, seed=i)) for i in range(3)})
    arguments = ["--images", str(folder), "--device", "cpu", "--num-images", "32", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, "-m", "benchmarks.bench_data", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["stage"] for line in lines} == {"read", "decode", "augment", "together"}
    assert all(line["images_per_second"] > 0 and line["device"] == "cpu" for line in lines)
    assert "not measured" in done.stderr


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
