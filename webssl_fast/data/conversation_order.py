"""The order of conversations: batches of one kind and of like length, and still a pure function of (seed, position).

An epoch is so many whole steps as there are; what is left over is other records in every epoch. Its records come in the
order of a keyed permutation, in which BLOCK_STEPS steps at a time are sorted by kind (with an image or without) and by
length, cut into batches, and the batches shuffled. Within a batch the short come first, so that the ranks of a pass
have work of like length.

Dimensions: B positions, S records, G global batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from webssl_fast.data.order import mixed, replacement_ids, sample_ids
from webssl_fast.errors import UserError

BLOCK_STEPS = 64
_SHUFFLE_STREAM = 1


class ConversationOrder:
    """The record at each position of a run, a step being `global_batch_size` positions."""

    def __init__(self, seed: int, ids: np.ndarray, has_image: np.ndarray, lengths: np.ndarray, global_batch_size: int):
        """ids int64 [S]: what can be drawn; has_image bool and lengths, in any unit: of these, [S] each.

        Raises UserError where there are fewer records than a step takes.
        """
        if len(ids) < global_batch_size:
            raise UserError(
                f"there are {len(ids)} conversations, fewer than train.global_batch_size = {global_batch_size}; add "
                f"some, or set train.global_batch_size to at most {len(ids)}"
            )
        self._seed, self._ids, self._has_image, self._lengths = seed, ids, has_image, lengths
        self._batch_size = global_batch_size
        self.steps_per_epoch = len(ids) // global_batch_size
        self._block = lru_cache(maxsize=4)(self._make_block)

    def sample_ids(self, positions_B: np.ndarray) -> np.ndarray:
        """int64 [B] for positions int64 [B] from 0 on."""
        step_B, place_B = np.divmod(positions_B, self._batch_size)
        epoch_B, epoch_step_B = np.divmod(step_B, self.steps_per_epoch)
        block_B, block_step_B = np.divmod(epoch_step_B, BLOCK_STEPS)
        ids_B = np.empty(len(positions_B), np.int64)
        for epoch, block in set(zip(epoch_B.tolist(), block_B.tolist(), strict=True)):
            here = (epoch_B == epoch) & (block_B == block)
            ids_B[here] = self._block(epoch, block)[block_step_B[here], place_B[here]]
        return ids_B

    def replacement_ids(self, positions_B: np.ndarray, attempt: int) -> np.ndarray:
        """int64 [B]: the record to try where `attempt` (from 1 on) before could not be used."""
        return self._ids[replacement_ids(self._seed, len(self._ids), positions_B, attempt)]

    def epochs(self, num_steps: int) -> float:
        return num_steps / self.steps_per_epoch

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        """int64 [steps of the block, G]."""
        G = self._batch_size
        num_steps = min(BLOCK_STEPS, self.steps_per_epoch - block * BLOCK_STEPS)
        first = epoch * len(self._ids) + block * BLOCK_STEPS * G
        drawn = sample_ids(self._seed, len(self._ids), np.arange(first, first + num_steps * G))
        by_kind = np.lexsort((drawn, self._lengths[drawn], self._has_image[drawn]))
        steps = np.argsort(_random_keys(self._seed, epoch, block, num_steps), kind="stable")
        return self._ids[drawn[by_kind]].reshape(num_steps, G)[steps]


def _random_keys(seed: int, epoch: int, block: int, num_steps: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=mixed(seed, _SHUFFLE_STREAM), counter=[0, 0, epoch, block]))
    return generator.integers(0, 2**63, num_steps)
