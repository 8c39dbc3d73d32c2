"""Masks of I-JEPA keep the paper's bounds, and depend on their generator alone."""

import numpy as np
import pytest

from webssl_fast import draws
from webssl_fast.methods.multiblock import TRIES, MultiBlockMasks, block_shapes, square_sides

SCALE, ASPECT, CONTEXT = (0.15, 0.2), (0.75, 1.5), (0.85, 1.0)


def paper_masks(side: int, num_context: int | None = None) -> MultiBlockMasks:
    shapes, sides = block_shapes(side, SCALE, ASPECT), square_sides(side, CONTEXT)
    return MultiBlockMasks(side, shapes, sides, num_targets=4, num_context=num_context or side**2 // 4)


@pytest.mark.parametrize("side", [6, 14, 16, 37])
def test_shapes_are_all_those_within_the_bounds(side):
    shapes = block_shapes(side, SCALE, ASPECT)
    assert shapes and len(set(shapes)) == len(shapes)
    for h in range(1, side):
        for w in range(1, side):
            within = 15 * side**2 <= 100 * h * w <= 20 * side**2 and 3 * w <= 4 * h and 2 * h <= 3 * w
            assert ((h, w) in shapes) == within
    assert square_sides(side, CONTEXT) == tuple(s for s in range(1, side + 1) if 85 * side**2 <= 100 * s * s)


def hull(patches: np.ndarray, side: int) -> tuple[int, int]:
    rows, columns = np.divmod(patches, side)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize("side", [6, 16])
def test_drawn_masks_keep_the_bounds(side):
    masks, seen, shapes = paper_masks(side), set(), set()
    for i in range(300):
        context, targets = masks.draw(draws.generator(0, "mask", i))
        assert context.shape == (side**2 // 4,) and targets.shape == (4, masks.num_target_patches)
        assert not np.intersect1d(context, targets).size, "what is predicted is not seen"
        for patches in (context, *targets):
            assert (np.diff(patches) > 0).all() and 0 <= patches[0] and patches[-1] < side**2
        assert max(hull(context, side)) <= max(masks.context_sides)
        for block in targets:
            height, width = hull(block, side)
            # What is left of a larger block may not reach all its edges.
            assert any(height <= h and width <= w and h * w >= len(block) for h, w in masks.target_shapes)
            shapes.add((height, width))
        seen |= {*context.tolist(), *targets.ravel().tolist()}
    assert seen == set(range(side**2)), "every patch is somebody's"
    assert set(masks.target_shapes) <= shapes


def test_smallest_blocks_are_whole_and_equal_in_count():
    masks = paper_masks(16)
    assert masks.num_target_patches == 42 and 42 / 256 == pytest.approx(0.164, abs=1e-3)
    whole = 0
    for i in range(100):
        for block in masks.draw(draws.generator(3, "mask", i))[1]:
            height, width = hull(block, 16)
            whole += height * width == 42
    assert whole == pytest.approx(160, abs=40), "two shapes of five are of the smallest size"


def test_draws_depend_on_the_generator_alone():
    masks = paper_masks(16)
    of_seed = [masks.draw(draws.generator(seed, "mask", 7)) for seed in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(of_seed[0], of_seed[1], strict=True))
    assert not np.array_equal(of_seed[0][1], of_seed[2][1])


def test_blocks_that_leave_too_little_are_placed_anew():
    at_first = []
    for i in range(2000):
        placed = 0

        class Counting(MultiBlockMasks):
            def _free(self, context, blocks):
                nonlocal placed
                placed += 1
                return super()._free(context, blocks)

        masks = paper_masks(16)
        Counting(*vars(masks).values()).draw(draws.generator(0, "mask", i))
        at_first.append(placed == 1)
    assert 0.99 < np.mean(at_first) < 1


def test_the_most_that_can_be_asked_for_is_given():
    masks = paper_masks(16)
    masks = paper_masks(16, masks.max_context)
    assert masks.num_context == 15**2 - 8 * 8
    for i in range(5):
        context, targets = masks.draw(draws.generator(0, "mask", i))
        assert len(context) == masks.num_context and not np.intersect1d(context, targets).size
    assert TRIES == 20
