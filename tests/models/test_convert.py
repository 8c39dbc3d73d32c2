"""Official files and Hugging Face folders: bits both ways, numbers against transformers, and what is refused."""

import json

import pytest
import torch
import transformers

from tests.models.published import (
    NANO,
    TINY,
    assert_same_bits,
    authors_shapes,
    hugging_face_shapes,
    random_heads,
    random_state,
    random_teacher,
    shapes_of,
)
from webssl_fast.errors import UserError
from webssl_fast.models.convert import read_authors, read_hugging_face, write_authors, write_hugging_face
from webssl_fast.models.encoders import WEB_SSL_PREPROCESSING, BackboneEncoder
from webssl_fast.models.hf_encoders import load_hugging_face
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.models.weight_files import read_pth, read_safetensors_folder


def official_file(path, size=TINY, image_px=56, dtype=torch.float32, chunked=True):
    torch.save(random_state(authors_shapes(size, image_px, chunked), dtype=dtype), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder that `write_hugging_face` made of an official file."""
    weights = read_authors([official_file(tmp_path / "official.pth")])
    write_hugging_face(weights, tmp_path / "folder", WEB_SSL_PREPROCESSING.at(56))
    return tmp_path / "folder"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunked", [True, False])
def test_official_to_hugging_face_and_back_keeps_every_bit(tmp_path, dtype, chunked):
    original = official_file(tmp_path / "official.pth", dtype=dtype, chunked=chunked)
    write_hugging_face(read_authors([original]), tmp_path / "hf", WEB_SSL_PREPROCESSING.at(56))
    assert shapes_of(read_safetensors_folder(tmp_path / "hf")) == hugging_face_shapes(TINY, 56)
    assert write_authors(read_hugging_face(tmp_path / "hf"), tmp_path / "back.pth") == [tmp_path / "back.pth"]
    assert_same_bits(read_pth(tmp_path / "back.pth"), random_state(authors_shapes(TINY, 56), dtype=dtype))


def test_a_teacher_becomes_a_backbone_and_its_heads(tmp_path):
    torch.save(random_teacher(), tmp_path / "x_ssl_teacher.pth")
    written = write_authors(read_authors([tmp_path / "x_ssl_teacher.pth"]), tmp_path / "y.pth")
    assert written == [tmp_path / "y.pth", tmp_path / "y_ssl_heads.pth"]
    assert_same_bits(read_pth(written[0]), random_state(authors_shapes(NANO, 56)))
    assert_same_bits(read_pth(written[1])["teacher"], random_heads())
    again = read_authors(written)
    assert_same_bits(again.heads, random_heads())


@pytest.mark.parametrize("image_px", [56, 84, 42])
def test_transformers_computes_what_we_do(folder, tmp_path, image_px):
    """Off the native size, Hugging Face interpolates by size; the authors' scale_offset is what official files get."""
    weights = read_authors([tmp_path / "official.pth"])
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(2))
    theirs, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    official = BackboneEncoder.from_weights(weights)
    by_size = official.backbone.config.model_copy(update={"pos_embed_interpolation": "size"})
    twin = VisionTransformer(by_size)
    twin.load_state_dict(weights.backbone)
    with torch.no_grad():
        expected = theirs.eval()(images).last_hidden_state
        found, as_official = twin([images])[0], official(images)
        through_encoder = load_hugging_face(folder)(images)
    for ours in (found, through_encoder):
        torch.testing.assert_close(ours.cls_token, expected[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.patch_tokens, expected[:, 1:], atol=1e-5, rtol=1e-5)
    apart = (as_official.patch_tokens - expected[:, 1:]).abs().max()
    assert apart < 1e-5 if image_px == 56 else apart > 1e-4


def test_what_transformers_saves_is_read_bit_for_bit(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert_same_bits(read_hugging_face(tmp_path / "saved").backbone, read_hugging_face(folder).backbone)


def test_the_preprocessor_is_the_authors_own(folder):
    content = json.loads((folder / "preprocessor_config.json").read_text())
    assert (content["size"], content["crop_size"]) == ({"shortest_edge": 64}, {"height": 56, "width": 56})
    assert content["resample"] == 3 and content["image_mean"] == [0.485, 0.456, 0.406]
    assert load_hugging_face(folder).preprocessing == WEB_SSL_PREPROCESSING.at(56)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model_type", "clip", "model_type is 'clip'; a model of Web-SSL has dinov2 or vit"),
        ("use_swiglu_ffn", False, "use_swiglu_ffn is False"),
        ("num_attention_heads", 6, "num_attention_heads is 6, but the weights are those of vit_tiny_patch14 at 56 px"),
        ("image_size", 224, "image_size is 224, but the weights are those of vit_tiny_patch14 at 56 px"),
        ("layer_norm_eps", 1e-5, "layer_norm_eps is 1e-05"),
    ],
)
def test_refuses_a_config_of_something_else(folder, key, value, reason):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json: {reason}"):
        read_hugging_face(folder)


def test_refuses_a_truncated_folder(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: -(1 << 16)])
    with pytest.raises(UserError, match=r"model\.safetensors is no intact safetensors file"):
        read_hugging_face(folder)


def test_refuses_to_overwrite(folder, tmp_path):
    weights = read_hugging_face(folder)
    with pytest.raises(UserError, match="folder exists already; remove it, or name another target"):
        write_hugging_face(weights, folder, WEB_SSL_PREPROCESSING)
    with pytest.raises(UserError, match=r"official\.pth exists already"):
        write_authors(weights, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"target is .*x\.bin; the authors' layout is a file whose name ends in \.pth"):
        write_authors(weights, tmp_path / "x.bin")
