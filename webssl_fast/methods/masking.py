"""Block masks for iBOT, as DINOv2 draws them (arXiv 2304.07193; BEiT's block-wise masking, arXiv 2106.08254).

Dimensions: G images of a group, V crops of an image, N = h*w patches.
"""

from __future__ import annotations

import math

import numpy as np

MIN_BLOCK_PATCHES = 4
MIN_ASPECT = 0.3
TRIES_PER_BLOCK = 10


def group_masks(
    rng: np.random.Generator,
    num_crops: int,
    grid: tuple[int, int],
    mask_probability: float,
    mask_ratio: tuple[float, float],
) -> np.ndarray:
    """Masks of a group's crops: bool [num_crops, N].

    A share `mask_probability` of the crops carries a mask. Their ratios are spread evenly over `mask_ratio`: the i-th
    of n draws its own from the i-th of n equal intervals, which keeps the number of masked patches of a group nearly
    constant.
    """
    num_patches = grid[0] * grid[1]
    masks = np.zeros((num_crops, num_patches), dtype=bool)
    num_masked_crops = int(num_crops * mask_probability)
    edges = np.linspace(mask_ratio[0], mask_ratio[1], num_masked_crops + 1)
    for i, crop in enumerate(rng.permutation(num_crops)[:num_masked_crops]):
        target = int(num_patches * rng.uniform(edges[i], edges[i + 1]))
        masks[crop] = block_mask(rng, grid, target).reshape(-1)
    return masks


def max_masked_patches(
    num_crops: int, grid: tuple[int, int], mask_probability: float, mask_ratio: tuple[float, float]
) -> int:
    """The most patches that `group_masks` can mask in one group."""
    num_patches = grid[0] * grid[1]
    num_masked_crops = int(num_crops * mask_probability)
    edges = np.linspace(mask_ratio[0], mask_ratio[1], num_masked_crops + 1)
    return sum(min(int(num_patches * edge), num_patches // 2) for edge in edges[1:])


def block_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """Rectangles of random area and aspect ratio until `num_masked` patches are covered or no more fit: bool [h, w].

    A block has at least 4 patches, a log-uniform aspect ratio in [0.3, 1/0.3], is smaller than the grid on both sides,
    and never covers more new patches than are still wanted; after 10 tries without a new patch the mask is what it is.
    """
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    remaining = min(num_masked, height * width // 2)
    log_aspect = math.log(MIN_ASPECT), -math.log(MIN_ASPECT)
    while remaining > 0:
        for _ in range(TRIES_PER_BLOCK):
            area = rng.uniform(MIN_BLOCK_PATCHES, max(remaining, MIN_BLOCK_PATCHES))
            aspect = math.exp(rng.uniform(*log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            block = mask[top : top + h, left : left + w]
            num_new = block.size - int(block.sum())
            if 0 < num_new <= remaining:
                block[...] = True
                remaining -= num_new
                break
        else:
            break
    return mask
