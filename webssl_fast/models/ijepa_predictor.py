"""I-JEPA's predictor: from the features of context patches to those of target patches (arXiv 2301.08243, section 3).

Dimensions: B images, N patches, K context patches, S target blocks of M patches each, R = B*S*M, T packed tokens, E
width of the encoder, D of the predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from webssl_fast.config.schema import IJepaConfig
from webssl_fast.errors import ConfigError
from webssl_fast.models.block import Block
from webssl_fast.models.embed import sine_cosine_positions
from webssl_fast.models.init import initialize_as_mae


class IJepaPredictor(nn.Module):
    """A narrow transformer over the context and, for one target block at a time, a learned token at each place that is
    asked for: blocks of one image do not see each other."""

    def __init__(self, config: IJepaConfig, encoder_width: int, grid_side: int):
        super().__init__()
        width, num_heads = config.predictor_width, config.predictor_num_heads
        if width % num_heads or width % 4:
            raise ConfigError(
                f"method.predictor_width is {width}, which must be a multiple of method.predictor_num_heads "
                f"{num_heads} and of 4 (sine-cosine positions)"
            )
        self.width, self.grid_side = width, grid_side
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, width))
        self.register_buffer("pos_embed", torch.empty(grid_side**2, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, 4 * width, mlp="gelu", layer_scale=False) for _ in range(config.predictor_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_features = nn.Linear(width, encoder_width)

    def forward(self, context_BKE: Tensor, context_BK: Tensor, targets_BSM: Tensor) -> Tensor:
        """Predicted features [R, E] of the target patches, in the order of `targets_BSM`.

        context_BKE  the encoder's features of the context patches
        context_BK   int64, which patches they are
        targets_BSM  int64, which patches to predict
        """
        (B, S, M), K = targets_BSM.shape, context_BK.shape[1]
        context_BKD = self.embed(context_BKE) + self._positions(context_BK)
        asked_BSMD = self.mask_token + self._positions(targets_BSM)
        x_TD = torch.cat([context_BKD[:, None].expand(-1, S, -1, -1), asked_BSMD], dim=2).flatten(0, 2)
        for block in self.blocks:
            x_TD = block(x_TD, ((B * S, K + M),))
        predicted_RD = x_TD.view(B * S, K + M, -1)[:, K:].flatten(0, 1)
        return self.to_features(self.norm(predicted_RD))

    def _positions(self, patches: Tensor) -> Tensor:
        return self.pos_embed.index_select(0, patches.flatten()).view(*patches.shape, -1)

    def initialize(self, seed: int, prefix: str) -> None:
        self.pos_embed.copy_(sine_cosine_positions(self.width, self.grid_side)[0, 1:])
        initialize_as_mae(self, seed, prefix)
