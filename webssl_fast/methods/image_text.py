"""What CLIP and SigLIP share: two towers, one space, and the pass over a batch of pairs. They differ in the loss.

Dimensions: B pairs of this rank, N tokens, D width of the joint space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from webssl_fast.config.schema import ImageTextConfig, ModelConfig, OptimConfig
from webssl_fast.errors import ConfigError
from webssl_fast.methods.base import ParameterGroup
from webssl_fast.methods.parameter_groups import vit_parameter_groups
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.init import constant, normal
from webssl_fast.models.presets import refuse_drop_path
from webssl_fast.models.text import TextTransformer
from webssl_fast.models.tokenizer import TextTokenizer, load_tokenizer
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.records import Batch, CropRecipe
from webssl_fast.shards import local_shard


class JointSpace(nn.Module):
    """Projections of both towers' outputs into one space, where they have unit length."""

    def __init__(self, vision_width: int, text_width: int, joint_dim: int):
        super().__init__()
        self.vision_projection = nn.Linear(vision_width, joint_dim, bias=False)
        self.text_projection = nn.Linear(text_width, joint_dim, bias=False)

    def forward(self, image_BD: Tensor | None, text_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """fp32 [B, D] each of the towers' outputs; what is None gives an empty tensor."""
        return self._project(self.vision_projection, image_BD), self._project(self.text_projection, text_BD)

    @staticmethod
    def _project(projection: nn.Linear, x_BD: Tensor | None) -> Tensor:
        if x_BD is None:
            return projection.weight.new_empty(0, projection.out_features)
        return F.normalize(projection(x_BD).float(), dim=-1)

    def initialize(self, seed: int, prefix: str) -> None:
        for name, p in self.named_parameters():
            normal(p, (seed, f"{prefix}.{name}"), std=p.shape[1] ** -0.5)


class LogitScale(nn.Module):
    """What cosines are multiplied by, learned as a logarithm, and what is added then (SigLIP)."""

    def __init__(self, initial_scale: float, max_scale: float, initial_bias: float | None = None):
        super().__init__()
        self._initial = math.log(initial_scale), initial_bias
        self._max_log_scale = math.log(max_scale)
        # Of one element and not none, which FSDP2 could not shard.
        self.log_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = None if initial_bias is None else nn.Parameter(torch.empty(1))

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """The scale and the bias as scalars."""
        # Copied, since FSDP2 takes the gathered parameter's memory away after this.
        bias = None if self.logit_bias is None else self.logit_bias.squeeze().clone()
        return self.log_scale.exp().squeeze(), bias

    @torch.no_grad()
    def clamp_(self) -> None:
        local_shard(self.log_scale).clamp_(max=self._max_log_scale)

    def initialize(self) -> None:
        log_scale, bias = self._initial
        constant(self.log_scale, log_scale)
        if self.logit_bias is not None and bias is not None:
            constant(self.logit_bias, bias)


class ImageTextMethod(nn.Module, ABC):
    """The Method protocol, save for `pair_loss` and the name."""

    name: str
    wants_captions = True
    # (method.embed_batch_size spares memory without a change.)
    balanced_over_pass: str | None = "Images and texts are compared with each other"

    def __init__(
        self,
        config: ImageTextConfig,
        model: ModelConfig,
        optim: OptimConfig,
        logit_scale: LogitScale,
        *,
        num_steps: int,
        group_size: int,
        seed: int,
    ):
        super().__init__()
        self.config, self.optim = config, optim
        refuse_drop_path(model.drop_path_rate, self.name)
        if config.crops.num != 1:
            raise ConfigError(f"method.crops.num must be 1 (a caption has one image), got {config.crops.num}")
        self.backbone = VisionTransformer(model)
        self.text = TextTransformer(config.text)
        self.joint = JointSpace(self.backbone.width, self.text.width, config.joint_dim)
        self.logit_scale = logit_scale
        patch_px = self.backbone.patch_size
        if config.crops.size_px % patch_px:
            raise ConfigError(
                f"method.crops.size_px is {config.crops.size_px}, which is not a multiple of the patch size {patch_px}"
            )

    @abstractmethod
    def pair_loss(
        self, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this rank's pairs, whose mean over the ranks is the loss of the joint batch, and scalars for the
        metrics. Features are fp32, of unit length."""

    # ------------------------------------------------------------ what the engine asks

    def crop_recipes(self) -> list[CropRecipe]:
        return [CropRecipe(**self.config.crops.model_dump(exclude={"num"}))]

    def trained_modules(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.backbone.blocks
        yield from self.text.blocks
        yield from self.children()

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        return [list(self.backbone.blocks), list(self.text.blocks)]

    def parameter_groups(self) -> list[ParameterGroup]:
        towers = nn.ModuleDict({name: getattr(self, name) for name in ("backbone", "text", "joint")})
        return [
            *vit_parameter_groups(towers, self.backbone.depth, self.optim),
            ParameterGroup("logit_scale", list(self.logit_scale.parameters()), weight_decay_factor=0.0),
        ]

    def initialize(self, seed: int) -> None:
        _ = self.tokenizer  # a missing vocabulary is to be found now, and not on a loader's thread
        self.backbone.initialize(seed, "vision")
        self.text.initialize(seed, "text")
        self.joint.initialize(seed, "joint")
        self.logit_scale.initialize()

    def schedule_values(self, step: int) -> dict[str, float]:
        return {}

    def prepare(self, batch: Batch) -> None:
        assert batch.captions is not None
        batch.host["tokens_BN"], batch.host["num_tokens_B"] = self.tokenizer(batch.captions)

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        image_BD, text_BD = self._embed_pairs(batch.crops[0][0], batch.host["tokens_BN"], batch.host["num_tokens_B"])
        scale, bias = self.logit_scale()
        # Cosines that are multiplied by up to 100 want more than the 8 bits of bf16.
        with torch.autocast(image_BD.device.type, enabled=False):
            loss, scalars = self.pair_loss(image_BD, text_BD, scale.float(), None if bias is None else bias.float())
        scalars["logit_scale"] = scale
        if bias is not None:
            scalars["logit_bias"] = bias
        return loss, {name: value.detach() for name, value in scalars.items()}

    def after_step(self, step: int) -> None:
        self.logit_scale.clamp_()

    def encoder(self) -> BackboneEncoder:
        return BackboneEncoder(self.backbone, name=self.name)

    # ------------------------------------------------------------ embedding

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """Raises ConfigError where it cannot be had, or has more tokens than the text tower."""
        text = self.config.text
        tokenizer = load_tokenizer(text.tokenizer, text.context_length)
        if tokenizer.vocabulary_size > text.vocabulary_size:
            raise ConfigError(
                f"method.text.vocabulary_size is {text.vocabulary_size}, but the tokenizer has "
                f"{tokenizer.vocabulary_size} tokens; set it to that or more"
            )
        return tokenizer

    def embed(self, images_B3HW: Tensor, tokens_BN: Tensor, num_tokens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Images and texts in the joint space: fp32 [B, D] each, of unit length."""
        return self.joint(self.backbone([images_B3HW])[0].cls_token, self.text(tokens_BN, num_tokens_B))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts in the joint space: fp32 [B, D]."""
        tokens_BN, num_tokens_B = (t.to(self.text.pos_embed.device) for t in self.tokenizer(texts))
        return self.joint(None, self.text(tokens_BN, num_tokens_B))[1]

    def _embed_pairs(self, *pairs: Tensor) -> tuple[Tensor, Tensor]:
        """`embed`, part by part where method.embed_batch_size asks for it.

        A part's activations are thrown away, and computed again once the gradient of its features is known: that is
        what checkpointing a part means, and autograd keeps the books. Reentrant, since the other kind keeps what
        selective checkpointing of the blocks caches in the first pass, of all parts.
        """
        size = self.config.embed_batch_size
        if size is None or size >= len(pairs[0]):
            return self.embed(*pairs)

        def embed_part(_: Tensor, *part: Tensor) -> tuple[Tensor, Tensor]:
            return self.embed(*part)

        anchor = torch.empty(0, requires_grad=True)  # without an input that wants a gradient, autograd does not return
        again = partial(checkpoint, embed_part, anchor, use_reentrant=True, preserve_rng_state=False)
        parts = zip(*(t.split(size) for t in pairs), strict=True)
        images, texts = zip(*(again(*part) for part in parts), strict=True)
        return torch.cat(images), torch.cat(texts)
