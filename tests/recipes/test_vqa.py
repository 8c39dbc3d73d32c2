"""`webssl vqa` end to end: both stages, the model, the answers, the row; what is done stays done, and what is
interrupted goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.evals.vqa.tiny_benchmarks import NUM_QUESTIONS, write_tiny_benchmarks
from tests.rendered_scenes import write_scenes
from tests.tiny_language import write_tiny_language_model
from webssl_fast.cli import main
from webssl_fast.config.load import load_config, load_config_of, save_config
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.errors import ConfigError
from webssl_fast.recipes.pretrain import pretrain
from webssl_fast.vqa_categories import BENCHMARKS

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("mmvp", "chartqa", "scienceqa")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """An encoder that has hardly been trained, a tiny language model, conversations and benchmarks."""
    folder = tmp_path_factory.mktemp("sources")
    write_scenes(folder / "data", 60, seed=0)
    write_tiny_language_model(folder / "llm", tied=False, std=0.3)
    write_tiny_benchmarks(folder / "benchmarks")
    images = folder / "data" / "images"
    pretrain(CONFIGS / "smoke/mae.yaml", [f"data.source={images}", f"output_dir={folder / 'encoder'}", *ONE_THREAD])
    return folder


ONE_THREAD = ("train.num_threads=1", "train.device=cpu")


def overrides(sources: Path, output_dir: Path, *more: str) -> list[str]:
    data = sources / "data"
    return [
        f"encoder={sources / 'encoder'}",
        f"language_model.source={sources / 'llm'}",
        "language_model.max_tokens=256",
        *(f"{stage}.data.conversations={data / 'conversations.jsonl'}" for stage in ("stage1", "stage2")),
        *(f"{stage}.data.images={data / 'images'}" for stage in ("stage1", "stage2")),
        f"benchmarks.root={sources / 'benchmarks'}",
        "benchmarks.allow_subset=true",
        f"benchmarks.names=[{', '.join(NAMES)}]",
        f"output_dir={output_dir}",
        *ONE_THREAD,
        *more,
    ]


def run(sources: Path, output_dir: Path, *more: str) -> int:
    return main(["vqa", str(CONFIGS / "vqa/smoke.yaml"), *overrides(sources, output_dir, *more)])


def losses(output_dir: Path, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (output_dir / stage / "metrics.jsonl").read_text().splitlines()]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    model = output_dir / "model"
    return {**load_file(model / "adapter.safetensors"), **load_file(model / "language_model" / "model.safetensors")}


@pytest.fixture(scope="module")
def done(sources, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "vqa"
    assert run(sources, output_dir) == 0
    return output_dir


def test_one_command_leads_to_the_row(sources, done, capsys):
    content = json.loads((done / "eval/vqa.json").read_text())
    assert content["evaluation"] == "vqa" and content["encoder"]["source"] == str(sources / "encoder")
    assert len(content["encoder"]["sha256"]) == 64 and set(NAMES) <= content["scores"].keys()
    assert content["config"]["adapter"] == {"num_image_tokens": 4, "image_newline": True}
    for name in NAMES:
        lines = (done / "eval/vqa" / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == 1 + NUM_QUESTIONS[name], "a header, then the answers"
    assert len(losses(done, "stage1")) == 2 and len(losses(done, "stage2")) == 4


def test_what_is_done_is_not_done_again(sources, done, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr("webssl_fast.recipes.vqa_training._train", refuse)
    monkeypatch.setattr("webssl_fast.models.vision_language.VisionLanguageModel._answer", refuse)
    assert run(sources, done) == 0


def test_answers_are_scored_again_without_a_model(sources, done, monkeypatch):
    before = json.loads((done / "eval/vqa.json").read_text())
    (done / "eval/vqa.json").unlink()
    monkeypatch.setattr("webssl_fast.recipes.vqa.load_encoder", None)
    assert run(sources, done, "--score-only") == 0
    after = json.loads((done / "eval/vqa.json").read_text())
    assert all(after[key] == before[key] for key in ("encoder", "scores", "config"))


def test_an_interrupted_run_goes_on_bit_for_bit(sources, done, tmp_path):
    again = tmp_path / "vqa"
    shutil.copytree(done, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "eval")
    shutil.rmtree(again / "stage2/checkpoints/step_00000004")
    assert run(sources, again) == 0
    expected, found = weights(done), weights(again)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(again, "stage2") == losses(done, "stage2")


def test_both_stages_lower_the_loss(sources, tmp_path):
    more = ["stage1.num_steps=25", "stage1.optim.base_lr=2e-2", "stage2.num_steps=60", "stage2.optim.base_lr=5e-3"]
    assert run(sources, tmp_path, *more, "train.checkpoint_every=100") == 0
    first, second = losses(tmp_path, "stage1"), losses(tmp_path, "stage2")
    assert sum(first[-5:]) < 0.98 * sum(first[:5])
    assert sum(second[-5:]) < 0.6 * sum(second[:5])


def test_tokens_computed_beforehand_train_the_same(sources, done, tmp_path):
    more = ("stage1.data.precompute=true", "stage2.data.precompute=true")
    assert run(sources, tmp_path, *more) == 0
    assert losses(tmp_path, "stage2") == pytest.approx(losses(done, "stage2"), abs=0.02), "bf16 on the disk"
    shards = list((tmp_path / "image_tokens").rglob("*.tokens"))
    assert len(shards) == 1, "both stages share the tokens of one set of images"


def test_low_rank_updates_are_merged(sources, done, tmp_path):
    pytest.importorskip("peft")
    assert run(sources, tmp_path, "stage2.lora.rank=4", "stage2.optim.base_lr=1e-2") == 0
    published = load_file(sources / "llm/model.safetensors")
    trained = load_file(tmp_path / "model/language_model/model.safetensors")
    changed = {name for name in published if not torch.equal(published[name], trained[name])}
    assert trained.keys() == published.keys() and changed == {name for name in published if "_proj" in name}


def test_rejects_another_encoder(sources, done, tmp_path, capsys):
    images = sources / "data" / "images"
    pretrain(
        CONFIGS / "smoke/mae.yaml", [f"data.source={images}", f"output_dir={tmp_path / 'other'}", "seed=1", *ONE_THREAD]
    )
    assert run(sources, done, f"encoder={tmp_path / 'other'}") == 1
    assert "was trained with the encoder encoder/step_00000004" in capsys.readouterr().err
    shutil.copytree(done, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "model")
    assert run(sources, tmp_path / "half", f"encoder={tmp_path / 'other'}") == 1
    assert "stage1/adapter.safetensors was trained with the encoder" in capsys.readouterr().err
    assert run(sources, tmp_path / "half", "adapter.image_newline=false") == 1
    assert "'newline': (32,)" in capsys.readouterr().err, "the shape that it has, beside the one that is asked for"


def test_rejects_a_language_model_without_a_template(sources, tmp_path, capsys):
    write_tiny_language_model(tmp_path / "llm", template=None)
    assert run(sources, tmp_path / "run", f"language_model.source={tmp_path / 'llm'}") == 1
    assert "language_model.chat_template to one of llama_3" in capsys.readouterr().err


def test_missing_benchmarks_are_said_before_training(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run(sources, tmp_path / "run", f"benchmarks.root={tmp_path}") == 1
    assert "no data for 3 of 3 benchmarks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder=", "encoder is not set"),
        ("language_model.source=", "language_model.source is not set"),
        ("stage2.data.conversations=", "stage2.data.conversations is not set"),
        ("adapter.num_image_tokens=8", "must be a square, such as 4 or 9"),
        ("train.num_steps=7", "set stage1.num_steps or stage2.num_steps"),
        ("stage1.optim.warmup_steps=7", "set warmup_share"),
        ("stage1.lora.rank=8", "did you mean stage2.lora"),
    ],
)
def test_rejects_settings_that_cannot_be(sources, tmp_path, capsys, override, message):
    assert run(sources, tmp_path, override) == 1
    assert message in capsys.readouterr().err


def test_the_papers_recipe():
    config = load_config_of(VqaConfig, CONFIGS / "vqa/cambrian_llama3_8b.yaml")
    stages = [
        (s.optim.base_lr, s.optim.warmup_share, s.optim.weight_decay, s.epochs) for s in (config.stage1, config.stage2)
    ]
    assert stages == [(1e-5, 0.06, (0.0, 0.0), 1.0), (4e-5, 0.03, (0.0, 0.0), 1.0)]
    assert config.train.global_batch_size == 512 and config.language_model.max_tokens == 2048
    assert config.adapter.num_image_tokens == 576 and not config.adapter.image_newline
    assert not config.benchmarks.names or set(config.benchmarks.names) == set(BENCHMARKS)


def test_a_saved_config_can_be_run(tmp_path):
    config = load_config_of(VqaConfig, CONFIGS / "vqa/smoke.yaml", ["encoder=x"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config_of(VqaConfig, tmp_path / "config.yaml") == config
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(tmp_path / "config.yaml")
