"""The vision transformer of Web-DINO and Web-MAE: class token, position embedding, pre-norm blocks. What differs
between the two is part of the preset.

Dimensions: B crops of one size, N patches, V visible ones, T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from webssl_fast.config.schema import ModelConfig
from webssl_fast.errors import ConfigError
from webssl_fast.models import swiglu_padding
from webssl_fast.models.block import Block, Groups, KeptSequences
from webssl_fast.models.embed import PatchEmbed, interpolate_pos_embed, sine_cosine_positions
from webssl_fast.models.init import assign, constant, initialize_as_mae, normal, truncated_normal, uniform
from webssl_fast.models.presets import preset
from webssl_fast.records import Features


class VisionTransformer(nn.Module):
    """Built from a preset; parameters are uninitialised until `initialize` (so that a 7B can be made on `meta`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size = preset(config.preset)
        if config.image_size_px % size.patch_size:
            raise ConfigError(
                f"model.image_size_px is {config.image_size_px}, which is not a multiple of the patch size "
                f"{size.patch_size} of {config.preset}; {_nearest_multiples(config.image_size_px, size.patch_size)} are"
            )
        if config.swiglu_pad_multiple > 1 and size.architecture.mlp != "swiglu":
            raise ConfigError(
                f"model.swiglu_pad_multiple is {config.swiglu_pad_multiple}, but {config.preset} has no SwiGLU: its "
                f"MLP's hidden size is {size.hidden_dim()}; set model.swiglu_pad_multiple=1"
            )
        self.config, self.architecture = config, size.architecture
        self.width, self.depth, self.patch_size = size.width, size.depth, size.patch_size
        num_patches = (config.image_size_px // size.patch_size) ** 2
        self.unpadded_hidden_dim, self.hidden_dim = size.hidden_dim(), size.hidden_dim(config.swiglu_pad_multiple)

        self.patch_embed = PatchEmbed(size.width, size.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        pos_embed = torch.empty(1, 1 + num_patches, size.width)
        if self.architecture.positions == "learned":
            self.pos_embed = nn.Parameter(pos_embed)
        else:
            self.register_buffer("pos_embed", pos_embed)
        if self.architecture.mask_token:
            self.mask_token = nn.Parameter(torch.empty(1, size.width))
        self.blocks = nn.ModuleList(
            Block(
                size.width,
                size.num_heads,
                self.hidden_dim,
                mlp=self.architecture.mlp,
                layer_scale=self.architecture.layer_scale,
            )
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        kept: Sequence[tuple[KeptSequences, KeptSequences]] | None = None,
        visible: Sequence[Tensor | None] | None = None,
    ) -> list[Features]:
        """All groups of crops in one packed pass.

        crops    a [B, 3, H, W] for each group
        masks    for each group None or a bool [B, N]: True where the patch is replaced by the mask token
        kept     for each block what drop-path leaves of the attention and the MLP branch; None: everything
        visible  for each group None or int64 [B, V]: the only patches that there are, beside the class token; their
                 features come in this order
        """
        x_TD, groups = self._embed(crops, masks, visible)
        for i, block in enumerate(self.blocks):
            x_TD = block(x_TD, groups, None if kept is None else kept[i])
        return _unpack(self.norm(x_TD), groups)

    def block_features(self, images_B3HW: Tensor, blocks: Sequence[int], *, final_norm: bool) -> list[Features]:
        """Features after each of `blocks` (0 is the first), in that order; `final_norm`: through the last LayerNorm."""
        x_TD, groups = self._embed([images_B3HW])
        after: dict[int, Features] = {}
        for i, block in enumerate(self.blocks[: max(blocks) + 1]):
            x_TD = block(x_TD, groups)
            if i in blocks:
                (after[i],) = _unpack(self.norm(x_TD) if final_norm else x_TD, groups)
        return [after[i] for i in blocks]

    def _embed(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        visible: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, Groups]:
        """Packed tokens [T, D] before the first block, and their groups."""
        tokens, groups = [], []
        embedded = self.patch_embed(crops, visible)
        for i, (crop, patch_BND) in enumerate(zip(crops, embedded, strict=True)):
            if masks is not None and masks[i] is not None:
                patch_BND = torch.where(masks[i].unsqueeze(-1), self.mask_token.to(patch_BND.dtype), patch_BND)
            h, w = crop.shape[-2] // self.patch_size, crop.shape[-1] // self.patch_size
            pos_1ND = interpolate_pos_embed(self.pos_embed, h, w, self.config.pos_embed_interpolation)
            B, N = patch_BND.shape[:2]
            cls_B1D = (self.cls_token + pos_1ND[:, :1]).expand(B, -1, -1)
            patch_pos_1ND = pos_1ND[:, 1:]
            if visible is not None and (visible_BV := visible[i]) is not None:
                patch_pos_1ND = patch_pos_1ND[0].index_select(0, visible_BV.flatten()).view(B, N, -1)
            tokens.append(torch.cat([cls_B1D, patch_BND + patch_pos_1ND], dim=1).flatten(0, 1))
            groups.append((B, 1 + N))
        return torch.cat(tokens), tuple(groups)

    def initialize(self, seed: int, prefix: str) -> None:
        """The architecture's initialisation. Every tensor is a function of (seed, prefix + its name), whatever the
        sharding and the padding of the SwiGLU."""
        if self.architecture.positions == "sine_cosine":
            side = self.config.image_size_px // self.patch_size
            self.pos_embed.copy_(sine_cosine_positions(self.width, side))
        if self.architecture.initialization == "mae":
            initialize_as_mae(self, seed, prefix)
            return
        for name, p in self.named_parameters():
            key = (seed, f"{prefix}.{name}")
            if name.startswith("patch_embed."):
                uniform(p, key, bound=(3 * self.patch_size**2) ** -0.5)  # torch's own default for a convolution
            elif name == "cls_token":
                normal(p, key, std=1e-6)
            elif name.endswith("w12.weight"):
                truncated_normal(p, key, 0.02, (2 * self.unpadded_hidden_dim, self.width), partial(self._pad, name))
            elif name.endswith("w3.weight"):
                truncated_normal(p, key, 0.02, (self.width, self.unpadded_hidden_dim), partial(self._pad, name))
            elif name == "pos_embed" or name.endswith(("qkv.weight", "proj.weight")):
                truncated_normal(p, key, std=0.02)
            elif name.endswith("gamma"):
                constant(p, self.config.layer_scale_init)
            elif "norm" in name and name.endswith("weight"):
                constant(p, 1.0)
            else:  # biases, mask token
                constant(p, 0.0)

    def unpadded_state_dict(self) -> dict[str, Tensor]:
        """The weights without the SwiGLU's padding, as models of the preset's own hidden size have them; the tensors
        must be whole. ValueError if padding is not zero."""
        return swiglu_padding.map_state(swiglu_padding.unpad, self.state_dict(), *self._hidden_dims())

    @torch.no_grad()
    def assign_unpadded(self, state: Mapping[str, Tensor]) -> None:
        """Takes up weights of the preset's own hidden size, of any float dtype; a sharded parameter keeps its shard."""
        for name, parameter in [*self.named_parameters(), *self.named_buffers()]:
            assign(parameter, self._pad(name, state[name]))

    def _hidden_dims(self) -> tuple[int, int]:
        return self.unpadded_hidden_dim, self.hidden_dim

    def _pad(self, name: str, whole: Tensor) -> Tensor:
        return swiglu_padding.pad(name, whole, *self._hidden_dims())


def _unpack(x_TD: Tensor, groups: Groups) -> list[Features]:
    outputs = []
    for part_TD, (B, length) in zip(x_TD.split([b * n for b, n in groups]), groups, strict=True):
        part_BND = part_TD.view(B, length, -1)
        outputs.append(Features(part_BND[:, 0], part_BND[:, 1:]))
    return outputs


def _nearest_multiples(value: int, multiple: int) -> str:
    below = max(value // multiple, 1) * multiple
    return f"{below} and {below + multiple}"
