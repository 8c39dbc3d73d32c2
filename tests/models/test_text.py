from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from webssl_fast.config.schema import TextConfig
from webssl_fast.models.text import TextTransformer


def tower(activation: str = "gelu") -> TextTransformer:
    text = TextTransformer(TextConfig(preset="text_nano", vocabulary_size=50, context_length=9, activation=activation))
    text.initialize(0, "text")
    with torch.no_grad():
        for name, p in text.named_parameters():  # nothing is zero, and everything is larger than at the start
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return text.double()


def by_hand(text: TextTransformer, tokens: list[int], activation: str) -> torch.Tensor:
    """One text, from the formulas, token by token."""
    weights = dict(text.named_parameters())

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x_ND = weights["token_embedding.weight"][tokens] + weights["pos_embed"][: len(tokens)]
    for i in range(2):
        q, k, v = linear(norm(x_ND, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        rows = []
        for n in range(len(tokens)):
            heads = []
            for h in (slice(0, 32), slice(32, 64)):
                p = torch.softmax(k[: n + 1, h] @ q[n, h] / 32**0.5, dim=0)
                heads.append(p @ v[: n + 1, h])
            rows.append(torch.cat(heads))
        x_ND = x_ND + linear(torch.stack(rows), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x_ND, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = F.gelu(hidden) if activation == "gelu" else hidden / (1 + torch.exp(-1.702 * hidden))
        x_ND = x_ND + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x_ND, "norm")[-1]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_is_the_formula_and_blind_to_padding(activation):
    text = tower(activation)
    tokens_BN = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    num_tokens_B = torch.tensor([9, 4, 1])
    found = text(tokens_BN, num_tokens_B)
    expected = [by_hand(text, row[:n].tolist(), activation) for row, n in zip(tokens_BN, num_tokens_B, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_initialisation_is_a_function_of_seed_and_name():
    towers = [TextTransformer(TextConfig(preset="text_nano")) for _ in range(3)]
    for text, seed in zip(towers, (0, 0, 1), strict=True):
        text.initialize(seed, "text")
    first, same, other = (text.state_dict() for text in towers)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])
    assert first["blocks.0.attn.proj.weight"].std().item() == pytest.approx(64**-0.5 / 2, rel=0.05)
