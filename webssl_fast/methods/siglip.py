"""SigLIP (arXiv 2303.15343): whether an image and a caption belong together, asked of every pair of the batch.

Texts go around the ranks in a ring, so that a rank holds those of one rank at a time (section 3.3).

Dimensions: B pairs of this rank, D width of the joint space.
"""

from __future__ import annotations

from torch import Tensor

from webssl_fast.config.schema import ModelConfig, OptimConfig, SigLipConfig
from webssl_fast.methods.contrastive_losses import sigmoid_pairs
from webssl_fast.methods.image_text import ImageTextMethod, LogitScale
from webssl_fast.methods.rank_exchange import from_next_rank, rank_and_world_size


class SigLip(ImageTextMethod):
    name = "siglip"

    def __init__(self, config: SigLipConfig, model: ModelConfig, optim: OptimConfig, **run: int):
        logit_scale = LogitScale(config.init_logit_scale, config.max_logit_scale, config.init_logit_bias)
        super().__init__(config, model, optim, logit_scale, **run)

    def pair_loss(
        self, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert bias is not None
        loss = sigmoid_pairs(image_BD, text_BD, scale, bias, matching=True)
        for _ in range(rank_and_world_size()[1] - 1):
            text_BD = from_next_rank(text_BD)
            loss = loss + sigmoid_pairs(image_BD, text_BD, scale, bias, matching=False)
        return loss, {}
