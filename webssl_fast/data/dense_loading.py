"""Batches and test samples of the dense evaluations. No state: what stands at a position is a function of the seed.

Dimensions: B images of one rank, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webssl_fast import draws
from webssl_fast.data.order import positions_of, sample_ids
from webssl_fast.data.prefetch import map_ahead
from webssl_fast.errors import UserError
from webssl_fast.records import DenseSample

DenseBatch = tuple[Tensor, Tensor]


class DenseTrainLoader:
    """`num_steps` batches of one rank: (images fp32 [B, 3, H, W], targets [B, H, W]).

    draw     sample number and generator -> one augmented image and its target; every call has a generator of its own,
             keyed by the position in the run, so batches do not depend on threads, and joined over ranks not on ranks
    purpose  names the stream of random numbers
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], DenseBatch],
        num_samples: int,
        *,
        purpose: str,
        seed: int,
        num_steps: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch_batches: int = 0,
        num_threads: int = 1,
    ):
        self._draw, self._num_samples, self._purpose, self._seed = draw, num_samples, purpose, seed
        self._num_steps, self._rank, self._world_size = num_steps, rank, world_size
        self._global_batch_size, self._batch_size = global_batch_size, global_batch_size // world_size
        self._prefetch_batches, self._num_threads = prefetch_batches, num_threads

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[DenseBatch]:
        positions = (
            int(position)
            for step in range(self._num_steps)
            for position in positions_of(
                step, 0, self._rank, self._world_size, self._global_batch_size, self._batch_size
            )
        )
        depth = self._prefetch_batches * self._batch_size
        drawn = map_ahead(self._draw_at, positions, self._num_threads, depth)
        for _ in range(self._num_steps):
            images, targets = zip(*(next(drawn) for _ in range(self._batch_size)), strict=True)
            yield torch.stack(images), torch.stack(targets)

    def _draw_at(self, position: int) -> DenseBatch:
        sample_id = int(sample_ids(self._seed, self._num_samples, np.array([position]))[0])
        return self._draw(sample_id, draws.generator(self._seed, self._purpose, position))


class DenseTestLoader:
    """Test samples rank, rank + world_size, ... in order; can be gone through again."""

    def __init__(
        self,
        read: Callable[[int], DenseSample],
        num_samples: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        prefetch_samples: int = 0,
        num_threads: int = 1,
    ):
        self._read, self._indices = read, range(rank, num_samples, world_size)
        self._prefetch_samples, self._num_threads = prefetch_samples, num_threads

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[DenseSample]:
        return map_ahead(self._read, self._indices, self._num_threads, self._prefetch_samples)


def read_image(path: Path) -> Tensor:
    """uint8 [3, H, W]; UserError, naming the file, where it cannot be decoded."""
    return torch.from_numpy(read_pixels(path, "RGB")).permute(2, 0, 1)


def read_pixels(path: Path, mode: str | None = None) -> np.ndarray:
    """A file's samples, converted to Pillow's `mode` (None: as they are). UserError where it cannot be decoded."""
    try:
        with Image.open(path) as file:
            return np.array(file.convert(mode) if mode else file)
    except Exception as error:  # Pillow's plugins raise all sorts on damaged files
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); a protocol's data must be whole, so put a good "
            "copy of the file in its place"
        ) from error
