"""Key maps between the layouts: the published sizes by name and shape, values bit for bit, and what is refused."""

import pytest
import torch
import transformers

from tests.models.published import (
    NANO,
    SIZES,
    TINY,
    assert_same_bits,
    authors_shapes,
    head_shapes,
    hugging_face_shapes,
    meta_state,
    random_heads,
    random_state,
    random_teacher,
    shapes_of,
)
from webssl_fast.errors import UserError
from webssl_fast.models.checkpoint_layouts import from_authors, from_hugging_face, to_authors, to_hugging_face
from webssl_fast.models.convert import hugging_face_config
from webssl_fast.models.encoders import BackboneEncoder

by_preset = pytest.mark.parametrize("size", SIZES, ids=lambda size: size.preset)


@by_preset
def test_published_sizes_in_every_layout(size):
    shapes = authors_shapes(size)
    weights = from_authors({"file.pth": meta_state(shapes)})
    assert (weights.preset, weights.image_size_px) == (size.preset, 224)
    assert sum(tensor.numel() for tensor in weights.backbone.values()) == size.num_parameters
    assert shapes_of(to_authors(weights.backbone)) == shapes
    theirs = to_hugging_face(weights.backbone)
    assert shapes_of(theirs) == hugging_face_shapes(size)
    again = from_hugging_face(theirs, "folder")
    assert (again.preset, shapes_of(again.backbone)) == (size.preset, shapes_of(weights.backbone))


@by_preset
def test_published_sizes_are_those_of_transformers(size):
    weights = from_authors({"file.pth": meta_state(authors_shapes(size))})
    config = transformers.Dinov2Config(**hugging_face_config(weights))
    with torch.device("meta"):
        model = transformers.Dinov2Model(config)
    assert sum(p.numel() for p in model.parameters()) == size.num_parameters
    hidden_sizes = {p.shape[1] for name, p in model.named_parameters() if ".mlp." in name and p.ndim == 2}
    assert hidden_sizes == {size.width, size.hidden}


@pytest.mark.parametrize("image_px", [378, 518])
def test_the_position_embedding_gives_the_image_size(image_px):
    weights = from_authors({"file.pth": meta_state(authors_shapes(SIZES[-1], image_px))})
    assert weights.image_size_px == image_px


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [NANO, TINY], ids=["nano", "tiny"])
def test_authors_files_come_back_bit_for_bit(size, chunked):
    state = random_state(authors_shapes(size, 56, chunked))
    weights = from_authors({"file.pth": state})
    assert_same_bits(weights.backbone, random_state(authors_shapes(size, 56, chunked=False)))
    assert_same_bits(to_authors(weights.backbone), random_state(authors_shapes(size, 56)))


def test_hugging_face_comes_back_bit_for_bit():
    state = random_state(hugging_face_shapes(TINY, 56))
    weights = from_hugging_face(state, "folder")
    assert_same_bits(to_hugging_face(weights.backbone), state)
    qkv = weights.backbone["blocks.7.attn.qkv.weight"]
    parts = [state[f"encoder.layer.7.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(qkv, torch.cat(parts))


def test_a_teacher_or_a_pair_of_files_gives_heads():
    teacher = random_teacher()
    backbone = random_state(authors_shapes(NANO, 56))
    of_teacher = from_authors({"x_ssl_teacher.pth": teacher})
    for heads in (random_heads(), {"teacher": random_heads()}):
        of_pair = from_authors({"x.pth": backbone, "x_ssl_heads.pth": heads})
        assert_same_bits(of_pair.backbone, of_teacher.backbone)
        assert_same_bits(of_pair.heads, random_heads())
    assert_same_bits(of_teacher.heads, random_heads())
    assert of_teacher.head_config("dino_head").model_dump() == {
        "hidden_dim": 32,
        "bottleneck_dim": 24,
        "num_prototypes": 64,
    }


def test_weights_become_an_encoder_without_a_copy():
    weights = from_authors({"x.pth": random_state(authors_shapes(NANO, 56))})
    encoder = BackboneEncoder.from_weights(weights)
    assert encoder.backbone.norm.weight.data_ptr() == weights.backbone["norm.weight"].data_ptr()
    assert (encoder.image_size_px, encoder.preprocessing.resize_px) == (56, 64)
    assert encoder.backbone.config.pos_embed_interpolation == "scale_offset"


# ---------------------------------------------------------------- refusals


def without(*names):
    return {k: v for k, v in random_state(authors_shapes(NANO, 56)).items() if k not in names}


def plus(**tensors):
    return random_state(authors_shapes(NANO, 56)) | tensors


MAE = {"cls_token": (1, 1, 64), "pos_embed": (1, 17, 64), "patch_embed.proj.weight": (64, 3, 14, 14)}
MAE |= {f"blocks.{i}.mlp.fc1.weight": (256, 64) for i in range(2)}
REFUSED = {
    "a missing key": (without("blocks.1.1.ls2.gamma"), r"blocks\.1\.ls2\.gamma is missing"),
    "a missing position embedding": (
        without("pos_embed"),
        "but not pos_embed; expected a vision transformer of Web-SSL",
    ),
    "a key of another network": (plus(register_tokens=torch.zeros(1, 4, 64)), "register_tokens is not part of it"),
    "another feed-forward": (random_state(MAE), r"blocks\.0\.norm1\.weight is missing"),
    "another shape": (plus(**{"norm.bias": torch.zeros(65)}), r"norm\.bias is \[65\], expected \[64\]"),
    "another size": (
        {**random_state(authors_shapes(NANO, 56)), "cls_token": torch.zeros(1, 1, 80)},
        "width, blocks and patch size 80, 2, 14; known are 64, 2, 14",
    ),
    "a position embedding that is no square": (
        plus(pos_embed=torch.zeros(1, 15, 64)),
        r"pos_embed is \[1, 15, 64\], expected \[1, 10, 64\]",
    ),
    "a class token without dimensions": (
        plus(cls_token=torch.zeros(())),
        "but not cls_token; expected a vision transformer",
    ),
    "integers": (
        plus(mask_token=torch.zeros(1, 64).long()),
        r"mask_token is torch\.int64, expected floats",
    ),
    "an optimizer's checkpoint": ({"model": {}, "optimizer": {}, "epoch": 3}, "the entries model, optimizer, epoch"),
    "a convolutional network": ({"conv1.weight": torch.zeros(2)}, r"holds conv1\.weight, but not cls_token"),
    "nothing": ({}, "the entries nothing"),
    "heads alone": (random_heads(), "heads only; name the file of their backbone"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(content, reason):
    with pytest.raises(UserError, match=f"^some/file.pth .*{reason}"):
        from_authors({"some/file.pth": content})


def test_refuses_heads_of_another_width_or_with_gaps():
    backbone = random_state(authors_shapes(NANO, 56))
    heads = random_heads() | {f"ibot_head.{k}": torch.zeros(v) for k, v in head_shapes(128, 32, 16, 64).items()}
    with pytest.raises(UserError, match=r"h\.pth does not hold a ibot_head on width 64: ibot_head\.mlp\.0\.weight"):
        from_authors({"b.pth": backbone, "h.pth": heads})
    del heads["ibot_head.last_layer.weight_v"]
    with pytest.raises(UserError, match=r"h\.pth has no matrices ibot_head\.last_layer\.weight_v"):
        from_authors({"b.pth": backbone, "h.pth": heads})


def test_refuses_two_backbones():
    backbone = random_state(authors_shapes(NANO, 56))
    with pytest.raises(UserError, match=r"a\.pth and b\.pth both hold a backbone"):
        from_authors({"a.pth": backbone, "b.pth": backbone})


def test_refuses_a_dinov2_with_an_ordinary_feed_forward():
    state = random_state(hugging_face_shapes(NANO, 56)) | {"encoder.layer.0.mlp.fc1.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"folder holds encoder\.layer\.0\.mlp\.fc1\.weight, which no Web-DINO model"):
        from_hugging_face(state, "folder")
    del state["encoder.layer.0.mlp.fc1.weight"], state["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(UserError, match=r"folder holds encoder\.layer\.1\.attention\.attention\.query\.bias, "):
        from_hugging_face(state, "folder")
