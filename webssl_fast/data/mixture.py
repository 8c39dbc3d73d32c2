"""Which source comes at which position, where a run trains on several with weights. A pure function, like order.py.

Positions fall into blocks of 2^16. Within each block every source has a fixed number of places, its share to 2^-16, so
the weights hold exactly over every block; which places they are is drawn anew for each. A source's samples come in the
order of its places, so that runs of neighbours stay together.

Dimensions: B positions, M sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from webssl_fast.data.order import mixed, sample_ids
from webssl_fast.errors import UserError

BLOCK = 2**16
_SEED_STREAM = 2**20  # beyond the numbers of sources


class Mixture:
    """seed, and the sources' weights (any positive numbers). Raises UserError for a share below 2^-16."""

    def __init__(self, seed: int, weights: Sequence[float]):
        self._seed = mixed(seed, _SEED_STREAM)
        shares = np.array(weights, np.float64) / np.sum(weights)
        self.places_M = _largest_remainders(shares * BLOCK)
        if (self.places_M == 0).any():
            number = int(np.argmin(shares))
            raise UserError(
                f"data.sources[{number}].weight is {weights[number]}, a share of {shares[number]:.2e}; the least is "
                f"{1 / BLOCK:.2e}, one image in {BLOCK}"
            )
        self._ends_M = np.cumsum(self.places_M)
        self._table = lru_cache(maxsize=4)(self._make_table)  # a step may touch two blocks, a prefetched one others

    def at(self, positions_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source [B], position in that source's own order [B]), both int64, for positions int64 [B] from 0 on."""
        positions_B = np.asarray(positions_B, np.int64)
        if len(self.places_M) == 1:
            return np.zeros_like(positions_B), positions_B
        block_B, place_B = np.divmod(positions_B, BLOCK)
        source_B, own_B = np.empty_like(positions_B), np.empty_like(positions_B)
        for block in np.unique(block_B).tolist():
            here = block_B == block
            sources, ranks = self._table(block)
            source_B[here] = sources[place_B[here]]
            own_B[here] = block * self.places_M[source_B[here]] + ranks[place_B[here]]
        return source_B, own_B

    def seen(self, num_positions: int) -> np.ndarray:
        """int64 [M]: images of each source among the first so many positions, exact at whole blocks."""
        return num_positions * self.places_M // BLOCK

    def _make_table(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block its source, and how many places of that source come before it."""
        drawn = sample_ids(self._seed, BLOCK, np.arange(block * BLOCK, (block + 1) * BLOCK))
        sources = np.searchsorted(self._ends_M, drawn, side="right")
        ranks = np.empty(BLOCK, np.int64)
        for source, places in enumerate(self.places_M.tolist()):
            ranks[sources == source] = np.arange(places)
        return sources, ranks


def _largest_remainders(shares: np.ndarray) -> np.ndarray:
    """Whole numbers next to the shares that sum to BLOCK."""
    whole = np.floor(shares).astype(np.int64)
    missing = BLOCK - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole
