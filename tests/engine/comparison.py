"""Whether two runs are the same run, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.toy_method import ToyMethod
from webssl_fast.engine.checkpoint import METHOD_PREFIX, load_weights
from webssl_fast.engine.distributed import Distributed

# What may differ between two equal runs: how long things took, and how much memory they had.
MEASURED = ("samples_per_second", "data_wait_share", "memory_peak_rss_gib")


def assert_same_run(run: Path, other: Path, ignore: tuple[str, ...] = ()) -> None:
    """Equal weights, moments and counters in the newest checkpoints, equal metrics, equal lists of skipped batches."""
    tensors, others = tensors_of(run), tensors_of(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert metrics_of(run, ignore) == metrics_of(other, ignore)
    paths = [path / "nonfinite_batches.jsonl" for path in (run, other)]
    skipped, others_skipped = (path.read_text() if path.exists() else "" for path in paths)
    assert skipped == others_skipped


def tensors_of(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint by file and name, read without the code under test."""
    newest = max((run / "checkpoints").glob("step_*"))
    files = {path.name: load_file(path) for path in newest.glob("*.safetensors")}
    return {f"{file}: {name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def metrics_of(run: Path, ignore: tuple[str, ...] = ()) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in MEASURED + ignore} for row in rows]
    return [row for row in rows if set(row) - {"step"}]


def module_weights(run: Path, name: str) -> dict[str, Tensor]:
    """The state dict of one module of the toy method, whole in this process, whatever number of ranks saved it."""
    module = ToyMethod().get_submodule(name)
    load_weights(run, module, Distributed(torch.device("cpu")), prefix=f"{METHOD_PREFIX}{name}.")
    return module.state_dict()
