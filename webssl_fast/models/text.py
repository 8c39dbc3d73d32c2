"""The text tower of CLIP: a causal transformer, read out at a text's last token (arXiv 2103.00020, section 2.4).

Dimensions: B texts, N tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast.config.schema import TextConfig
from webssl_fast.models.init import constant, normal
from webssl_fast.models.presets import text_preset


class TextTransformer(nn.Module):
    """Parameters are uninitialised until `initialize`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        size = text_preset(config.preset)
        self.width, self.depth = size.width, size.depth
        self.token_embedding = nn.Embedding(config.vocabulary_size, size.width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, size.width))
        self.blocks = nn.ModuleList(TextBlock(size.width, size.num_heads, config.activation) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens_BN: Tensor, num_tokens_B: Tensor) -> Tensor:
        """int64 [B, N] and the number of each text's own tokens -> [B, D]. What stands behind a text's end has no
        influence: attention is causal."""
        x_BND = self.token_embedding(tokens_BN) + self.pos_embed[: tokens_BN.shape[1]]
        for block in self.blocks:
            x_BND = block(x_BND)
        rows = torch.arange(len(x_BND), device=x_BND.device)
        return self.norm(x_BND[rows, num_tokens_B - 1])

    def initialize(self, seed: int, prefix: str) -> None:
        """CLIP's initialisation; every tensor is a function of (seed, prefix + its name)."""
        width, depth = self.width, self.depth
        stds = {
            "token_embedding.weight": 0.02,
            "pos_embed": 0.01,
            "attn.qkv.weight": width**-0.5,
            "attn.proj.weight": width**-0.5 * (2 * depth) ** -0.5,
            "mlp.fc1.weight": (2 * width) ** -0.5,
            "mlp.fc2.weight": width**-0.5 * (2 * depth) ** -0.5,
        }
        for name, p in self.named_parameters():
            std = next((std for end, std in stds.items() if name.endswith(end)), None)
            if std is not None:
                normal(p, (seed, f"{prefix}.{name}"), std)
            else:
                constant(p, 1.0 if name.endswith("weight") else 0.0)  # norms; biases


class TextBlock(nn.Module):
    """Pre-norm attention and MLP, without LayerScale."""

    def __init__(self, width: int, num_heads: int, activation: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TextMlp(width, activation)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class CausalAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)  # each [B, H, N, d]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class TextMlp(nn.Module):
    """fc2(activation(fc1 x)), four times as wide inside. quick_gelu is OpenAI's x * sigmoid(1.702 x)."""

    def __init__(self, width: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x_BND: Tensor) -> Tensor:
        hidden = self.fc1(x_BND)
        hidden = F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        return self.fc2(hidden)
