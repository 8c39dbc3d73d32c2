"""A step of MAE: the encoder over the visible patches alone, a decoder over all, pixels of the masked ones.

Dimensions: B images of a micro-batch, N patches of an image, V visible ones, T packed tokens, D width of the decoder, R
masked patches of the micro-batch, P pixel values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from webssl_fast.config.schema import MaeConfig, ModelConfig, RunConfig
from webssl_fast.models.presets import preset
from webssl_fast.plan.blocks import Blocks, VisionNetwork, num_tokens, vision_network
from webssl_fast.plan.choices import FP32, MemoryChoices
from webssl_fast.plan.step import AtOnce, Moment


@dataclass(frozen=True)
class MaeStep:
    """
    group_size   what a micro-batch must be a multiple of
    num_patches  of an image
    num_masked   those of an image whose pixels are predicted
    """

    num_images: int
    group_size: int
    num_patches: int
    num_masked: int
    encoder: VisionNetwork
    decoder: Blocks

    @property
    def width(self) -> int:
        return self.encoder.blocks.width

    @property
    def at_once(self) -> AtOnce:
        return AtOnce("train.micro_batch_size", self.num_images, self.group_size, objective=None)

    @property
    def input_bytes(self) -> float:
        """Images, and which patches are visible and which masked."""
        pixels = self.num_images * self.num_patches * self.encoder.pixel_values
        return pixels * FP32 + self.num_images * self.num_patches * 8

    def flops(self) -> dict[str, int]:
        """
        encoder_forward, encoder_backward  linear layers of the encoder
        decoder             those of the decoder, both ways, with the projections before and after it
        attention           scores and weighted sums of both, both ways
        """
        encoder, decoder = self.encoder.blocks, self.decoder
        embed = 2 * num_tokens(encoder.groups) * encoder.width * decoder.width
        to_pixels = 2 * self.num_images * self.num_masked * decoder.width * self.encoder.pixel_values
        return {
            "encoder_forward": self.encoder.forward_flops,
            "encoder_backward": self.encoder.backward_flops,
            "decoder": 3 * (decoder.linear_flops + embed + to_pixels),
            "attention": sum(blocks.attention_flops + blocks.attention_backward_flops for blocks in (encoder, decoder)),
        }

    def recomputed_flops(self, checkpointing: str) -> int:
        return self.encoder.blocks.recomputed_flops(checkpointing) + self.decoder.recomputed_flops(checkpointing)

    def moments(self, choices: MemoryChoices) -> Sequence[Moment]:
        encoder, decoder = self.encoder.activations(choices), self.decoder
        forward = encoder + self._around_decoder(choices) + decoder.activations(choices)
        moments = [Moment("forward_end", "decoder", False, (), forward, self._pixels(choices))]
        if choices.checkpointing != "none":
            moments.append(Moment("last_block_again", "decoder", False, (), forward + decoder.again(choices)))
        return (
            *moments,
            Moment(
                "decoder_backward_end",
                "decoder",
                True,
                ("decoder",),
                encoder + self._decoder_input(choices) + decoder.of_one(choices),
                transient=decoder.backward_transient(choices),
            ),
            Moment(
                "backward_end",
                "backbone",
                True,
                None,
                self.encoder.left_at_end(choices),
                transient=self.encoder.blocks.backward_transient(choices),
            ),
        )

    def _decoder_input(self, choices: MemoryChoices) -> float:
        """What the projection into the decoder keeps: the encoder's features, in the order of its tokens."""
        return num_tokens(self.encoder.blocks.groups) * self.width * choices.compute

    def _around_decoder(self, choices: MemoryChoices) -> float:
        """And what the norm and the projection to pixels keep of the masked patches."""
        masked = self.num_images * self.num_masked * self.decoder.width
        return self._decoder_input(choices) + masked * (choices.norm_input + choices.compute)

    def _pixels(self, choices: MemoryChoices) -> float:
        """Of the masked patches in fp32: predicted, true, normalised, and one matrix in between; and predicted in
        bf16."""
        elements = self.num_images * self.num_masked * self.encoder.pixel_values
        return elements * (4 * FP32 + (choices.compute if choices.compute < FP32 else 0))


def mae_step(config: RunConfig, num_ranks: int) -> MaeStep:
    """Of a resolved config."""
    B, G = config.train.micro_batch_size, config.train.group_size
    assert isinstance(config.method, MaeConfig) and B is not None and G is not None
    return mae_step_of(config.method, config.model, B, G)


def mae_step_of(
    method: MaeConfig, model: ModelConfig, num_images: int, group_size: int = 1, *, encodes_all: bool = False
) -> MaeStep:
    """encodes_all: the encoder computes the masked patches too, which MAE spares it."""
    num_patches = (model.image_size_px // preset(model.preset).patch_size) ** 2
    num_visible = int(num_patches * (1 - method.mask_ratio))
    num_encoded = num_patches if encodes_all else num_visible
    width = method.decoder_width
    return MaeStep(
        num_images=num_images,
        group_size=group_size,
        num_patches=num_patches,
        num_masked=num_patches - num_visible,
        encoder=vision_network(model, ((num_images, 1 + num_encoded),)),
        decoder=Blocks(
            method.decoder_depth,
            width,
            4 * width,
            method.decoder_num_heads,
            "gelu",
            layer_scale=False,
            groups=((num_images, 1 + num_patches),),
        ),
    )
