"""SIGTERM and SIGINT end a run after the step in progress, on every rank after the same one."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from webssl_fast.engine.distributed import Distributed

_log = logging.getLogger(__name__)


class StopSignals:
    """While entered, SIGTERM and SIGINT only set a flag; a second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self, distributed: Distributed):
        self._distributed = distributed
        self._received = 0
        self._previous: dict[int, signal.Handlers | None] = {}
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread only, and refuses handlers from another.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._receive)  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if error is None and self._work is not None:
            self._work.wait()

    def agreed(self) -> int | None:
        """The signal that ends the run after this step, None to go on; every rank calls this once a step.

        Several ranks agree by a tiny all-reduce of host tensors, begun at one step and read at the next: nobody waits,
        and the device is not asked. So a signal takes effect one step later than in a run of one process.
        """
        if self._distributed.world_size == 1:
            return self._received or None
        agreed = 0
        if self._work is not None:
            self._work.wait()
            agreed = int(self._flag)
        self._flag = torch.tensor([self._received], dtype=torch.int64)
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        return agreed or None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            _log.warning("%s: the step in progress is finished and saved first", signal.Signals(signum).name)
        self._received = signum
