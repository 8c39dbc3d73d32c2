"""MAE's decoder: from the features of visible patches to the pixels of the masked ones (He et al., arXiv 2111.06377).

Dimensions: B images, N patches, V visible ones, M masked ones, R = B*M, T packed tokens, E width of the encoder, D of
the decoder, P pixel values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from webssl_fast.config.schema import MaeConfig
from webssl_fast.errors import ConfigError
from webssl_fast.models.block import Block
from webssl_fast.models.embed import sine_cosine_positions
from webssl_fast.models.init import initialize_as_mae
from webssl_fast.records import Features


class MaeDecoder(nn.Module):
    """Sees every patch: the visible ones' features, and a learned token where a patch is masked."""

    def __init__(self, config: MaeConfig, encoder_width: int, grid_side: int, patch_size: int):
        super().__init__()
        width, num_heads = config.decoder_width, config.decoder_num_heads
        if width % num_heads or width % 4:
            raise ConfigError(
                f"method.decoder_width is {width}, which must be a multiple of method.decoder_num_heads {num_heads} "
                "and of 4 (sine-cosine positions)"
            )
        self.width, self.grid_side = width, grid_side
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, width))
        self.register_buffer("pos_embed", torch.empty(1, 1 + grid_side**2, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, 4 * width, mlp="gelu", layer_scale=False) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, 3 * patch_size**2)

    def forward(self, visible: Features, visible_BV: Tensor, masked_BM: Tensor) -> Tensor:
        """Predicted pixels [B*M, P] of the masked patches, image by image, each as `patchify` lays a patch out.

        visible     [B, E] and [B, V, E], the encoder's
        visible_BV  int64, which patches they are
        masked_BM   int64, which others to predict; V + M = N
        """
        B, length = len(visible_BV), 1 + self.grid_side**2
        known_TE = torch.cat([visible.cls_token[:, None], visible.patch_tokens], dim=1).flatten(0, 1)
        first_row_B1 = torch.arange(0, B * length, length, device=visible_BV.device)[:, None]
        known_row_T = torch.cat([first_row_B1, first_row_B1 + 1 + visible_BV], dim=1).flatten()
        known_TD = self.embed(known_TE)
        x_TD = self.mask_token.to(known_TD.dtype).expand(B * length, -1).index_copy(0, known_row_T, known_TD)
        x_TD = (x_TD.view(B, length, -1) + self.pos_embed).flatten(0, 1)
        for block in self.blocks:
            x_TD = block(x_TD, ((B, length),))
        masked_row_R = (first_row_B1 + 1 + masked_BM).flatten()
        return self.to_pixels(self.norm(x_TD.index_select(0, masked_row_R)))

    def initialize(self, seed: int, prefix: str) -> None:
        self.pos_embed.copy_(sine_cosine_positions(self.width, self.grid_side))
        initialize_as_mae(self, seed, prefix)
