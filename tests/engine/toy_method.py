"""A small method with everything the engine must cope with: two trained modules, an EMA teacher, an integer buffer,
parameter shapes that two ranks cannot share evenly; and a loader that is a pure function of positions.

Dimensions: B images, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from webssl_fast.methods.base import ParameterGroup
from webssl_fast.models.init import assign
from webssl_fast.records import Batch, CropRecipe
from webssl_fast.schedules import cosine

SIZE_PX = 2


class ToyMethod(nn.Module):
    name = "toy"
    wants_captions = False
    balanced_over_pass: str | None = None

    def __init__(self, width: int = 7, num_steps: int = 100):
        super().__init__()
        self.num_steps = num_steps
        self.student = nn.ModuleDict(
            {
                "backbone": nn.Sequential(nn.Linear(3 * SIZE_PX**2, width), nn.GELU(), nn.Linear(width, width)),
                "head": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)),
            }
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def crop_recipes(self) -> list[CropRecipe]:
        return [CropRecipe(size_px=SIZE_PX)]

    def trained_modules(self) -> dict[str, nn.Module]:
        return dict(self.student.items())

    def shard_units(self) -> Iterator[nn.Module]:
        for network in (self.student, self.teacher):
            yield from network.values()

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        return []

    def parameter_groups(self) -> list[ParameterGroup]:
        head = list(self.student["head"].parameters())
        named = list(self.student["backbone"].named_parameters())
        return [
            ParameterGroup("backbone", [p for n, p in named if n.endswith("weight")]),
            ParameterGroup("bias", [p for n, p in named if n.endswith("bias")], weight_decay_factor=0.0),
            ParameterGroup("head", head, lr_factor=0.5, scheduled_lr_off_steps=2),
        ]

    def initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.student.parameters():
                assign(parameter, torch.randn(parameter.shape, generator=generator) * 0.5)
            self.teacher.load_state_dict(self.student.state_dict())
            self.num_updates.zero_()

    def schedule_values(self, step: int) -> dict[str, float]:
        return {"ema_momentum": cosine(step, 0.9, 1.0, self.num_steps)}

    def prepare(self, batch: Batch) -> None:
        pass

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x_BD = batch.crops[0][0].flatten(1)
        with torch.no_grad():
            target_B = self.teacher["head"](self.teacher["backbone"](x_BD)).squeeze(1)
        output_B = self.student["head"](self.student["backbone"](x_BD)).squeeze(1)
        fit = (output_B - x_BD.mean(1)).square().mean()
        agreement = (output_B - target_B).square().mean()
        return fit + 0.1 * agreement, {"fit": fit.detach(), "agreement": agreement.detach()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        teacher = [_local(p) for p in self.teacher.parameters()]
        student = [_local(p) for p in self.student.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - self.schedule_values(step)["ema_momentum"])
        self.num_updates += 1

    def encoder(self) -> nn.Module:
        return self.teacher["backbone"]


class ToyLoader:
    """Images drawn from their positions. Those at `nonfinite_positions` are NaN, those at `bad_positions` replaced."""

    def __init__(
        self,
        global_batch_size: int,
        num_micro_steps: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        nonfinite_positions: frozenset[int] = frozenset(),
        bad_positions: frozenset[int] = frozenset(),
    ):
        self.global_batch_size = global_batch_size
        self.num_micro_steps = num_micro_steps
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.nonfinite_positions, self.bad_positions = nonfinite_positions, bad_positions
        self.data_wait_seconds = 0.0

    def batch(self, step: int, micro_step: int) -> Batch:
        per_pass = self.global_batch_size // (self.num_micro_steps * self.world_size)
        first = step * self.global_batch_size + (micro_step * self.world_size + self.rank) * per_pass
        positions = np.arange(first, first + per_pass)
        images = torch.stack([self._image(int(position)) for position in positions])
        num_bad = sum(int(p) in self.bad_positions for p in positions)
        return Batch(positions, positions * 10, [images[None]], torch.full((per_pass,), -1), num_bad=num_bad)

    def close(self) -> None:
        pass

    def _image(self, position: int) -> Tensor:
        if position in self.nonfinite_positions:
            return torch.full((3, SIZE_PX, SIZE_PX), float("nan"))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        return torch.randn(3, SIZE_PX, SIZE_PX, generator=generator)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
