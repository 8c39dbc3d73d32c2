"""Web-MAE networks: the authors' files against a vision transformer written here from its formulas, the Hugging Face
form against transformers' ViTModel, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from tests.models.published import assert_same_bits, random_state
from webssl_fast.errors import UserError
from webssl_fast.models.checkpoint_layouts import from_authors, from_hugging_face, to_authors
from webssl_fast.models.convert import read_authors, read_hugging_face, write_hugging_face
from webssl_fast.models.encoders import BackboneEncoder

PUBLISHED = {  # width, blocks, patch size, heads
    "300m_patch16": (1024, 24, 16, 16),
    "700m_patch14": (1280, 32, 14, 16),
    "1b_patch14": (1536, 40, 14, 24),
    "2b_patch14": (2688, 24, 14, 21),
    "3b_patch14": (3072, 26, 14, 24),
}
NANO = (64, 2, 14, 2)


def shapes(width, depth, patch, heads, image_px=224):
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    found = {"cls_token": (1, 1, width), "pos_embed": (1, (image_px // patch) ** 2 + 1, width)}
    found |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        for name, shape in linear.items():
            found |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            found |= {f"blocks.{i}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return found | {"norm.weight": (width,), "norm.bias": (width,)}


def forward(state, images, heads):
    """Pre-norm ViT with a GELU MLP, from its formulas, in fp64."""
    p = {name: tensor.double() for name, tensor in state.items()}

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)

    patch = p["patch_embed.proj.weight"].shape[-1]
    patches = F.conv2d(images.double(), p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=patch)
    x = torch.cat([p["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], 1) + p["pos_embed"]
    B, N, D = x.shape
    for i in range(sum(name.endswith("norm1.weight") for name in p)):
        q, k, v = (
            linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.mT / (D // heads) ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).reshape(B, N, D), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


@pytest.fixture
def nano():
    return random_state(shapes(*NANO, image_px=56))


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_computes_what_the_formulas_say(nano, images, tmp_path):
    torch.save(nano, tmp_path / "x.pth")
    encoder = BackboneEncoder.from_weights(read_authors([tmp_path / "x.pth"]))
    assert (encoder.name, encoder.num_blocks, encoder.image_size_px) == ("x.pth", 2, 56)
    with torch.no_grad():
        found, expected = encoder(images), forward(nano, images, heads=2)
    torch.testing.assert_close(found.cls_token.double(), expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patch_tokens.double(), expected[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_px", [56, 84])
def test_transformers_computes_the_same(nano, tmp_path, image_px):
    weights = from_authors({"x.pth": nano})
    encoder = BackboneEncoder.from_weights(weights)
    write_hugging_face(weights, tmp_path / "hf", encoder.preprocessing)
    model, info = transformers.ViTModel.from_pretrained(
        tmp_path / "hf", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = encoder(images)
        expected = model.eval()(images, interpolate_pos_encoding=image_px != 56).last_hidden_state
    torch.testing.assert_close(found.cls_token, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patch_tokens, expected[:, 1:], atol=1e-5, rtol=1e-5)
    assert_same_bits(read_hugging_face(tmp_path / "hf").backbone, nano)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    width, depth, patch, heads = PUBLISHED[size]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(*PUBLISHED[size]).items()}
    weights = from_authors({"x.pth": state})
    assert (weights.preset, weights.image_size_px) == (f"vit_mae_{size}", 224)
    assert to_authors(weights.backbone).keys() == state.keys()
    with torch.device("meta"):
        encoder = BackboneEncoder.from_weights(weights)
    assert encoder.backbone.blocks[0].attn.num_heads == heads


def test_refuses_gaps_additions_and_other_sizes(nano):
    for change, reason in (
        ({"blocks.1.mlp.fc2.bias": None}, r"blocks\.1\.mlp\.fc2\.bias is missing"),
        ({"mask_token": torch.zeros(1, 64)}, "mask_token is not part of it"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(8, 64)}, r"blocks\.0\.mlp\.fc1\.weight is \[8, 64\], expected"),
    ):
        changed = {name: tensor for name, tensor in (nano | change).items() if tensor is not None}
        with pytest.raises(UserError, match=rf"x\.pth does not hold the backbone of vit_mae_nano.*{reason}"):
            from_authors({"x.pth": changed})
    with pytest.raises(UserError, match=r"Web-MAE network of width, blocks and patch size 32, 3, 14; known are 64, 2"):
        from_authors({"x.pth": random_state(shapes(32, 3, 14, 2, image_px=56))})


def test_refuses_what_a_folder_holds_besides(nano, tmp_path):
    weights = from_authors({"x.pth": nano})
    write_hugging_face(weights, tmp_path / "hf", BackboneEncoder.from_weights(weights).preprocessing)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    untrained = {"pooler.dense.weight": torch.zeros(64, 64), "pooler.dense.bias": torch.zeros(64)}
    assert_same_bits(from_hugging_face(state | untrained, "hf").backbone, nano)
    with pytest.raises(UserError, match=r"hf holds decoder\.x, which no Web-MAE model"):
        from_hugging_face(state | {"decoder.x": torch.zeros(1)}, "hf")
