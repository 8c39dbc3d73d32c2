"""`webssl convert`: every direction keeps every bit, and every form works where a source is asked for."""

import pytest
import torch
import transformers
from PIL import Image

from tests.models.published import (
    NANO,
    assert_same_bits,
    authors_shapes,
    random_heads,
    random_state,
    random_teacher,
)
from tests.recipes.test_encoder_source import make_ijepa_run, make_mae_run, make_run
from webssl_fast.cli import main
from webssl_fast.models.weight_files import read_pth
from webssl_fast.recipes.encoder_source import load_encoder, read_weights

BACKBONE = random_state(authors_shapes(NANO, 56))


def convert(source, to, target) -> int:
    sources = source if isinstance(source, list) else [source]
    return main(["convert", *map(str, sources), "--to", to, "-o", str(target)])


@pytest.fixture
def teacher(tmp_path):
    torch.save(random_teacher(), tmp_path / "x_ssl_teacher.pth")
    return tmp_path / "x_ssl_teacher.pth"


@pytest.mark.parametrize("path", [["native"], ["hf"], ["native", "hf"], ["hf", "native", "hf"], ["webssl", "native"]])
def test_every_way_back_to_the_official_file_keeps_every_bit(teacher, tmp_path, path):
    source = teacher
    for number, form in enumerate(path):
        target = tmp_path / f"{number}_{form}{'.pth' if form == 'webssl' else ''}"
        assert convert(source, form, target) == 0
        source = target
    assert convert(source, "webssl", tmp_path / "back.pth") == 0
    assert_same_bits(read_pth(tmp_path / "back.pth"), BACKBONE)


def test_heads_go_to_our_form_and_back(teacher, tmp_path, capsys):
    assert convert(teacher, "native", tmp_path / "native") == 0
    assert "vit_nano_patch14 at 56 px, heads: yes" in capsys.readouterr().out
    assert convert(tmp_path / "native", "webssl", tmp_path / "y.pth") == 0
    assert convert([tmp_path / "y.pth", tmp_path / "y_ssl_heads.pth"], "native", tmp_path / "again") == 0
    assert_same_bits(read_weights([tmp_path / "again"]).heads, random_heads())


def test_a_backbone_without_heads_goes_to_our_form_and_back(tmp_path):
    torch.save(BACKBONE, tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth", "native", tmp_path / "native") == 0
    weights = read_weights([tmp_path / "native"])
    assert not weights.heads
    assert convert(tmp_path / "native", "webssl", tmp_path / "y.pth") == 0
    assert_same_bits(read_pth(tmp_path / "y.pth"), BACKBONE)


def test_every_form_gives_the_same_encoder(teacher, tmp_path):
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = load_encoder(teacher)(images)
        for form in ("native", "hf"):
            assert convert(teacher, form, tmp_path / form) == 0
            found = load_encoder(tmp_path / form)(images)
            torch.testing.assert_close(found.cls_token, expected.cls_token, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.patch_tokens, expected.patch_tokens, atol=1e-5, rtol=1e-5)


def test_own_padded_run_is_exported_exactly(tmp_path):
    method = make_run(tmp_path / "mine", swiglu_pad_multiple=64)
    assert convert(tmp_path / "mine", "webssl", tmp_path / "mine.pth") == 0
    found = read_pth(tmp_path / "mine.pth")
    assert {name: tensor.shape for name, tensor in found.items()} == authors_shapes(NANO, 56)
    w12 = method.teacher.backbone.blocks[1].mlp.w12.weight
    assert torch.equal(found["blocks.1.1.mlp.w12.weight"], torch.cat([w12[:176], w12[192 : 192 + 176]]))
    assert convert(tmp_path / "mine", "hf", tmp_path / "hf") == 0
    assert convert(tmp_path / "hf", "webssl", tmp_path / "again.pth") == 0
    assert_same_bits(read_pth(tmp_path / "again.pth"), found)


def test_leaves_what_is_there_alone(teacher, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    for form in ("native", "hf"):
        assert convert(teacher, form, tmp_path / "taken") == 1
        assert "taken exists already" in capsys.readouterr().err
    assert not list((tmp_path / "taken").iterdir())


def test_says_what_hugging_face_has_no_place_for(teacher, tmp_path, capsys, caplog):
    assert convert(teacher, "hf", tmp_path / "hf") == 0
    assert "the heads of" in caplog.text


def test_a_mae_run_goes_to_transformers_and_back(tmp_path):
    method = make_mae_run(tmp_path / "mine")
    assert convert(tmp_path / "mine", "hf", tmp_path / "hf") == 0
    model = transformers.ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        for source in ("mine", "hf"):
            found = load_encoder(tmp_path / source)(images)
            torch.testing.assert_close(found.cls_token, expected[:, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.patch_tokens, expected[:, 1:], atol=1e-5, rtol=1e-5)
    assert_same_bits(read_weights([tmp_path / "hf"]).backbone, method.backbone.state_dict())


@pytest.mark.parametrize("path", [["native"], ["hf", "native"], ["webssl", "hf"], ["webssl", "native", "hf"]])
def test_every_way_from_a_mae_run_keeps_every_bit(tmp_path, path):
    method = make_mae_run(tmp_path / "mine")
    source = tmp_path / "mine"
    for number, form in enumerate(path):
        target = tmp_path / f"{number}_{form}{'.pth' if form == 'webssl' else ''}"
        assert convert(source, form, target) == 0
        source = target
    assert convert(source, "webssl", tmp_path / "back.pth") == 0
    assert_same_bits(read_pth(tmp_path / "back.pth"), method.backbone.state_dict())


def test_the_target_encoder_of_an_ijepa_run_goes_to_transformers(tmp_path):
    method = make_ijepa_run(tmp_path / "mine")
    assert convert(tmp_path / "mine", "hf", tmp_path / "hf") == 0
    model = transformers.ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    images = torch.randn(2, 3, 84, 84)
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 1:]
        found = load_encoder(tmp_path / "mine")(images)
    torch.testing.assert_close(found.patch_tokens, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cls_token, expected.mean(dim=1), atol=1e-5, rtol=1e-5)
    assert_same_bits(read_weights([tmp_path / "hf"]).backbone, method.teacher.backbone.state_dict())


def test_a_mae_run_does_not_start_from_published_weights(tmp_path, capsys):
    """They come without the decoder that they were trained with."""
    make_mae_run(tmp_path / "mine")
    assert convert(tmp_path / "mine", "hf", tmp_path / "hf") == 0
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    overrides = [f"method.init_from={tmp_path / 'hf'}", f"data.source={tmp_path}", f"output_dir={tmp_path / 'new'}"]
    assert main(["train", "configs/smoke/mae.yaml", *overrides, "train.device=cpu"]) == 1
    assert "mae cannot start from published weights; name a checkpoint of a run by mae" in capsys.readouterr().err
