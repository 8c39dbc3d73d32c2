"""How long training waits for data, on the rank that waits longest: the others wait for that one."""

from __future__ import annotations

import logging

from webssl_fast.engine.distributed import Distributed

_log = logging.getLogger(__name__)

# From here on a faster loader saves more than a faster kernel could.
_MAX_SHARE = 0.2


class DataWait:
    """Every rank calls every method, at logged steps."""

    def __init__(self, distributed: Distributed):
        self._distributed = distributed
        self._totals_s = [0.0] * distributed.world_size
        self._slowest = 0
        self._sum_s = 0.0
        self._num_slow = 0  # readings in a row

    def read(self, total_s: float) -> float:
        """`total_s`: that this rank's loader has made it wait so far. Returns the sum, over all readings, of what the
        slowest rank waited since the reading before."""
        totals_s = self._distributed.gather(total_s)
        waits_s = [now - before for now, before in zip(totals_s, self._totals_s, strict=True)]
        self._totals_s = totals_s
        self._slowest = max(range(len(waits_s)), key=waits_s.__getitem__)
        self._sum_s += waits_s[self._slowest]
        return self._sum_s

    def judge(self, step: int, share: float) -> None:
        """Warns where `share`, of the time since the reading before, is large twice in a row (a loader that starts is
        slow once), and again only after it has been small."""
        self._num_slow = self._num_slow + 1 if share > _MAX_SHARE else 0
        if self._num_slow == 2 and self._distributed.is_main:
            _log.warning(
                "SLOW LOADER: at step %d, rank %d waited for data %.0f%% of the time (data_wait_share in the metrics). "
                "Give it more threads (data.num_threads) and batches in advance (data.prefetch_batches), or keep the "
                "images on a faster disk, smaller, or in tar shards",
                step,
                self._slowest,
                100 * share,
            )
