"""`webssl eval` judges whatever its sources can be."""

import json

import pytest
import torch
import transformers

from tests.models.published import NANO, authors_shapes, random_state
from webssl_fast.cli import main


@pytest.fixture
def evaluate(photos, tmp_path, capsys):
    def run(checkpoint, *more):
        overrides = [f"eval.knn.{split}_source={photos}/{split}" for split in ("train", "test")]
        overrides += ["eval.knn.k=3", f"eval.checkpoint={checkpoint}", f"output_dir={tmp_path}/out", *more]
        assert main(["eval", "configs/smoke/dinov2.yaml", *overrides]) == 0
        return json.loads((tmp_path / "out/eval/knn.json").read_text()), capsys.readouterr().out

    return run


def test_official_file(evaluate, tmp_path):
    torch.save(random_state(authors_shapes(NANO, 56)), tmp_path / "webssl.pth")
    result, printed = evaluate(tmp_path / "webssl.pth")
    assert result["encoder"]["name"] == "webssl.pth" and "webssl.pth" in printed
    assert result["scores"]["cls_top1"] == 1.0 and "untrained_scores" not in result, "two colours are easy"
    other, _ = evaluate(tmp_path / "webssl.pth", "eval.image_size_px=28")
    assert other["scores"].keys() == result["scores"].keys()


def test_hugging_face_folder(evaluate, tmp_path, caplog):
    config = transformers.IJepaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8, image_size=32
    )
    transformers.IJepaModel(config).save_pretrained(tmp_path / "ijepa")
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    content = {"size": {"height": 32, "width": 32}, **means}
    (tmp_path / "ijepa/preprocessor_config.json").write_text(json.dumps(content))
    result, printed = evaluate(tmp_path / "ijepa")
    assert result["encoder"]["name"] == "ijepa" and "untrained_scores" not in result and "untrained" not in printed
    assert result["scores"]["cls_top1"] == result["scores"]["patch_mean_top1"] == 1.0
    assert "ijepa has no trained class token; the mean of its patch tokens stands in its place" in caplog.text


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(photos, tmp_path, capsys):
    overrides = [f"eval.knn.{split}_source={photos}/{split}" for split in ("train", "test")]
    assert main(["eval", "configs/smoke/dinov2.yaml", *overrides, "output_dir=nowhere/run"]) == 1
    assert "there is no run at output_dir nowhere/run: train first, or set eval.checkpoint" in capsys.readouterr().err


def test_a_size_that_is_no_multiple_of_the_patch_size_is_refused(photos, tmp_path, capsys):
    torch.save(random_state(authors_shapes(NANO, 56)), tmp_path / "webssl.pth")
    overrides = [f"eval.knn.{split}_source={photos}/{split}" for split in ("train", "test")]
    overrides += [f"eval.checkpoint={tmp_path}/webssl.pth", "eval.image_size_px=60"]
    assert main(["eval", "configs/smoke/dinov2.yaml", *overrides]) == 1
    assert "not a multiple of the patch size 14 of webssl.pth; 56 and 70 are" in capsys.readouterr().err
