"""A map over a large image from windows of it.

Dimensions: B windows of a pass, C channels, H rows, W columns of the image, h rows, w columns of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride`, the last one moved back so that it ends with the side.

    One window from 0 where the side is no longer than the window.
    """
    if window < 1 or stride < 1 or stride > window:
        raise ValueError(f"stride must lie in [1, window {window}], else pixels are left out; got {stride}")
    count = 1 + -(-max(length - window, 0) // stride)
    return [min(i * stride, max(length - window, 0)) for i in range(count)]


def slide(
    predict: Callable[[Tensor], Tensor], image_3HW: Tensor, window_px: int, stride_px: int, windows_per_pass: int
) -> Tensor:
    """fp32 [C, H, W]: at each pixel the mean of what `predict` says about it in every window that covers it.

    predict  [B, 3, h, w] -> [B, C, h, w]; windows are square, or as long as the image where that is shorter
    """
    H, W = image_3HW.shape[-2:]
    h, w = min(window_px, H), min(window_px, W)
    corners = [(y, x) for y in window_starts(H, window_px, stride_px) for x in window_starts(W, window_px, stride_px)]
    total: Tensor | None = None
    count_HW = image_3HW.new_zeros(H, W, dtype=torch.float32)
    for first in range(0, len(corners), windows_per_pass):
        some = corners[first : first + windows_per_pass]
        maps_BChw = predict(torch.stack([image_3HW[:, y : y + h, x : x + w] for y, x in some]))
        if total is None:
            total = maps_BChw.new_zeros(maps_BChw.shape[1], H, W, dtype=torch.float32)
        for (y, x), map_Chw in zip(some, maps_BChw, strict=True):
            total[:, y : y + h, x : x + w] += map_Chw
            count_HW[y : y + h, x : x + w] += 1
    assert total is not None
    return total / count_HW
