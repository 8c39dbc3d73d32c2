"""Linear probes and logistic regression of an untrained network on real scans of digits, whole runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.probe_run import probe_config, run_probe, untrained_encoder, write_digits
from webssl_fast.config.schema import LogisticRegressionConfig
from webssl_fast.data.sample import make_sample_data
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals import probe_heads
from webssl_fast.recipes import frozen_features
from webssl_fast.recipes.evaluate_linear_probe import evaluate_linear_probe
from webssl_fast.recipes.evaluate_logistic_regression import evaluate_logistic_regression

HERE = Distributed(torch.device("cpu"))
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def probe_command(digits: Path, output: Path, **settings) -> list[str]:
    return ["-m", "tests.recipes.probe_run", str(digits), str(output), json.dumps(settings)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def heads_of(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of the only save of the only probe."""
    (saved,) = (output / "linear_probe").glob("*/step_*")
    assert saved.name == "step_00000012"
    return {name: tensor for path in saved.iterdir() for name, tensor in load_file(path).items()}


def test_classifies_digits_well_above_chance(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All 52 heads, 60 steps of 64 crops; chance is .1. The class token of a random network tells that much."""
    encoder = untrained_encoder()
    config = probe_config(digits, tmp_path, num_steps=60, batch_size=64, crop_scale=(0.5, 1.0))
    result = evaluate_linear_probe(encoder, config, HERE)
    scores = result.scores
    heads = [name for name in scores if name.endswith("/val_top1") and not name.startswith("best_on_val")]
    assert result.name == "linear_probe" and len(heads) == 52
    assert scores["best_on_val/val_top1"] == max(scores[name] for name in heads) > 0.5
    assert scores["best_on_val/test_top1"] > 0.5 and scores["best_on_val/test_top5"] > 0.85
    assert scores["chance"] == pytest.approx(0.1)

    logistic = evaluate_logistic_regression(encoder, config, HERE).scores
    assert logistic["best_on_val/val_top1"] > 0.75 and logistic["best_on_val/test_top1"] > 0.7
    assert logistic["best_on_val/val_top1"] == max(v for name, v in logistic.items() if name.startswith("C_"))

    # Both again: the heads are trained and the features are there, so nothing is encoded.
    monkeypatch.setattr(frozen_features, "extract_into", lambda *_, **__: pytest.fail("features were computed again"))
    assert evaluate_linear_probe(encoder, config, HERE) == result
    assert evaluate_logistic_regression(encoder, config, HERE).scores == logistic


def test_without_test_source_the_score_is_that_on_val(digits: Path, tmp_path: Path):
    scores = run_probe(digits, tmp_path, test_source="").scores
    assert "best_on_val/val_top1" in scores and not any("test" in name for name in scores)


def test_a_kill_is_gone_on_from_bit_for_bit(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = run_probe(digits, tmp_path / "whole")
    killed = probe_command(digits, tmp_path / "killed", stop_at_step=6, stop_signal=signal.SIGKILL)
    assert subprocess.run([sys.executable, *killed], capture_output=True).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").glob("linear_probe/*/*")] == ["step_00000004"]

    take_step, taken = probe_heads.ProbeHeads.step, []
    monkeypatch.setattr(
        probe_heads.ProbeHeads, "step", lambda *args, **options: (taken.append(1), take_step(*args, **options))[1]
    )
    assert run_probe(digits, tmp_path / "killed") == expected
    assert len(taken) == 8
    whole, resumed = heads_of(tmp_path / "whole"), heads_of(tmp_path / "killed")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_other_settings_start_anew_beside(digits: Path, tmp_path: Path):
    run_probe(digits, tmp_path)
    run_probe(digits, tmp_path, crop_scale=(0.3, 1.0))
    assert len(list((tmp_path / "linear_probe").iterdir())) == 2


def test_what_two_ranks_began_one_finishes(digits: Path, tmp_path: Path):
    """Two ranks are told to stop and save; one process goes on from there. The heads are those of one process."""
    begun = probe_command(digits, tmp_path / "two", stop_at_step=4)
    stopped = subprocess.run([*TWO_RANKS, *begun], capture_output=True, text=True, timeout=120)
    assert "stopped after step 6 of the linear probe and saved" in stopped.stderr  # agreed upon a step later
    files = sorted(path.name for path in (tmp_path / "two").glob("linear_probe/*/step_00000006/*"))
    assert files == ["heads_00000.safetensors", "heads_00001.safetensors"]

    two, one = run_probe(digits, tmp_path / "two"), run_probe(digits, tmp_path / "one")
    heads_one, heads_two = heads_of(tmp_path / "one"), heads_of(tmp_path / "two")
    assert heads_one.keys() == heads_two.keys()
    for name, tensor in heads_one.items():
        torch.testing.assert_close(heads_two[name], tensor, rtol=1e-4, atol=1e-5)
    assert two.scores == pytest.approx(one.scores, abs=0.02)


@pytest.mark.nightly
def test_two_ranks_score_as_one_does(digits: Path, tmp_path: Path):
    """From the first step to the last, features of the images that judge shared out too."""
    done = subprocess.run(
        [*TWO_RANKS, *probe_command(digits, tmp_path / "two")], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    scores = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(scores) == 2 and scores[0] == scores[1]
    assert scores[0] == pytest.approx(run_probe(digits, tmp_path / "one").scores, abs=0.02)


@pytest.mark.nightly
def test_classifies_the_sample_photographs_well_above_chance(tmp_path: Path):
    """An untrained vit_tiny on 1,920 tiles of 16 photographs (chance is .0625), judged on 640 tiles of other blocks."""
    make_sample_data(tmp_path / "tiles")
    sources = {"train_source": str(tmp_path / "tiles/train"), "val_source": str(tmp_path / "tiles/test")}
    config = probe_config(tmp_path, tmp_path / "run", num_steps=60, batch_size=64, **sources, test_source="")
    logistic = LogisticRegressionConfig(**sources)
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"logistic_regression": logistic})})
    encoder = untrained_encoder(image_size_px=56)
    assert evaluate_linear_probe(encoder, config, HERE).scores["best_on_val/val_top1"] > 0.3
    assert evaluate_logistic_regression(encoder, config, HERE).scores["best_on_val/val_top1"] > 0.4


def test_rejects_bad_sources_and_settings(digits: Path, tmp_path: Path):
    def refused(error: type[Exception], message: str, **settings) -> None:
        with pytest.raises(error, match=message):
            run_probe(digits, tmp_path, **settings)

    refused(ConfigError, "eval.linear_probe.val_source is empty", val_source="")
    refused(ConfigError, "val_source .* lies in .*train_source.*not trained on", val_source=str(digits / "train"))
    refused(ConfigError, "test_source lies in .*val_source", test_source=str(digits / "val"))
    refused(ConfigError, "at most the 1197 training images", batch_size=2048)
    refused(ConfigError, "the last 4 blocks of an encoder of 2", num_blocks=(1, 4))
    refused(UserError, "no label", test_source=str(digits / "test" / "3"))
