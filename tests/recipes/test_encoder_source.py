"""What a source is taken for, encoders and weights of own runs, and what is refused."""

import json
import shutil

import pytest
import torch

from tests.models.published import NANO, assert_same_bits, authors_shapes, random_state, random_teacher
from webssl_fast.config.load import save_config
from webssl_fast.config.schema import (
    DataConfig,
    DecodeConfig,
    DinoV2Config,
    HeadConfig,
    IJepaConfig,
    MaeConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from webssl_fast.engine.checkpoint import METHOD_PREFIX, Checkpoints
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.methods import build_method
from webssl_fast.models.encoders import BackboneEncoder, Encoder
from webssl_fast.recipes import encoder_source
from webssl_fast.recipes.encoder_source import is_own_training, load_encoder, read_weights, untrained_twin

HEAD = HeadConfig(hidden_dim=32, bottleneck_dim=16, num_prototypes=64)


def make_run(folder, **model):
    """What training by DINOv2 leaves, with random weights; returns the method too."""
    config = RunConfig(
        output_dir=str(folder),
        model=ModelConfig(**{"preset": "vit_nano_patch14", "image_size_px": 56, "layer_scale_init": 0.5, **model}),
        method=DinoV2Config(dino_head=HEAD, ibot_head=HEAD),
        train=TrainConfig(global_batch_size=4, group_size=4, device="cuda"),
        data=DataConfig(decode=DecodeConfig(device="gpu")),  # a run of another machine
    )
    method = build_method(config)
    method.initialize(1)
    with torch.no_grad():  # student and teacher apart
        for p in method.student.parameters():
            p.add_(1)
    write_run(folder, config, method)
    return method


def make_mae_run(folder):
    """The same by MAE."""
    return _make_gelu_run(folder, MaeConfig(decoder_width=32, decoder_depth=2, decoder_num_heads=2), image_size_px=56)


def make_ijepa_run(folder):
    """The same by I-JEPA, at 84 pixels."""
    sizes = {"predictor_width": 32, "predictor_depth": 2, "predictor_num_heads": 2}
    return _make_gelu_run(folder, IJepaConfig(**sizes), image_size_px=84)


def _make_gelu_run(folder, method_config, image_size_px):
    config = RunConfig(
        output_dir=str(folder),
        model=ModelConfig(preset="vit_mae_nano_patch14", image_size_px=image_size_px),
        method=method_config,
        train=TrainConfig(global_batch_size=4, group_size=4),
    )
    method = build_method(config)
    method.initialize(1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.1)
    write_run(folder, config, method)
    return method


def write_run(folder, config, method):
    tensors = {METHOD_PREFIX + name: tensor for name, tensor in method.state_dict().items()}
    tensors["optimizer.x"] = torch.zeros(1)
    checkpoints = Checkpoints(folder / "checkpoints", Distributed(torch.device("cpu")), keep=3, keep_every=None)
    for step in (2, 4):
        checkpoints.save(step, tensors, {"step": step})
    save_config(config, folder / "config.yaml")


@pytest.mark.parametrize("level", ["", "checkpoints", "checkpoints/step_00000004"])
def test_own_run_gives_its_teacher(tmp_path, level):
    method = make_run(tmp_path / "mine")
    encoder = load_encoder(tmp_path / "mine" / level)
    assert isinstance(encoder, Encoder) and encoder.name == "mine/step_00000004"
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert_same_bits(encoder.backbone.state_dict(), method.teacher.backbone.state_dict())


def test_a_run_without_a_trained_class_token_is_judged_by_its_patch_mean(tmp_path, caplog):
    method = make_ijepa_run(tmp_path / "mine")
    encoder, images = load_encoder(tmp_path / "mine"), torch.randn(2, 3, 84, 84)
    assert_same_bits(encoder.backbone.state_dict(), method.teacher.backbone.state_dict())
    assert "mine/step_00000004 has no trained class token; the mean of its patch tokens stands in" in caplog.text
    for judged in (encoder, untrained_twin(encoder, seed=0)):
        with torch.no_grad():
            features = judged(images)
        assert judged.cls_source == "patch_mean" and torch.equal(features.cls_token, features.patch_tokens.mean(dim=1))


def test_own_weights_come_without_padding(tmp_path):
    method = make_run(tmp_path / "mine", swiglu_pad_multiple=64)
    weights = read_weights([tmp_path / "mine"])
    assert method.teacher.backbone.blocks[0].mlp.w3.weight.shape == (64, 192)
    assert weights.backbone["blocks.0.mlp.w3.weight"].shape == (64, 176)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        of_weights = BackboneEncoder.from_weights(weights)(images)
        torch.testing.assert_close(of_weights.patch_tokens, load_encoder(tmp_path / "mine")(images).patch_tokens)
    assert weights.heads.keys() == {
        f"{head}.{name}" for head in ("dino_head", "ibot_head") for name in method.teacher.dino_head.state_dict()
    }


def test_official_files(tmp_path):
    torch.save(random_teacher(), tmp_path / "x_ssl_teacher.pth")
    torch.save(random_state(authors_shapes(NANO, 56)), tmp_path / "x.pth")
    images = torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        of_teacher, alone = (load_encoder(tmp_path / name)(images) for name in ("x_ssl_teacher.pth", "x.pth"))
    assert torch.equal(of_teacher.cls_token, alone.cls_token)


def test_untrained_twin_has_the_architecture_and_the_seed(tmp_path):
    torch.save(random_teacher(), tmp_path / "x_ssl_teacher.pth")
    encoder = load_encoder(tmp_path / "x_ssl_teacher.pth")
    first, second, other = (untrained_twin(encoder, seed).backbone.state_dict() for seed in (0, 0, 1))
    assert_same_bits(first, second)
    assert first.keys() == encoder.backbone.state_dict().keys()
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_a_hub_id_is_one_that_no_path_can_be(tmp_path, monkeypatch):
    asked = []

    def load_hugging_face(source):
        asked.append(source)
        raise UserError("no network")

    monkeypatch.setattr(encoder_source, "load_hugging_face", load_hugging_face)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="there is no runs/quickstrat; expected a run's output_dir"):
        load_encoder("runs/quickstrat")
    assert not asked
    with pytest.raises(UserError, match="no network"):
        load_encoder("facebook/webssl-dino1b-full2b-224")
    assert asked == ["facebook/webssl-dino1b-full2b-224"]
    with pytest.raises(UserError, match="is not on this machine; fetch it first: hf download facebook/webssl-dino1b"):
        read_weights(["facebook/webssl-dino1b-full2b-224"])


# ---------------------------------------------------------------- refusals


def test_refuses_what_is_none_of_it(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="holds no checkpoint, but photo.jpg; expected a run's output_dir"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match=r"photo\.jpg is a file, but not one that ends in \.pth; expected"):
        load_encoder(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"there is no .*nowhere\.pth; expected"):
        load_encoder(tmp_path / "nowhere.pth")


def test_refuses_a_page_that_was_saved_as_weights(tmp_path):
    (tmp_path / "webssl.pth").write_text("<!doctype html><title>403</title>")
    with pytest.raises(UserError, match=r"webssl\.pth is an HTML or XML page .*; expected a zip archive"):
        load_encoder(tmp_path / "webssl.pth")


def test_refuses_a_checkpoint_without_its_config(tmp_path):
    make_run(tmp_path / "mine")
    (tmp_path / "mine/config.yaml").unlink()
    with pytest.raises(UserError, match=r"without its run's config; put that back at .*mine/config\.yaml"):
        load_encoder(tmp_path / "mine")


def test_refuses_a_damaged_checkpoint_and_one_of_another_architecture(tmp_path):
    make_run(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "damaged")
    for path in (tmp_path / "damaged").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(UserError, match=r"damaged.*safetensors has .* bytes, it was written with"):
        load_encoder(tmp_path / "damaged")
    text = (tmp_path / "mine/config.yaml").read_text()
    (tmp_path / "mine/config.yaml").write_text(text.replace("image_size_px: 56", "image_size_px: 84"))
    with pytest.raises(UserError, match=r"another architecture: method\.teacher\.backbone\.pos_embed is float32"):
        load_encoder(tmp_path / "mine")


def test_refuses_sources_that_do_not_go_together(tmp_path):
    make_run(tmp_path / "mine")
    torch.save(random_teacher(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"mine and .*x\.pth; several sources must all be \.pth files"):
        read_weights([tmp_path / "mine", tmp_path / "x.pth"])


def test_knows_what_training_wrote(tmp_path):
    make_run(tmp_path / "mine")
    torch.save(random_teacher(), tmp_path / "x.pth")
    assert is_own_training(tmp_path / "mine")
    assert not is_own_training(tmp_path / "x.pth")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps({"model_type": "dinov2"}))
    assert not is_own_training(tmp_path / "hf")
