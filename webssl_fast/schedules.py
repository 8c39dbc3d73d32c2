"""Schedules as pure functions of the step: nothing here has a state, so a resumed run needs no more than its step.

`step` counts from 0 and is the number of optimizer steps already taken. Imports nothing of ours.
"""

from __future__ import annotations

import math


def linear(step: int, start: float, end: float, num_steps: int) -> float:
    """From `start` at step 0 to `end` at `num_steps`, then constant. `num_steps` 0: `end` from the first step."""
    return start + (end - start) * _progress(step, num_steps)


def cosine(step: int, start: float, end: float, num_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `num_steps`, then constant (Loshchilov & Hutter 2017, eq. 5)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, num_steps)))


def warmup_cosine(step: int, peak: float, end: float, warmup_steps: int, num_steps: int) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at `num_steps`.

    A run shorter than its warm-up ends on the way up.
    """
    if step < warmup_steps:
        return linear(step, 0.0, peak, warmup_steps)
    return cosine(step - warmup_steps, peak, end, num_steps - warmup_steps)


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """DINOv2's square-root rule: the learning rate of a batch of 1024 images, scaled to another batch size."""
    return base_lr * math.sqrt(global_batch_size / 1024)


def _progress(step: int, num_steps: int) -> float:
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return 1.0 if step >= num_steps else step / num_steps
