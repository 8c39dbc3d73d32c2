"""Encoders through transformers: each family against its own model's outputs, and folders that are refused."""

import json
import os
import shutil

import pytest
import torch
import transformers as hf

from webssl_fast.errors import UserError
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.hf_encoders import HuggingFaceEncoder, load_hugging_face

DEPTH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
VISION = {**SIZES, "intermediate_size": 64}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {f"decoder_{key}": 16 for key in ("hidden_size", "intermediate_size")}
DECODER |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
NAFLEX = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}

# What is published on the hub: whole models, with heads, decoders and text towers.
PUBLISHED = {
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES)),
    "dinov2_swiglu": lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "dinov2_with_registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
    ),
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION, num_register_tokens=4)),
    "web_mae": lambda: hf.ViTModel(hf.ViTConfig(**VISION)),
    "mae": lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**VISION, **DECODER)),
    "ijepa": lambda: hf.IJepaModel(hf.IJepaConfig(**VISION), add_pooling_layer=False),
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=VISION, text_config=TEXT)),
    "metaclip_2": lambda: hf.MetaClip2Model(hf.MetaClip2Config(vision_config=VISION, text_config=TEXT)),
    "clip_vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=VISION, text_config=TEXT)),
    "siglip_2": lambda: hf.Siglip2Model(hf.Siglip2Config(vision_config=NAFLEX, text_config=TEXT)),
}
CLS_SOURCES = {"ijepa": "patch_mean", "siglip": "pooled", "siglip_2": "pooled"}
REGISTERS = {"dinov2_with_registers": 4, "dinov3": 4}
PREPROCESSOR = {
    "size": {"height": 56, "width": 56},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 2,
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, tmp_path_factory):
    """(kind, folder in the published form, encoder loaded from it)."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save(request.param, folder)
    return request.param, folder, load_hugging_face(folder)


def save(kind, folder):
    torch.manual_seed(0)
    model = PUBLISHED[kind]()
    with torch.no_grad():  # values that no symmetry hides
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def images(height=56, width=56):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def their_output(encoder, pixels, **options):
    return encoder.model(**encoder._arguments(pixels), **options)


@torch.no_grad()
def test_equals_the_model_itself(published):
    kind, _, encoder = published
    assert isinstance(encoder, Encoder)
    assert (encoder.num_blocks, encoder.width, encoder.patch_size, encoder.image_size_px) == (DEPTH, 32, 14, 56)
    assert encoder.preprocessing.interpolation == "bilinear" and encoder.preprocessing.std == (0.25, 0.25, 0.25)
    assert encoder.cls_source == CLS_SOURCES.get(kind, "cls_token")

    found, output = encoder(images()), their_output(encoder, images())
    hidden = output.last_hidden_state
    if "clip" in kind:  # which leaves the patch tokens without its final norm
        hidden = encoder._final_norm[0](hidden)
    if encoder.cls_source == "cls_token":
        torch.testing.assert_close(found.cls_token, hidden[:, 0])
        torch.testing.assert_close(found.patch_tokens, hidden[:, 1 + REGISTERS.get(kind, 0) :])
        if output.get("pooler_output") is not None:
            torch.testing.assert_close(found.cls_token, output.pooler_output)
    else:
        torch.testing.assert_close(found.patch_tokens, hidden)
        expected = output.pooler_output if encoder.cls_source == "pooled" else hidden.mean(1)
        torch.testing.assert_close(found.cls_token, expected)


@torch.no_grad()
def test_blocks_are_the_hidden_states(published):
    kind, _, encoder = published
    states = their_output(encoder, images(), output_hidden_states=True).hidden_states
    found = encoder.block_features(images(), [0, DEPTH - 2], final_norm=False)
    normed = encoder.block_features(images(), [0, DEPTH - 2])
    skipped = (encoder.cls_source == "cls_token") + REGISTERS.get(kind, 0)
    for features, with_norm, state in zip(found, normed, (states[1], states[DEPTH - 1]), strict=True):
        torch.testing.assert_close(features.patch_tokens, state[:, skipped:])
        expected = state[:, 0] if encoder.cls_source == "cls_token" else state.mean(1)
        torch.testing.assert_close(features.cls_token, expected)
        torch.testing.assert_close(with_norm.patch_tokens, encoder._final_norm[0](state[:, skipped:]))


@torch.no_grad()
def test_patches_are_in_reading_order_at_any_size(published):
    kind, _, encoder = published
    pixels = images(70, 42)
    tokens = encoder.block_features(pixels, [0], final_norm=False)[0].patch_tokens
    assert tokens.shape == (2, 15, 32)
    changed = pixels.clone()
    changed[:, :, 14:28, 28:42] += 3  # row 1, column 2 of 5 x 3
    moved = (encoder.block_features(changed, [0], final_norm=False)[0].patch_tokens - tokens).norm(dim=-1)
    assert (moved.argmax(1) == 5).all()
    with pytest.raises(ValueError, match="images of 70x40 pixels do not divide into patches of 14x14"):
        encoder(images(70, 40))


@torch.no_grad()
def test_a_native_size_may_have_an_edge_beyond_the_last_patch(tmp_path):
    """As SigLIP so400m at 384 pixels and patch 14."""
    config = hf.SiglipVisionConfig(**VISION | {"image_size": 60})
    hf.SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    content = PREPROCESSOR | {"size": {"height": 60, "width": 60}}
    (tmp_path / "siglip/preprocessor_config.json").write_text(json.dumps(content))
    encoder = load_hugging_face(tmp_path / "siglip")
    found = encoder(images(60, 60))
    assert encoder.image_size_px == 60 and found.patch_tokens.shape == (2, 16, 32)
    torch.testing.assert_close(found.cls_token, encoder.model(images(60, 60)).pooler_output)
    torch.testing.assert_close(found.patch_tokens, encoder(images(60, 60)[:, :, :56, :56]).patch_tokens)


def test_same_images_give_the_same_features(published):
    _, _, encoder = published
    with torch.no_grad():
        assert torch.equal(encoder(images()).patch_tokens, encoder(images()).patch_tokens)
    assert not encoder.training and encoder.model.dtype == torch.float32


# ---------------------------------------------------------------- refusals


@pytest.fixture
def dinov2(tmp_path):
    save("dinov2", tmp_path / "model")
    return tmp_path / "model"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_refuses_another_kind_of_model(dinov2):
    edit(dinov2 / "config.json", model_type="resnet")
    with pytest.raises(UserError, match="model: model_type is 'resnet'; known are dinov2, .*siglip2"):
        load_hugging_face(dinov2)


@pytest.mark.parametrize(
    ("depth", "what"), [(4, r"lacks encoder\.layer\.3"), (2, r"has no place for encoder\.layer\.2")]
)
def test_refuses_weights_of_another_depth(dinov2, depth, what):
    edit(dinov2 / "config.json", num_hidden_layers=depth, out_features=None, out_indices=None, stage_names=None)
    with pytest.raises(UserError, match=f"do not belong together; the Dinov2Model of the config {what}"):
        load_hugging_face(dinov2)


def test_refuses_weights_of_another_width(dinov2):
    edit(dinov2 / "config.json", hidden_size=64)
    with pytest.raises(UserError, match="model: transformers cannot read its Dinov2Model"):
        load_hugging_face(dinov2)


def test_refuses_a_truncated_file(dinov2):
    path = dinov2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is no intact safetensors file"):
        load_hugging_face(dinov2)


def test_refuses_pickled_code_without_running_it(dinov2, tmp_path):
    class PlantedCode:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "planted"),)

    (dinov2 / "model.safetensors").unlink()
    torch.save({"embeddings.cls_token": PlantedCode()}, dinov2 / "pytorch_model.bin")
    with pytest.raises(UserError, match="model: transformers cannot read its Dinov2Model"):
        load_hugging_face(dinov2)
    assert not (tmp_path / "planted").exists()


def test_refuses_a_folder_that_does_not_say_how_images_are_prepared(dinov2):
    (dinov2 / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json or processor_config\.json"):
        load_hugging_face(dinov2)


def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch):
    def cached_file(*arguments, **options):
        raise OSError("no connection")

    monkeypatch.setattr(hf.utils, "cached_file", cached_file)
    with pytest.raises(UserError, match="there is no owner/name on this machine, and the Hugging Face hub does"):
        load_hugging_face("owner/name")


def test_names_itself_by_its_folder(dinov2):
    shutil.move(dinov2, dinov2.with_name("webssl-dino"))
    assert load_hugging_face(dinov2.with_name("webssl-dino")).name == "webssl-dino"
    with pytest.raises(ValueError, match="model_type is 'x'"):
        model = PUBLISHED["dinov2"]()
        model.config.model_type = "x"
        HuggingFaceEncoder(model, "x", None)
