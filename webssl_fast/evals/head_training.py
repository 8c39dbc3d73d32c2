"""One training loop for heads on a frozen encoder, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from webssl_fast.errors import UserError

T = TypeVar("T")
SHOW_EVERY = 50  # steps between readings of the loss: each waits for the device


class Ranks(Protocol):
    """The processes that evaluate together: what of engine.distributed.Distributed is needed here."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def sum_(self, x: Tensor) -> Tensor:
        """Adds `x` up over the ranks, in place."""
        ...

    def gather(self, value: T) -> list[T]: ...


def train_head(
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[int, Tensor, Tensor], Tensor],
    settings_at: Callable[[int], dict[str, float]],
    ranks: Ranks,
    *,
    num_steps: int,
    weight_decay: float,
    clip_grad_norm: float | None = None,
    after_step: Callable[[int], None] | None = None,
    description: str = "head",
) -> None:
    """AdamW (betas 0.9, 0.999) over `batches`, one step each; gradients are averaged over the ranks.

    loss_of      (step, images, targets) of this rank -> scalar; its mean over the ranks is what is minimised
    settings_at  step -> {"lr": ...} and, where it is scheduled, {"momentum": ...}, AdamW's first beta
    after_step   is called with the number of steps taken
    Raises UserError where the loss is not finite.
    """
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    head.train()
    progress = tqdm(batches, desc=description, total=num_steps, unit="step", disable=ranks.rank > 0, dynamic_ncols=True)
    for step, (images, targets) in enumerate(progress):
        settings = settings_at(step)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = settings["lr"], (settings.get("momentum", 0.9), 0.999)
        with torch.enable_grad():
            loss = loss_of(step, images, targets)
            optimizer.zero_grad()
            loss.backward()
        _average_gradients(parameters, ranks)
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        optimizer.step()
        if step % SHOW_EVERY == 0 or step + 1 == num_steps:
            shown = loss.item()
            if not torch.isfinite(loss):
                raise UserError(
                    f"{description}: the loss is {shown} at step {step}. The encoder's features or its precision are "
                    "broken (train.precision=fp32 tells which), or the learning rate is too high"
                )
            progress.set_postfix(loss=f"{shown:.4f}")
        if after_step is not None:
            after_step(step + 1)
            head.train()
    head.eval()


def _average_gradients(parameters: list[nn.Parameter], ranks: Ranks) -> None:
    if ranks.world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = ranks.sum_(torch.cat([g.flatten() for g in gradients])) / ranks.world_size
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
