"""`webssl convert --to hf_dual_encoder`: transformers computes what our own method computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.recipes.captioned import caption_tiles
from tests.recipes.test_encoder_source import make_mae_run
from webssl_fast.cli import main
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.recipes.convert import convert
from webssl_fast.recipes.encoder_source import load_method
from webssl_fast.recipes.pretrain import pretrain

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke"
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    caption_tiles(root)
    return root


@pytest.fixture(scope="module")
def pairs(tiles: Path) -> tuple[torch.Tensor, list[str]]:
    """Held-out tiles of photographs [8, 3, 56, 56], and their captions."""
    paths = sorted((tiles / "test").glob("*/*.jpg"))[::17][:8]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = [torch.from_numpy(np.array(Image.open(path).resize((56, 56)))).float() / 255 for path in paths]
    normalised = torch.stack([((image - mean) / std).permute(2, 0, 1) for image in images])
    return normalised, [path.with_suffix(".txt").read_text() for path in paths]


def trained_run(name: str, tiles: Path, output_dir: Path, *overrides: str) -> Path:
    # Real steps, so that no tensor is still what it is initialised to.
    train = ["train.device=cpu", "train.num_threads=1", "optim.base_lr=0.02", *overrides]
    pretrain(SMOKE / f"{name}.yaml", [f"data.source={tiles}/train", f"output_dir={output_dir}", *train])
    return output_dir


@pytest.mark.parametrize(
    ("name", "activation"), [("clip", "gelu"), ("clip", "quick_gelu"), ("siglip", "gelu")], ids=lambda value: value
)
def test_transformers_computes_the_same(name, activation, tiles, pairs, tmp_path, caplog):
    run = trained_run(
        name, tiles, tmp_path / "run", f"method.text.activation={activation}", "model.swiglu_pad_multiple=64"
    )
    convert([str(run)], "hf_dual_encoder", tmp_path / "hf")
    theirs, loading = transformers.VisionTextDualEncoderModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_method(run)
    assert isinstance(ours, ImageTextMethod)

    images, captions = pairs
    captions = [*captions[:-1], "a caption, that goes on and on; " * 20]  # which is cut
    tokens_BN, num_tokens_B = ours.tokenizer(captions)
    theirs_BN = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    for row, count in enumerate(num_tokens_B):
        assert torch.equal(theirs_BN[row, :count], tokens_BN[row, :count])
    with torch.no_grad():
        image_BD, text_BD = ours.embed(images, tokens_BN, num_tokens_B)
        scale, bias = ours.logit_scale()
        found = theirs.eval()(pixel_values=images, input_ids=theirs_BN)
    torch.testing.assert_close(found.image_embeds, image_BD, **TOLERANCE)
    torch.testing.assert_close(found.text_embeds, text_BD, **TOLERANCE)
    # Of the size of the scale, so the tolerance is relative to it.
    torch.testing.assert_close(found.logits_per_image / scale, image_BD @ text_BD.T, **TOLERANCE)
    torch.testing.assert_close(theirs.logit_scale.exp(), scale)

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config.get("logit_bias") == (None if bias is None else bias.item())
    assert ("has no place for SigLIP's bias" in caplog.text) == (name == "siglip")
    preprocessor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert preprocessor["crop_size"] == {"height": 56, "width": 56}


def test_what_is_no_pair_of_towers_is_refused(tmp_path, capsys):
    make_mae_run(tmp_path / "mae")
    assert main(["convert", str(tmp_path / "mae"), "--to", "hf_dual_encoder", "-o", "x"]) == 1
    assert "was trained by mae, which has no text tower; its network goes with --to hf" in capsys.readouterr().err
    assert main(["convert", "a", "b", "--to", "hf_dual_encoder", "-o", "x"]) == 1
    assert "takes one run of clip or siglip" in capsys.readouterr().err


def test_an_image_network_that_pools_otherwise_is_refused(tiles, tmp_path, capsys):
    run = trained_run("clip", tiles, tmp_path / "run", "model.preset=vit_mae_nano_patch14")
    assert main(["convert", str(run), "--to", "hf_dual_encoder", "-o", str(tmp_path / "hf")]) == 1
    assert "as a ViTModel" in capsys.readouterr().err and not (tmp_path / "hf").exists()
