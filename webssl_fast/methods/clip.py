"""CLIP (arXiv 2103.00020): each image picks its caption among those of the whole batch, and each caption its image.

Dimensions: B pairs of this rank, D width of the joint space.
"""

from __future__ import annotations

from torch import Tensor

from webssl_fast.config.schema import ClipConfig, ModelConfig, OptimConfig
from webssl_fast.methods.contrastive_losses import contrastive
from webssl_fast.methods.image_text import ImageTextMethod, LogitScale
from webssl_fast.methods.rank_exchange import gathered, rank_and_world_size


class Clip(ImageTextMethod):
    name = "clip"

    def __init__(self, config: ClipConfig, model: ModelConfig, optim: OptimConfig, **run: int):
        super().__init__(config, model, optim, LogitScale(config.init_logit_scale, config.max_logit_scale), **run)

    def pair_loss(
        self, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        first_pair = rank_and_world_size()[0] * len(image_BD)
        loss, accuracy = contrastive(image_BD, text_BD, gathered(image_BD), gathered(text_BD), first_pair, scale)
        return loss, {"image_to_text_accuracy": accuracy}
