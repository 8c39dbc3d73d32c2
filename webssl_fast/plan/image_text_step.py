"""A step of CLIP or SigLIP: an image tower, a text tower, and a loss that compares all pairs of a pass, over all ranks.

With gradient caching (method.embed_batch_size) a part of the pairs is in the towers at a time: first each part without
what a backward needs, then, once the loss has every feature's gradient, each part again with its backward.

Dimensions: B pairs of a rank's micro-batch, G pairs of a pass over all ranks, J width of the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from webssl_fast.config.schema import ClipConfig, ImageTextConfig, RunConfig
from webssl_fast.models.presets import text_preset
from webssl_fast.plan.blocks import Blocks, VisionNetwork, num_tokens, vision_network
from webssl_fast.plan.choices import FP32, MemoryChoices
from webssl_fast.plan.step import AtOnce, Moment


@dataclass(frozen=True)
class ImageTextStep:
    """vision, text: over all pairs of the micro-batch; num_embedded: pairs in the towers at once.

    num_compared    pairs of a pass over all ranks
    symmetric_loss  CLIP's, from images to texts and back; SigLIP's looks at each pair once
    """

    num_images: int
    num_embedded: int
    num_compared: int
    vision: VisionNetwork
    text: Blocks
    joint_dim: int
    symmetric_loss: bool

    @property
    def width(self) -> int:
        return self.vision.blocks.width

    @property
    def at_once(self) -> AtOnce:
        return AtOnce("method.embed_batch_size", self.num_embedded, 1, objective=None)

    @property
    def in_parts(self) -> bool:
        return self.num_embedded < self.num_images

    @property
    def input_bytes(self) -> float:
        """Images, tokens and how many they are."""
        tokens = num_tokens(self.text.groups) + self.num_images
        return self.vision.num_patches * self.vision.pixel_values * FP32 + tokens * 8

    def flops(self) -> dict[str, int]:
        """
        vision_forward, vision_backward, text_forward, text_backward  linear layers of the towers
        attention    scores and weighted sums of both, both ways
        joint_space  projections into it, both ways
        loss         cosines of all pairs, both ways
        """
        vision, text = self.vision.blocks, self.text
        pairs = 2 * self.num_images * self.num_compared * self.joint_dim
        return {
            "vision_forward": self.vision.forward_flops,
            "vision_backward": self.vision.backward_flops,
            "text_forward": text.linear_flops,
            "text_backward": 2 * text.linear_flops,
            "attention": sum(blocks.attention_flops + blocks.attention_backward_flops for blocks in (vision, text)),
            "joint_space": 3 * self._projections,
            "loss": (2 if self.symmetric_loss else 1) * 3 * pairs,
        }

    def recomputed_flops(self, checkpointing: str) -> int:
        """Of the blocks, and with gradient caching one forward more of everything."""
        vision, text = self.vision.blocks, self.text
        blocks = vision.recomputed_flops(checkpointing) + text.recomputed_flops(checkpointing)
        if not self.in_parts:
            return blocks
        attention = vision.attention_flops + text.attention_flops
        return blocks + self.vision.forward_flops + text.linear_flops + attention + self._projections

    @property
    def _projections(self) -> int:
        """Forward of both."""
        return 2 * self.num_images * (self.width + self.text.width) * self.joint_dim

    def moments(self, choices: MemoryChoices) -> Sequence[Moment]:
        part = self._of_one_part()
        vision, text = part.vision.activations(choices), part.text.activations(choices)
        # The joint space reads one row of a sequence and so keeps all that the vision network's last norm gave.
        features = num_tokens(part.vision.blocks.groups) * self.width * choices.norm_input
        loss = self._loss()
        # Of parts, all but the first leave their gradients before the next one is embedded again.
        earlier: tuple[str, ...] | None = None if self.in_parts else ()
        after_text = None if self.in_parts else ("text", "joint", "logit_scale")
        cached = 4 * self.num_images * self.joint_dim * FP32 if self.in_parts else 0  # features and their gradients
        block_again = Moment(
            "vision_block_again",
            "backbone",
            False,
            after_text,
            vision + part.vision.blocks.again(choices),
            cached,
            features,
        )
        begins = (Moment("loss", "text", False, (), 0, loss),) if self.in_parts else ()
        return (
            *begins,
            Moment(
                "forward_end",
                "text",
                False,
                earlier,
                vision + text + part.text.again(choices),
                cached or loss,
                features,
            ),
            Moment(
                "text_backward_end",
                "text",
                True,
                after_text,
                vision,
                cached,
                features + num_tokens(part.text.groups) * self.text.width * choices.stream,
                adds_gradients=self.in_parts,
            ),
            *((block_again,) if choices.checkpointing != "none" else ()),
            Moment(
                "backward_end",
                "backbone",
                True,
                None,
                part.vision.left_at_end(choices),
                cached,
                part.vision.blocks.backward_transient(choices),
                adds_gradients=self.in_parts,
            ),
        )

    def _of_one_part(self) -> ImageTextStep:
        def cut(blocks: Blocks) -> Blocks:
            return replace(blocks, groups=((self.num_embedded, blocks.groups[0][1]),))

        vision = replace(self.vision, blocks=cut(self.vision.blocks))
        return replace(self, num_images=self.num_embedded, vision=vision, text=cut(self.text))

    def _loss(self) -> float:
        """Matrices of pairs and of features while the loss is taken back, in fp32.

        CLIP: log-probabilities of both ways and their gradients; the features of all ranks and their gradients.
        SigLIP: for the texts of each rank signs, signed logits and what log sigmoid keeps, of one rank's the gradients
        of two; texts, and scaled images.
        """
        pairs, rows = self.num_images * self.num_compared, self.num_compared
        if self.symmetric_loss:
            return (4 * pairs + 4 * rows * self.joint_dim) * FP32
        return (3 * pairs + 2 * self.num_images**2 + 2 * rows * self.joint_dim) * FP32


def image_text_step(config: RunConfig, num_ranks: int) -> ImageTextStep:
    """Of a resolved config."""
    method, B = config.method, config.train.micro_batch_size
    assert isinstance(method, ImageTextConfig) and B is not None
    vision = vision_network(config.model, ())
    num_patches = (method.crops.size_px // vision.patch_size) ** 2
    text = text_preset(method.text.preset)
    return ImageTextStep(
        num_images=B,
        num_embedded=min(method.embed_batch_size or B, B),
        num_compared=B * num_ranks,
        vision=replace(vision, blocks=replace(vision.blocks, groups=((B, 1 + num_patches),))),
        text=Blocks(
            text.depth,
            text.width,
            4 * text.width,
            text.num_heads,
            method.text.activation,
            layer_scale=False,
            groups=((B, method.text.context_length),),
        ),
        joint_dim=method.joint_dim,
        symmetric_loss=isinstance(method, ClipConfig),
    )
