"""One training step, twice: as webssl_fast takes it and as plain eager PyTorch does, on the same inputs.

Dimensions: V crops of one kind, B images, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.method_step import MethodStep
from benchmarks.plain_dinov2 import PlainConfig, PlainDinoV2
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import DinoV2Config, HeadConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.models.presets import preset
from webssl_fast.plan.steps import flops_per_image
from webssl_fast.records import Batch

NUM_STEPS = 625_000
STEP = 2_000  # every part of the objective is at work: the last layers are no longer frozen


@dataclass(frozen=True)
class StepCase:
    """What is compared. The defaults are the recipe of Web-DINO on a small vision transformer."""

    preset: str = "vit_small_patch14"
    num_images: int = 8
    precision: str = "bf16"
    drop_path_rate: float = 0.4
    num_prototypes: int = 131072
    seed: int = 0
    device: str = "cpu"
    compile_blocks: bool = False

    @property
    def method_config(self) -> DinoV2Config:
        return DinoV2Config(
            dino_head=HeadConfig(bottleneck_dim=384, num_prototypes=self.num_prototypes),
            ibot_head=HeadConfig(bottleneck_dim=256, num_prototypes=self.num_prototypes),
        )

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig(preset=self.preset, drop_path_rate=self.drop_path_rate)

    def method(self) -> DinoV2:
        """Method without values in its parameters; `materialize` fills them."""
        return DinoV2(
            self.method_config,
            self.model_config,
            OptimConfig(),
            num_steps=NUM_STEPS,
            group_size=self.num_images,
            seed=self.seed,
        )

    def batch(self) -> Batch:
        """Random crops with the masks and drop-path choices of the recipe: what the loader would hand over."""
        config, B = self.method_config, self.num_images
        generator = torch.Generator().manual_seed(self.seed)
        crops = [
            torch.randn(group.num, B, 3, group.size_px, group.size_px, generator=generator)
            for group in (config.global_crops, config.local_crops)
        ]
        positions = np.arange(B)
        batch = Batch(positions, positions, crops, torch.full((B,), -1))
        self.method_without_weights().prepare(batch)
        return batch.to(torch.device(self.device))

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig(
            device="cuda" if self.device == "cuda" else "cpu",
            precision="bf16" if self.precision == "bf16" else "fp32",
            compile_blocks=self.compile_blocks,
            num_steps=NUM_STEPS,
            global_batch_size=self.num_images,
            group_size=self.num_images,
        )

    def flops_per_image(self) -> float:
        """As webssl_fast executes it, from the count that `webssl plan` makes."""
        config = RunConfig(model=self.model_config, method=self.method_config, train=self.train_config)
        flops = flops_per_image(resolve(config, world_size=1, device=self.device), 1)
        assert flops is not None
        return flops

    def method_without_weights(self) -> DinoV2:
        """For its draws and schedules."""
        with torch.device("meta"):
            return self.method()


class Side(Protocol):
    def step(self) -> float:
        """Takes one whole training step and returns its loss."""
        ...

    def terms(self) -> dict[str, float]:
        """Each term of the objective, weighted, and each trained module's gradient norm, without taking a step."""
        ...


class WebsslSide:
    """As the engine's loop takes a step, on a batch that is prepared already."""

    def __init__(self, case: StepCase, batch: Batch) -> None:
        self.method = case.method_without_weights()
        self.taken = MethodStep(self.method, batch, case.train_config, step=STEP, seed=case.seed)

    def step(self) -> float:
        self.taken.forward()
        self.taken.backward()
        self.taken.optimize()
        self.taken.after_step()
        return self.taken.loss.item()

    def terms(self) -> dict[str, float]:
        terms = self.taken.forward()
        self.taken.backward()
        terms["koleo"] = terms["koleo"] * self.method.config.koleo_weight
        return _with_grad_norms(terms, self.method.trained_modules())

    def student_weights(self) -> dict[str, Tensor]:
        return self.method.student.state_dict()


class PlainSide:
    def __init__(self, case: StepCase, batch: Batch) -> None:
        size = preset(case.preset)
        config = PlainConfig(
            width=size.width,
            depth=size.depth,
            num_heads=size.num_heads,
            patch_size_px=size.patch_size,
            drop_path_rate=case.drop_path_rate,
            num_prototypes=case.num_prototypes,
            teacher_temperature=case.method_without_weights().schedule_values(STEP)["teacher_temperature"],
        )
        self.plain = PlainDinoV2(config, case.precision, case.seed, case.device, case.compile_blocks)
        global_crops, local_crops = (crops.flatten(0, 1) for crops in batch.crops)
        self.inputs = (global_crops, local_crops, batch.host["mask_RN"])

    def step(self) -> float:
        return sum(term.item() for term in self.plain.training_step(*self.inputs).values())

    def terms(self) -> dict[str, float]:
        terms = self.plain.forward_and_backward(*self.inputs)
        return _with_grad_norms(terms, dict(self.plain.student.named_children()))

    def load_student_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over weights of webssl_fast, whose names differ in torch's spelling of a weight norm only."""
        spelling = {
            "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
            "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
        }
        for ours, torchs in spelling.items():
            weights = {name.replace(ours, torchs): tensor for name, tensor in weights.items()}
        self.plain.student.load_state_dict(weights)
        self.plain.teacher.load_state_dict(weights)


SIDES: dict[str, Callable[[StepCase, Batch], Side]] = {"webssl_fast": WebsslSide, "plain_dinov2": PlainSide}


def _with_grad_norms(terms: dict[str, Tensor], modules: dict[str, nn.Module]) -> dict[str, float]:
    values = {name: term.item() for name, term in terms.items()}
    for name, module in modules.items():
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        values[f"grad_norm_{name}"] = nn.utils.get_total_norm(grads).item()
    return values
