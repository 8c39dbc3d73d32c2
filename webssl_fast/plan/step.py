"""What a plan asks of a method: the arithmetic of one micro-batch, and the moments at which its memory can peak.

Each family of methods is one file that says so (dinov2_step.py, mae_step.py, image_text_step.py), by the same parts:
blocks.py. steps.py knows which is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from webssl_fast.plan.choices import MemoryChoices


@dataclass(frozen=True)
class Moment:
    """Bytes beside the weights at a point of the pass, of a rank.

    at_work         the trained module whose blocks compute, so that a sharded run has some of them gathered
    in_backward     whether that is its backward
    with_gradients  the modules whose backward is over; None: all are
    activations     that a backward to come needs
    logits          what the loss compares, with the gradients that its forward computes
    transient       what dies within the block at work
    adds_gradients  an earlier part of the pass has left gradients, beside which new ones are made
    """

    name: str
    at_work: str
    in_backward: bool
    with_gradients: tuple[str, ...] | None
    activations: float
    logits: float = 0.0
    transient: float = 0.0
    adds_gradients: bool = False


@dataclass(frozen=True)
class AtOnce:
    """How many images are in the networks at once, and what says so.

    setting      the config's key for it
    multiple_of  what it must be a multiple of
    objective    what a smaller number would change of the objective, as a sentence; None: nothing
    """

    setting: str
    images: int
    multiple_of: int
    objective: str | None


class Step(Protocol):
    """One micro-batch of one rank under a method's objective."""

    @property
    def num_images(self) -> int: ...

    @property
    def at_once(self) -> AtOnce: ...

    @property
    def width(self) -> int:
        """Of the vision network, by which the default MFU goes."""
        ...

    @property
    def input_bytes(self) -> float:
        """Crops and what the loader says about them, on the device for the whole pass."""
        ...

    def flops(self) -> dict[str, int]:
        """Forward and backward by part, as torch's FlopCounterMode counts them; without what checkpointing computes
        again."""
        ...

    def recomputed_flops(self, checkpointing: str) -> int:
        """What the backward computes a second time, by the mode of activation checkpointing."""
        ...

    def moments(self, choices: MemoryChoices) -> Sequence[Moment]:
        """In the order in which a pass comes to them."""
        ...
