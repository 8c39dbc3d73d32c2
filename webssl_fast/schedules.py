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
    return _half_cosine(start, end, _progress(step, num_steps))


def warmup_cosine(step: int, peak: float, end: float, warmup_steps: int, num_steps: int) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at `num_steps`.

    A run shorter than its warm-up ends on the way up.
    """
    if step < warmup_steps:
        return linear(step, 0.0, peak, warmup_steps)
    return cosine(step - warmup_steps, peak, end, num_steps - warmup_steps)


def polynomial(step: int, start: float, end: float, power: float, num_steps: int) -> float:
    """From `start` at step 0 to `end` at `num_steps`: end + (start - end) * (1 - step / num_steps)^power."""
    return end + (start - end) * (1.0 - _progress(step, num_steps)) ** power


def warmup_factor(step: int, first: float, warmup_steps: int) -> float:
    """What a learning rate is multiplied with: linear from `first` at step 0 to 1 at `warmup_steps`, then 1."""
    return linear(step, first, 1.0, warmup_steps)


def one_cycle_momentum(
    step: int, num_steps: int, high: float = 0.95, low: float = 0.85, falling_share: float = 0.3
) -> float:
    """Half a cosine from `high` down to `low` over the first `falling_share` of the steps, then one back up to `high`.

    (Smith & Topin 2018. The phases end at steps falling_share * num_steps - 1 and num_steps - 1, as MMCV counts them.)
    """
    turn, last = max(0.0, falling_share * num_steps - 1.0), num_steps - 1.0
    if step <= turn:
        return _half_cosine(high, low, step / turn if turn else 0.0)
    return _half_cosine(low, high, min(1.0, (step - turn) / (last - turn)))


def scaled_lr(base_lr: float, global_batch_size: int, scaling: str = "sqrt") -> float:
    """A learning rate, scaled to a batch size. "sqrt": DINOv2's rule, from a batch of 1024 images; "linear": MAE's,
    from one of 256 (Goyal et al., arXiv 1706.02677); "none": as it is."""
    if scaling == "none":
        return base_lr
    if scaling == "linear":
        return base_lr * global_batch_size / 256
    return base_lr * math.sqrt(global_batch_size / 1024)


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(step: int, num_steps: int) -> float:
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return 1.0 if step >= num_steps else step / num_steps
