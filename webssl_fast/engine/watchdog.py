"""Ends a process that hangs, so that torchrun or the scheduler can start it again: a rank whose storage, driver or
collective never returns would hold all others, and say nothing.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType
from typing import Literal, NamedTuple

from webssl_fast.config.schema import WatchdogConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import EXIT_HUNG

Phase = Literal["loading data", "computing", "logging", "evaluation", "checkpoint"]

# By what faulthandler comes later than this module's own thread, which cannot run while a hung call holds the
# interpreter lock.
_GRACE_S = 20.0
_STDERR = 2  # the descriptor: whatever was put in the place of sys.stderr may have none


class _Begun(NamedTuple):
    phase: Phase
    step: int
    setting: str
    limit_s: float | None
    at_s: float


class Watchdog:
    """While entered, a thread looks how long the phase lasts that the main thread named last.

    Past its limit it prints the stacks of all threads and ends the process with EXIT_HUNG. A call that hangs with the
    interpreter lock held is ended by faulthandler, which knows only the stacks, with status 1.
    """

    def __init__(self, config: WatchdogConfig, distributed: Distributed):
        self._limits_s = {
            "step_s": config.step_s,
            "first_step_s": config.first_step_s,
            "evaluation_s": config.evaluation_s,
            "checkpoint_s": config.checkpoint_s,
        }
        self._rank = distributed.rank
        self._poll_s = min([5.0, *(limit / 10 for limit in self._limits_s.values() if limit is not None)])
        self._first_step: int | None = None
        self._begun: _Begun | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="webssl-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def begin(self, phase: Phase, step: int) -> None:
        """The phase before it is over, and `phase` of `step` (steps taken before it) has begun."""
        if phase == "computing" and self._first_step is None:
            self._first_step = step
        if phase in ("evaluation", "checkpoint"):
            setting = f"{phase}_s"
        else:
            setting = "first_step_s" if self._first_step in (None, step) else "step_s"
        self._begun = _Begun(phase, step, setting, self._limits_s[setting], time.monotonic())

    def _watch(self) -> None:
        while not self._left.wait(self._poll_s):
            begun = self._begun
            if begun is None or begun.limit_s is None:
                faulthandler.cancel_dump_traceback_later()
                continue
            lasted_s = time.monotonic() - begun.at_s
            if lasted_s > begun.limit_s:
                self._end(begun, lasted_s)
            faulthandler.dump_traceback_later(begun.limit_s - lasted_s + _GRACE_S, exit=True, file=_STDERR)

    def _end(self, begun: _Begun, lasted_s: float) -> None:
        print(
            f"webssl: HANG: rank {self._rank} has been in the phase {begun.phase!r} of step {begun.step + 1} for "
            f"{lasted_s:.0f} s, more than train.watchdog.{begun.setting}={begun.limit_s:g}. The stacks of its threads "
            f"follow, then it ends with status {EXIT_HUNG}. The same command, or torchrun --max-restarts by itself, "
            "goes on from the last complete checkpoint; where the phase is merely slow, raise the setting",
            file=sys.__stderr__,
            flush=True,
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(EXIT_HUNG)  # sys.exit would end this thread only, and a hung process runs no exit handlers
