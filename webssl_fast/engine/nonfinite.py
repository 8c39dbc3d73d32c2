"""Steps whose loss or gradient was not finite: counted on the device, listed on disk, fatal if they do not end.

The optimizer has already skipped them (see optimizer.py); nothing here reads the device before `flush`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.jsonl import JsonLines
from webssl_fast.errors import UserError


class NonfiniteError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class NonfiniteLog:
    """The last `capacity` steps' flags on the device, and their sample ids on the host, until they are flushed."""

    def __init__(self, path: Path, distributed: Distributed, *, capacity: int, max_in_a_row: int):
        self._lines = JsonLines(path)
        self._distributed = distributed
        self._max_in_a_row = max_in_a_row
        device = distributed.device
        self._flags = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._counters = torch.zeros(3, dtype=torch.int64, device=device)
        self._streak, self._longest, self._skipped = self._counters.unbind()
        self._pending: list[tuple[int, np.ndarray]] = []

    def record(self, step: int, sample_ids: np.ndarray, found_inf: Tensor) -> None:
        """`found_inf`: fp32 scalar on the device, 1 where the step was skipped. `sample_ids`: this rank's, int64."""
        found = found_inf.to(torch.int64)
        self._flags[len(self._pending)] = found
        self._pending.append((step, sample_ids))
        self._streak.add_(1).mul_(found)
        torch.maximum(self._longest, self._streak, out=self._longest)
        self._skipped.add_(found)

    def flush(self) -> dict[str, int]:
        """Reads the device, writes skipped batches to disk; every rank calls this after the same step.

        Returns {"streak": skipped steps in a row up to now, "skipped": in the whole run}, as `restore` takes them.
        Raises NonfiniteError after `max_in_a_row` skipped steps in a row.
        """
        num_steps = len(self._pending)
        read = torch.cat([self._flags[:num_steps], self._counters]).tolist()
        streak, longest, skipped = read[num_steps:]
        self._longest.copy_(self._streak)
        bad = [entry for entry, flag in zip(self._pending, read, strict=False) if flag]
        self._pending.clear()
        if bad:
            ids_of_ranks = self._distributed.gather([ids.tolist() for _, ids in bad])
            if self._distributed.is_main:
                lines = [
                    {"step": step + 1, "sample_ids": sorted(i for ids in ids_of_ranks for i in ids[index])}
                    for index, (step, _) in enumerate(bad)
                ]
                self._lines.append(lines)
        if longest >= self._max_in_a_row:
            raise NonfiniteError(
                f"loss or gradient was not finite in {longest} steps in a row (train.max_nonfinite_steps="
                f"{self._max_in_a_row}); none of them touched the weights. Their sample ids are in {self._lines.path}. "
                "Look at those images, or resume from the last checkpoint with a lower optim.base_lr or a smaller "
                "optim.clip_grad_norm"
            )
        return {"streak": streak, "skipped": skipped}

    def restore(self, counts: dict[str, int]) -> None:
        self._streak.fill_(counts["streak"])
        self._longest.fill_(counts["streak"])
        self._skipped.fill_(counts["skipped"])
