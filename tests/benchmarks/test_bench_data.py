import json
import subprocess
import sys
from pathlib import Path

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
