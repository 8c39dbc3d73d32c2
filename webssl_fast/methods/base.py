"""What the engine asks of a method of training; it knows nothing else about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from webssl_fast.models.checkpoint_layouts import Weights
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import Batch, CropRecipe


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay, as factors of the schedules' values.

    `scheduled_lr_off_steps`: the learning rate is 0 before this step (DINOv2's frozen last layer).
    """

    name: str
    parameters: list[nn.Parameter]
    lr_factor: float = 1.0
    weight_decay_factor: float = 1.0
    scheduled_lr_off_steps: int = 0


@runtime_checkable
class Method(Protocol):
    """An `nn.Module` that holds everything a checkpoint must hold: trained modules, EMA teacher, centers.

    Where a run has several ranks, `training_step` sees its rank's share; what needs all ranks (the prototype sums of
    Sinkhorn-Knopp) is reduced by the method over the default process group, if there is one.
    """

    name: str
    wants_captions: bool  # batches come with `Batch.captions`, and a sample without a caption counts as a bad one
    # What of the objective is taken over the images of one pass (of all ranks) only, as a clause for a warning: where a
    # step accumulates several passes, it is another objective. None: nothing is.
    balanced_over_pass: str | None

    def crop_recipes(self) -> list[CropRecipe]:
        """The crops of one image, equal sizes next to each other: a group of `Batch.crops` each. None, where a
        loader of its own brings what it trains on in `Batch.host`."""
        ...

    def trained_modules(self) -> dict[str, nn.Module]:
        """Disjoint modules with gradients, by the name that their gradient norm gets in the metrics; each is clipped by
        itself."""
        ...

    def shard_units(self) -> Iterator[nn.Module]:
        """Modules to shard one by one, inner before outer (transformer blocks, then their owners)."""
        ...

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        """Each network's repeated blocks (shard units too) in the order in which its forward runs them; trained and
        untrained networks apart. They are what is checkpointed, compiled, computed in FP8 and gathered ahead."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]: ...

    def initialize(self, seed: int) -> None:
        """Fills every parameter and buffer, which may have been made on the meta device."""
        ...

    def schedule_values(self, step: int) -> dict[str, float]:
        """The method's own schedules at a step (teacher_temperature, ema_momentum), which also go to the metrics."""
        ...

    def prepare(self, batch: Batch) -> None:
        """Host work on a batch that needs its positions and captions only (masks, drop-path choices, tokens): fills
        `batch.host`.

        Runs on a loader thread; a pure function of the seed, the positions and the captions.
        """
        ...

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch on the device (a scalar to back-propagate) and detached scalars for the metrics."""
        ...

    def after_step(self, step: int) -> None:
        """Runs after the optimizer's step (EMA)."""
        ...

    def encoder(self) -> Encoder:
        """The network to be judged (an EMA teacher's backbone, where there is one)."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A method that predicts pixels, which the report shows."""

    def reconstruct(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of normalised square images of its crops' size, the rest 0; and the same with what it
        predicts in the place of the rest."""
        ...


@runtime_checkable
class ContinuesFromWeights(Protocol):
    """A method that can go on from a published network (`method.init_from`)."""

    def start_from(self, weights: Weights) -> None:
        """Every network takes up these weights; what they lack stays as it is. Called on every rank, sharded or not.
        Raises UserError, with the method as it was, where they are of other sizes than the config's."""
        ...
