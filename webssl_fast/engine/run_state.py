"""What a checkpoint holds besides weights, and what resuming compares.

All randomness of training is a function of the seed and of positions, so no random state and no loader state exist:
weights, moments, the step and a few counters are everything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webssl_fast.config.schema import TrainConfig
from webssl_fast.engine.checkpoint import METHOD_PREFIX, Checkpoints
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.metrics import MetricsWindow
from webssl_fast.engine.nonfinite import NonfiniteLog
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.errors import UserError

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method

_log = logging.getLogger(__name__)

# Another value would put other images into the steps to come than an uninterrupted run had.
_DECIDE_THE_DATA = ("seed", "global_batch_size")


class ResumeError(UserError):
    """This run cannot go on from the checkpoint in its output_dir."""


class RunState:
    """Saves and restores one run. Every rank calls every method, at the same step."""

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        nonfinite: NonfiniteLog,
        window: MetricsWindow,
        checkpoints: Checkpoints,
        distributed: Distributed,
        config: TrainConfig,
        facts: Mapping[str, str | int | float],
    ):
        """`facts`: by name; a change of "seed" or "global_batch_size" refuses to resume, any other change warns."""
        assert isinstance(method, nn.Module)
        self._optimizer = optimizer
        self._method = method
        self._nonfinite = nonfinite
        self._window = window
        self._checkpoints = checkpoints
        self._distributed = distributed
        world_size = distributed.world_size
        # images_per_pass: a method may compare the images of one pass over all ranks (Sinkhorn-Knopp), so a run that
        # moves to another number of ranks keeps its objective if micro_batch_size times ranks stays what it was.
        self._facts = {
            "global_batch_size": config.global_batch_size,
            "num_steps": config.num_steps,  # the schedules' length
            "images_per_pass": (config.micro_batch_size or config.global_batch_size // world_size) * world_size,
            "num_threads": torch.get_num_threads(),
            "world_size": world_size,
            "precision": config.precision,
            "device": distributed.device.type,
            "torch": torch.__version__,
            **facts,
        }
        self.bad_samples = 0  # up to the last logged step

    def resume(self) -> int:
        """Takes up the newest intact checkpoint, if any; returns the number of steps already taken.

        Raises CheckpointError, TensorMismatch (both from checkpoint.py) or ResumeError.
        """
        state = self._checkpoints.load_newest(self._tensors(), check=self._compare)
        if state is None:
            return 0
        self._nonfinite.restore(state["nonfinite"])
        self._window.restore(state["window"])
        self.bad_samples = state["bad_samples"]
        if self._distributed.is_main:
            _log.info("resuming after step %d", state["step"])
        return state["step"]

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "facts": self._facts,
            "nonfinite": self._nonfinite.flush(),
            "window": self._window.state(),
            "bad_samples": self.bad_samples,
        }
        self._checkpoints.save(step, self._tensors(), state)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {METHOD_PREFIX + name: tensor for name, tensor in self._method.state_dict().items()}
        names = {parameter: name for name, parameter in self._method.named_parameters()}
        optimizer = self._optimizer.state_tensors(names)
        return tensors | {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}

    def _compare(self, state: Mapping[str, Any]) -> None:
        then = state["facts"]
        changed = {k: (then.get(k), now) for k, now in self._facts.items() if then.get(k) != now}
        for name in _DECIDE_THE_DATA:
            if name in changed:
                raise ResumeError(
                    f"the run in output_dir was started with {name}={changed[name][0]}, and is now given "
                    f"{changed[name][1]}: it would see other images than before. Set it back, choose another "
                    "output_dir, or start a new run from these weights with method.init_from"
                )
        if changed and self._distributed.is_main:
            text = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in changed.items())
            _log.warning("RESUMED UNDER OTHER CONDITIONS, so no longer bit for bit the same run: %s", text)
