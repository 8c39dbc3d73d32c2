"""Official Web-MAE files: against a vision transformer written here from its formulas, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.published import random_state
from webssl_fast.errors import UserError
from webssl_fast.models import mae_layout
from webssl_fast.models.convert import read_authors
from webssl_fast.models.encoders import WEB_SSL_PREPROCESSING
from webssl_fast.models.hf_encoders import encoder_of_tensors
from webssl_fast.models.mae_layout import is_web_mae, mae_to_hugging_face

PUBLISHED = {  # width, blocks, patch size, heads
    "300m": (1024, 24, 16, 16),
    "700m": (1280, 32, 14, 16),
    "1b": (1536, 40, 14, 24),
    "2b": (2688, 24, 14, 21),
    "3b": (3072, 26, 14, 24),
}
SMALL = (32, 3, 14, 2)


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
def small(monkeypatch):
    monkeypatch.setitem(mae_layout.NUM_HEADS, SMALL[:3], SMALL[3])
    return random_state(shapes(*SMALL, image_px=56))


def test_computes_what_the_formulas_say(small):
    encoder = encoder_of_tensors(*mae_to_hugging_face(small, "x.pth"), "x.pth", WEB_SSL_PREPROCESSING)
    assert (encoder.name, encoder.num_blocks, encoder.image_size_px, encoder.cls_source) == (
        "x.pth",
        3,
        56,
        "cls_token",
    )
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = encoder(images), forward(small, images, SMALL[3])
    torch.testing.assert_close(found.cls_token.double(), expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patch_tokens.double(), expected[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes(size):
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(*size).items()}
    config, theirs = mae_to_hugging_face(state, "x.pth")
    width, depth, patch, heads = size
    assert (config["hidden_size"], config["num_hidden_layers"], config["patch_size"]) == (width, depth, patch)
    assert (config["num_attention_heads"], config["image_size"]) == (heads, 224)
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in state.values())


def test_refuses_gaps_additions_and_other_sizes(small):
    assert is_web_mae(small)
    for change, reason in (
        ({"blocks.1.mlp.fc2.bias": None}, r"blocks\.1\.mlp\.fc2\.bias is missing"),
        ({"pos_embed": torch.zeros(4)}, "pos_embed is ill-shaped"),
        ({"decoder_embed.weight": torch.zeros(1)}, r"decoder_embed\.weight is not part of it"),
    ):
        changed = {name: tensor for name, tensor in (small | change).items() if tensor is not None}
        with pytest.raises(UserError, match=rf"^x\.pth does not hold a Web-MAE network: {reason}"):
            mae_to_hugging_face(changed, "x.pth")
    mae_layout.NUM_HEADS.pop(SMALL[:3])
    with pytest.raises(UserError, match=r"width, blocks and patch size \(32, 3, 14\); published are 1024, 24"):
        mae_to_hugging_face(small, "x.pth")


def test_is_not_converted_yet(small, tmp_path):
    torch.save(small, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is a Web-MAE network; it can be evaluated, but not yet converted"):
        read_authors([tmp_path / "x.pth"])
