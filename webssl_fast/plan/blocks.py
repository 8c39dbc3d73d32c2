"""A network's repeated blocks: FLOPs of what passes through them, and the bytes that their backward needs.

A linear layer with P weights costs 2 P FLOPs a token forward, and twice that backward (the gradients of its input and
of its weights). Causal attention counts as any other, since FlopCounterMode and the kernels' MFU count it so.

Dimensions: T packed tokens, T' of them kept by drop-path, D width, F hidden width of the MLP, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from webssl_fast.config.schema import ModelConfig
from webssl_fast.models.block import Groups
from webssl_fast.models.presets import preset
from webssl_fast.ops import flops as op_flops
from webssl_fast.plan.choices import FP32, MemoryChoices

# MLP by its activation -> weight matrices of D x F, columns of F that come out of the first, what the others keep of F
_MLPS = {"swiglu": (3, 2, 2), "gelu": (2, 1, 1), "quick_gelu": (2, 1, 2)}


@dataclass(frozen=True)
class Blocks:
    """So many blocks, alike.

    groups  ((sequences, tokens), ...) that pass
    kept    the same for a residual branch, after drop-path; None: no drop-path
    """

    depth: int
    width: int
    hidden_dim: int
    num_heads: int
    mlp: Literal["swiglu", "gelu", "quick_gelu"]
    layer_scale: bool
    groups: Groups
    kept: Groups | None = None

    @property
    def branch(self) -> Groups:
        """The sequences that a residual branch computes."""
        return self.groups if self.kept is None else self.kept

    @property
    def linear_parameters(self) -> int:
        """Weights of a block's linear layers."""
        return 4 * self.width**2 + _MLPS[self.mlp][0] * self.width * self.hidden_dim

    # ------------------------------------------------------------ FLOPs

    @property
    def linear_flops(self) -> int:
        """Forward of all blocks' linear layers; their backward is twice that."""
        return 2 * self.depth * self.linear_parameters * num_tokens(self.branch)

    @property
    def attention_flops(self) -> int:
        """Scores and weighted sums, forward."""
        return self.depth * sum(op_flops.attention_flops(count, N, self.width) for count, N in self.branch)

    @property
    def attention_backward_flops(self) -> int:
        return self.depth * sum(op_flops.attention_backward_flops(count, N, self.width) for count, N in self.branch)

    def recomputed_flops(self, checkpointing: str) -> int:
        """Selective checkpointing keeps the results of products and attention. Full stops where the last tensor that
        the backward needs is there: at the MLP's last product where no LayerScale follows it."""
        if checkpointing != "full":
            return 0
        spared = 0 if self.layer_scale else 2 * self.depth * self.width * self.hidden_dim * num_tokens(self.branch)
        return self.linear_flops + self.attention_flops - spared

    # ------------------------------------------------------------ bytes

    def activations(self, choices: MemoryChoices) -> float:
        """What the forward of all blocks keeps."""
        return self.depth * self.of_one(choices, choices.checkpointing)

    def of_one(self, choices: MemoryChoices, checkpointing: str = "none") -> float:
        """What one block keeps; by default as when its backward begins."""
        T, kept_T, D, F = num_tokens(self.groups), num_tokens(self.branch), self.width, self.hidden_dim
        if checkpointing == "full":
            return T * D * choices.stream
        _, first_columns, more_columns = _MLPS[self.mlp]
        # Outputs of qkv (3 D), of attention (D, and D again where groups are joined) and of the MLP's first product.
        joined = len(self.groups) > 1
        products = kept_T * choices.compute * ((4 + joined) * D + first_columns * F) + kept_T * self.num_heads * FP32
        # Those of the branches' last products are needed by LayerScale, and kept by selective checkpointing anyway.
        if self.layer_scale or checkpointing == "selective":
            products += 2 * kept_T * D * choices.compute
        if checkpointing == "selective":
            return T * D * choices.stream + products
        # Inputs of qkv and of the MLP's first product (D each); its activation and the input of its last product.
        rest = kept_T * choices.compute * (2 * D + more_columns * F)
        # Inputs of the two norms with their means and deviations; drop-path also keeps the two scaled residuals.
        norm_inputs = 2 * kept_T * D * choices.norm_input + 4 * kept_T * FP32
        scaled_residuals = 2 * kept_T * D * choices.stream if self.kept is not None else 0
        return products + rest + norm_inputs + scaled_residuals

    def again(self, choices: MemoryChoices) -> float:
        """What a block's backward adds under checkpointing, which computes the block again."""
        if choices.checkpointing == "none":
            return 0
        kept = self.of_one(choices, "selective") if choices.checkpointing == "selective" else 0
        return self.of_one(choices) - kept

    def backward_transient(self, choices: MemoryChoices) -> float:
        """Gradients of the MLP's inner tensors, and of the stream."""
        inner = (_MLPS[self.mlp][1] + 1) * self.hidden_dim
        return num_tokens(self.branch) * inner * choices.compute + num_tokens(self.groups) * self.width * choices.stream


def num_tokens(groups: Groups) -> int:
    return sum(count * length for count, length in groups)


@dataclass(frozen=True)
class VisionNetwork:
    """Patch projection and blocks of a vision transformer; of each sequence, one token is the class token."""

    patch_size: int
    blocks: Blocks

    @property
    def num_patches(self) -> int:
        return sum(count * (length - 1) for count, length in self.blocks.groups)

    @property
    def embed_flops(self) -> int:
        """Forward of the projection. Its backward is as much: pixels need no gradient."""
        return 2 * self.num_patches * self.pixel_values * self.blocks.width

    @property
    def pixel_values(self) -> int:
        """Of a patch."""
        return 3 * self.patch_size**2

    @property
    def forward_flops(self) -> int:
        """Linear layers."""
        return self.embed_flops + self.blocks.linear_flops

    @property
    def backward_flops(self) -> int:
        return self.embed_flops + 2 * self.blocks.linear_flops

    def embed_activations(self, choices: MemoryChoices) -> float:
        return self.num_patches * self.pixel_values * choices.compute

    def activations(self, choices: MemoryChoices) -> float:
        """What the forward keeps: patches, blocks, and the last norm's input."""
        norm = num_tokens(self.blocks.groups) * self.blocks.width * choices.norm_input
        return self.embed_activations(choices) + self.blocks.activations(choices) + norm

    def left_at_end(self, choices: MemoryChoices) -> float:
        """What is left of it when the backward ends: the patches, and the first block as computed."""
        return self.embed_activations(choices) + self.blocks.of_one(choices)


def vision_network(model: ModelConfig, groups: Groups, kept: Groups | None = None) -> VisionNetwork:
    """The network of a config over so many sequences, class tokens among their tokens."""
    size = preset(model.preset)
    architecture = size.architecture
    hidden_dim = size.hidden_dim(model.swiglu_pad_multiple)
    blocks = Blocks(
        size.depth, size.width, hidden_dim, size.num_heads, architecture.mlp, architecture.layer_scale, groups, kept
    )
    return VisionNetwork(size.patch_size, blocks)
