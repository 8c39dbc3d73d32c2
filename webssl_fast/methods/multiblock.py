"""Multi-block masks of I-JEPA (Assran et al., arXiv 2301.08243, section 3): what the encoder sees of an image, and the
blocks whose features are to be predicted from it.

Dimensions: N = side * side patches of an image, S target blocks, M patches to predict of each, K context patches.

The paper's numbers of patches vary with the draws; its code makes them equal by cutting every mask of a batch to the
shortest one in it, from its end. Here they are constants of the config, so that a mask depends on nothing but its own
generator and every tensor has the same shape at each step:

  targets  a block is any rectangle of whole patches within the bounds of area and aspect, one as likely as another. M
           is the size of the smallest; larger ones leave out what is over, chosen at random (at most 7 of 49 patches in
           a grid of 16 x 16, where there are blocks of 42, 48 and 49)
  context  K of the patches of the context block that no target block covers, chosen at random. With the paper's bounds
           there are .47 of all on average; the authors' code, simulated, keeps .27 after its cut in batches of 128.
           Blocks that leave fewer than K are placed anew, at the default of .25 for one image in some hundreds
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]
TRIES = 20


@dataclass(frozen=True)
class MultiBlockMasks:
    """
    target_shapes  (height, width) of every block that may be drawn
    context_sides  of every square that may be drawn
    """

    side: int
    target_shapes: tuple[tuple[int, int], ...]
    context_sides: tuple[int, ...]
    num_targets: int
    num_context: int

    @property
    def num_target_patches(self) -> int:
        return min(height * width for height, width in self.target_shapes)

    @property
    def max_context(self) -> int:
        """The most that `num_context` can be: what is sure to be left where all target blocks share a corner."""
        heights, widths = zip(*self.target_shapes, strict=True)
        return min(self.context_sides) ** 2 - max(heights) * max(widths)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Context [K] and targets [S, M] of one image: int64, each row ascending."""
        context_side = int(rng.choice(self.context_sides))
        shapes = [self.target_shapes[i] for i in rng.integers(len(self.target_shapes), size=self.num_targets)]
        for _ in range(TRIES):
            blocks = [self._place(rng, shape) for shape in shapes]
            free = self._free(self._place(rng, (context_side, context_side)), blocks)
            if len(free) >= self.num_context:
                break
        else:
            blocks = [self._block(0, 0, shape) for shape in shapes]
            free = self._free(self._block(0, 0, (context_side, context_side)), blocks)
        targets = [_some(rng, block, self.num_target_patches) for block in blocks]
        return _some(rng, free, self.num_context), np.stack(targets)

    def _place(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        top, left = (int(rng.integers(self.side - length + 1)) for length in shape)
        return self._block(top, left, shape)

    def _block(self, top: int, left: int, shape: tuple[int, int]) -> np.ndarray:
        rows, columns = np.arange(top, top + shape[0]), np.arange(left, left + shape[1])
        return (rows[:, None] * self.side + columns).ravel()

    def _free(self, context: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
        return np.setdiff1d(context, np.concatenate(blocks))


def block_shapes(side: int, scale: Range, aspect: Range) -> tuple[tuple[int, int], ...]:
    """(height, width) in patches of all blocks within a grid, smaller than it on both sides, whose share of its area
    and whose height / width are within the bounds, these included."""
    lengths = range(1, side)
    shapes = [(h, w) for h in lengths for w in lengths if _within(h * w / side**2, scale) and _within(h / w, aspect)]
    return tuple(shapes)


def square_sides(side: int, scale: Range) -> tuple[int, ...]:
    """The same for squares, which may be as large as the grid."""
    return tuple(length for length in range(1, side + 1) if _within((length / side) ** 2, scale))


def _within(value: float, bounds: Range) -> bool:
    return bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9


def _some(rng: np.random.Generator, patches: np.ndarray, count: int) -> np.ndarray:
    return np.sort(rng.permutation(patches)[:count])
