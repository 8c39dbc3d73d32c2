"""A training run on shards of a server that drops and delays connections is, bit for bit, the run on local shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.range_server import Faults, serving
from tests.data.image_files import encode, picture, write_tar
from tests.engine.comparison import assert_same_run
from webssl_fast.cli import main
from webssl_fast.data import storage

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke" / "dinov2.yaml"
SETTINGS = ["train.num_steps=12", "train.checkpoint_every=6", "eval.every=null", "eval.knn.train_source=",
            "eval.knn.test_source=", "seed=5"]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four shards of twelve images, JPEG, PNG and WebP, one of which is damaged."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        members = {}
        for i in range(12):
            format_name = ("JPEG", "PNG", "WEBP")[i % 3]
            members[f"{shard}-{i}.{format_name.lower()}"] = encode(picture(48, 64, seed=12 * shard + i), format_name)
            members[f"{shard}-{i}.json"] = json.dumps({"url": f"https://example.org/{i}"}).encode()
        write_tar(folder / f"{shard}.tar", members | {f"{shard}-7.png": b"damaged"} if shard == 2 else members)
    return folder


def train(output_dir: Path, *settings: str) -> None:
    assert main(["train", str(SMOKE), *SETTINGS, f"output_dir={output_dir}", *settings]) == 0


@pytest.mark.parametrize("shuffle_run", [1, 4])
def test_interrupted_remote_reads_change_no_bit_of_a_run(shards, tmp_path, monkeypatch, shuffle_run):
    monkeypatch.setattr(storage, "_MAX_DELAY_S", 0.01)
    in_runs = f"data.shuffle_run={shuffle_run}"
    train(tmp_path / "local", f"data.source={shards}/{{0..3}}.tar", in_runs, "data.num_threads=1")
    faults = Faults(drop_share=0.05, delay_share=0.1, delay_s=0.02, seed=1)
    with serving(shards, faults) as url:
        assert main(["data", "index", f"{url}/{{0..3}}.tar", "-o", str(tmp_path / "i"), "--workers", "1"]) == 0
        before = faults.num_dropped
        ahead = ["data.num_threads=3", "data.prefetch_batches=2"]
        remote = tmp_path / "remote"
        train(remote, f"data.source={tmp_path / 'i'}", in_runs, *ahead)
    assert faults.num_dropped > before, "no connection of the run itself was dropped: take another seed"
    assert_same_run(tmp_path / "local", remote, ignore=("read_retries",))
    (bad,) = (json.loads(line) for line in (remote / "bad_samples.jsonl").read_text().splitlines())
    assert bad["name"] == "2-7" and bad["path"].startswith("http")
