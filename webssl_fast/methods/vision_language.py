"""Training of an adapter, or of adapter and language model, on a frozen encoder's image tokens: the two stages of
Cambrian-1 (arXiv 2406.16860) as Web-SSL uses them (arXiv 2504.01017, App. A).

The loss is the cross-entropy of what the assistant says, a mean over all such tokens of a step: those of every rank and
of every accumulated pass count the same.

Dimensions: B conversations, T tokens, C columns of logits, I images, M image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast.methods.base import ParameterGroup
from webssl_fast.methods.rank_exchange import rank_and_world_size
from webssl_fast.models.chat import IGNORED
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.vision_language import Adapter, LanguageSide, image_tokens
from webssl_fast.records import Batch, CropRecipe


class VisionLanguage(nn.Module):
    """The Method protocol. Its weights are the adapter and the language model; a frozen encoder stays whole on every
    rank, outside of what is sharded and saved, and checkpoints hold what is trained alone."""

    name = "vision_language"
    wants_captions = False
    balanced_over_pass: str | None = None

    def __init__(
        self,
        encoder: Encoder | None,
        adapter: Adapter,
        language: LanguageSide,
        fill: Callable[[VisionLanguage, int], None],
    ):
        """encoder  None: batches bring image tokens
        language    of which those parameters are trained that require gradients
        fill        gives adapter and language model their first values, with the seed
        """
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that it is no submodule
        self.adapter, self.language, self._fill = adapter, language, fill

    # ------------------------------------------------------------ what the engine asks

    def crop_recipes(self) -> list[CropRecipe]:
        return []

    def trained_modules(self) -> dict[str, nn.Module]:
        is_trained = any(p.requires_grad for p in self.language.parameters())
        return {"adapter": self.adapter, **({"language": self.language} if is_trained else {})}

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.language.decoder_layers()
        yield self.language
        yield self.adapter

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        return [list(self.language.decoder_layers())]

    def parameter_groups(self) -> list[ParameterGroup]:
        groups = [ParameterGroup("adapter", list(self.adapter.parameters()))]
        if trained := [p for p in self.language.parameters() if p.requires_grad]:
            groups.append(ParameterGroup("language", trained))
        return groups

    def initialize(self, seed: int) -> None:
        self._fill(self, seed)

    def schedule_values(self, step: int) -> dict[str, float]:
        return {}

    def prepare(self, batch: Batch) -> None:
        pass

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BCV = self.language(
            batch.host["token_ids_BT"], self.adapter(self._image_tokens(batch)), batch.host["columns_C"]
        )
        targets_BC = batch.host["targets_BC"]
        said = F.cross_entropy(
            logits_BCV.float().flatten(0, 1), targets_BC.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        right = (logits_BCV.argmax(-1) == targets_BC).sum()
        num_targets = _mean_over_ranks(batch.host["num_targets_a_pass"])
        return said / num_targets, {"token_accuracy": right / num_targets}

    def after_step(self, step: int) -> None:
        pass

    def encoder(self) -> Encoder:
        assert self._encoder[0] is not None
        return self._encoder[0]

    # ------------------------------------------------------------ images

    def _image_tokens(self, batch: Batch) -> Tensor:
        """[I, M, D] of the batch's images; of none, one of zeros, which nothing reads: every rank then runs the same
        modules."""
        num_tokens, adapter = self.adapter.side**2, self.adapter
        if "images_I3SS" in batch.host:
            return image_tokens(self.encoder(), batch.host["images_I3SS"], num_tokens)
        if "image_tokens_IMD" in batch.host:
            return batch.host["image_tokens_IMD"].float()
        return torch.zeros(1, num_tokens, adapter.up.in_features, device=batch.labels.device)


def _mean_over_ranks(value: Tensor) -> Tensor:
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size
