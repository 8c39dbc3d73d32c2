"""Many linear classifiers on the same frozen features, trained side by side: Web-SSL and DINOv2 train 52 at once.

Each head has its own learning rate and its own choice of the features: how many of the last blocks' class tokens, and
whether the mean of the last block's patch tokens joins them. Heads with the same choice share one matrix product.

Dimensions: B images, D width of a variant's feature, R learning rates, C classes, F width of all features together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INIT_STD = 0.01
PARTS = ("weight", "bias", "weight_momentum", "bias_momentum")


@dataclass(frozen=True)
class Variant:
    """Which features a head reads: class tokens of the last `num_blocks` blocks, and the last one's patch mean."""

    num_blocks: int
    patch_mean: bool

    @property
    def name(self) -> str:
        return f"blocks_{self.num_blocks}" + ("_patch_mean" if self.patch_mean else "")

    def columns(self, width: int) -> slice:
        """Its columns of features_BF = [patch mean | class tokens, the last block's first]: always neighbours."""
        return slice(0 if self.patch_mean else width, (1 + self.num_blocks) * width)


class ProbeHeads:
    """Heads of several variants with several learning rates each, their weights and their momentum, in fp32.

    variants        one or more, each once
    learning_rates  of the heads of every variant, before the schedule
    width           of one class token
    device          where the heads live

    A step is SGD with momentum as torch.optim.SGD defines it, on the sum over heads of the batch's mean cross-entropy.
    The gradient of that is known, so there is no autograd and no gradient buffer: the product that computes the
    gradient adds it to the decayed momentum. A head that diverges harms no other.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        learning_rates: Sequence[float],
        *,
        width: int,
        num_classes: int,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        if not variants or len(set(variants)) < len(variants) or len(set(learning_rates)) < len(learning_rates):
            raise ValueError(f"variants and learning_rates must differ: got {list(variants)}, {list(learning_rates)}")
        self.variants, self.learning_rates = tuple(variants), tuple(learning_rates)
        self.width, self.num_classes = width, num_classes
        self._lr_R11 = torch.tensor(self.learning_rates, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._heads: dict[Variant, tuple[Tensor, ...]] = {}  # weight [R, C, D], bias [R, 1, C], and their momenta
        for variant in self.variants:
            columns = variant.columns(width)
            weight = torch.empty(len(self.learning_rates), num_classes, columns.stop - columns.start)
            for of_head, rate in zip(weight, self.learning_rates, strict=True):
                _initialize(of_head, seed, head_name(variant, rate))
            bias = torch.zeros(len(self.learning_rates), 1, num_classes)
            parts = (weight, bias, torch.zeros_like(weight), torch.zeros_like(bias))
            self._heads[variant] = tuple(part.to(device) for part in parts)

    def __len__(self) -> int:
        return len(self.variants) * len(self.learning_rates)

    def names(self) -> list[str]:
        """Of the heads, variant by variant: "blocks_4_patch_mean_lr_0.001"."""
        return [head_name(variant, rate) for variant in self.variants for rate in self.learning_rates]

    @torch.no_grad()
    def step(self, features_BF: Tensor, labels_B: Tensor, *, lr_factor: float, momentum: float) -> Tensor:
        """One step of every head; fp32 [heads], the losses before it, in the order of `names`.

        features_BF  fp32, [patch mean | class tokens, the last block's first]
        labels_B     int64, in [0, C)
        lr_factor    what the schedule and the batch size make of each learning rate
        """
        R, B = len(self.learning_rates), len(features_BF)
        index_RB1 = labels_B.view(1, B, 1).expand(R, B, 1)
        losses = []
        for variant in self.variants:
            x_RBD = self._shared(variant, features_BF)
            log_p_RBC = self._logits(variant, x_RBD).log_softmax(-1)
            losses.append(-log_p_RBC.gather(2, index_RB1).mean((1, 2)))
            gradient_RBC = log_p_RBC.exp_()
            gradient_RBC.scatter_add_(2, index_RB1, gradient_RBC.new_full((1, 1, 1), -1.0).expand(R, B, 1))
            gradient_RBC.div_(B)
            weight, bias, weight_momentum, bias_momentum = self._heads[variant]
            # One product for each learning rate: as one of R * C columns it takes up to twice as long on a CPU.
            weight_momentum.baddbmm_(gradient_RBC.mT, x_RBD, beta=momentum)
            bias_momentum.mul_(momentum).add_(gradient_RBC.sum(1, keepdim=True))
            weight.addcmul_(weight_momentum, self._lr_R11, value=-lr_factor)
            bias.addcmul_(bias_momentum, self._lr_R11, value=-lr_factor)
        return torch.cat(losses)

    @torch.no_grad()
    def hits(self, features_BF: Tensor, labels_B: Tensor, ks: Sequence[int]) -> Tensor:
        """How many images each head has the right class for among its k best: int64 [heads, len(ks)].

        Classes with the same logit all count as better, so a head that says nothing, or NaN, is never right.
        """
        found = []
        for variant in self.variants:
            logits_RBC = self._logits(variant, self._shared(variant, features_BF))
            found.append(top_k_hits(logits_RBC, labels_B, ks))
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by head: "<head>.weight" [C, D], ".bias" [C], and their momenta.

        The tensors are views: to be written, not kept.
        """
        return {name: tensor for name, tensor in self._named()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave; the mapping may hold other heads as well. KeyError where one is missing."""
        for name, tensor in self._named():
            tensor.copy_(state[name])

    def _shared(self, variant: Variant, features_BF: Tensor) -> Tensor:
        """A view: the heads of a variant read the same columns."""
        return features_BF[:, variant.columns(self.width)].expand(len(self.learning_rates), -1, -1)

    def _logits(self, variant: Variant, x_RBD: Tensor) -> Tensor:
        weight, bias, *_ = self._heads[variant]
        return torch.baddbmm(bias, x_RBD, weight.mT)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for variant, tensors in self._heads.items():
            for part, of_rates in zip(PARTS, tensors, strict=True):
                for rate, tensor in zip(self.learning_rates, of_rates, strict=True):
                    yield f"{head_name(variant, rate)}.{part}", tensor[0] if part.startswith("bias") else tensor


def head_name(variant: Variant, learning_rate: float) -> str:
    return f"{variant.name}_lr_{learning_rate:g}"


def top_k_hits(logits_RBC: Tensor, labels_B: Tensor, ks: Sequence[int]) -> Tensor:
    """int64 [R, len(ks)]: how often the label is among the k largest logits. An equal logit counts as larger, and so
    does one that is not a number."""
    own_RB1 = logits_RBC.gather(2, labels_B.view(1, -1, 1).expand(len(logits_RBC), -1, 1))
    rank_RB = (~(logits_RBC < own_RB1)).sum(2)  # 1: no other is as large
    return torch.stack([(rank_RB <= k).sum(1) for k in ks], 1)


def _initialize(weight_CD: Tensor, seed: int, name: str) -> None:
    """N(0, .01), a function of the seed and the head's name alone, whichever rank holds the head."""
    generator = torch.Generator().manual_seed((seed << 32 | zlib.crc32(name.encode())) % 2**63)
    weight_CD.normal_(0.0, INIT_STD, generator=generator)
