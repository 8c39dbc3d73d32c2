"""The training loop: the same for one process and many, for every method and every device.

It reads values from the device at logged steps and checkpoints only.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine import metrics
from webssl_fast.engine.checkpoint import Checkpoints
from webssl_fast.engine.data_wait import DataWait
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.jsonl import cut_back
from webssl_fast.engine.nonfinite import NonfiniteLog
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.engine.run_state import RunState
from webssl_fast.engine.stopping import StopSignals
from webssl_fast.engine.watchdog import Watchdog
from webssl_fast.errors import UserError
from webssl_fast.records import Batch

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method

_log = logging.getLogger(__name__)


class Loader(Protocol):
    """Where batches come from: a function of the position alone, so that there is no state to save."""

    data_wait_seconds: float  # that `batch` made its callers wait, in total

    def batch(self, step: int, micro_step: int) -> Batch:
        """This rank's micro-batch on the host; crops may be on the device already. Steps are asked for in order, from
        the step that a run resumes at."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """`step`: steps taken in all. `interrupted_by`: the signal that ended the run early, in a resumable state."""

    step: int
    interrupted_by: int | None = None


def train(
    method: Method,
    loader: Loader,
    distributed: Distributed,
    *,
    train_config: TrainConfig,
    optim_config: OptimConfig,
    output_dir: Path,
    seed: int = 0,
    facts: Mapping[str, str | int | float] | None = None,
    data_values: Callable[[int], Mapping[str, float]] | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    on_start: Callable[[], None] | None = None,
    flops_per_image: float | None = None,
) -> TrainResult:
    """Trains `method`, from the newest checkpoint in `output_dir` if there is one, and saves as it goes.

    method           on its device, initialised and sharded (see sharding.materialize)
    seed             of the engine's own random choices (the stochastic rounding of bf16 weights)
    facts            what the recipe knows of the run, to be compared on resuming: "seed", "config", ... (see run_state)
    data_values      what the metrics say about the data after so many samples (epochs, counters), called on every rank
    evaluate         scores of `method` by name, called with the step on every rank: before the first step, every
                     `evaluate_every` steps, and after the last
    on_start         called on every rank once the run is known to go on, before anything is written
    flops_per_image  arithmetic of one image's forward and backward, for the metrics' MFU

    Raises CheckpointError, TensorMismatch, ResumeError, NonfiniteError.
    """
    assert isinstance(method, nn.Module)
    num_micro_steps = micro_steps(train_config, distributed.world_size)
    output_dir.mkdir(parents=True, exist_ok=True)
    optimizer = Optimizer(
        method,
        optim_config,
        distributed,
        num_steps=train_config.num_steps,
        global_batch_size=train_config.global_batch_size,
        seed=seed,
    )
    nonfinite_path = output_dir / "nonfinite_batches.jsonl"
    nonfinite = NonfiniteLog(
        nonfinite_path,
        distributed,
        capacity=train_config.log_every,
        max_in_a_row=train_config.max_nonfinite_steps,
    )
    window = metrics.MetricsWindow(distributed)
    checkpoints = Checkpoints(
        output_dir / "checkpoints",
        distributed,
        keep=train_config.keep_checkpoints,
        keep_every=train_config.keep_every,
        asynchronous=train_config.async_checkpoint,
        timeout_s=train_config.watchdog.checkpoint_s,
    )
    run = RunState(method, optimizer, nonfinite, window, checkpoints, distributed, train_config, facts or {})
    step = run.resume()
    if on_start is not None:
        on_start()
    if distributed.is_main:
        cut_back(nonfinite_path, step)
    reporter = metrics.Reporter(
        output_dir,
        distributed,
        step=step,
        num_steps=train_config.num_steps,
        tensorboard=train_config.tensorboard,
    )
    clock = metrics.Clock()
    data_wait = DataWait(distributed)
    watchdog = Watchdog(train_config.watchdog, distributed)
    signum: int | None = None
    last = train_config.num_steps

    def log() -> None:
        watchdog.begin("logging", step - 1)
        values, num_bad = window.read()
        run.bad_samples += num_bad
        speed = clock.read(train_config.global_batch_size, data_wait.read(loader.data_wait_seconds))
        data_wait.judge(step, speed["data_wait_share"])
        samples_seen = step * train_config.global_batch_size
        line: dict[str, float | int] = {
            **values,
            **optimizer.schedule_values(step - 1),
            **method.schedule_values(step - 1),
            **speed,
            "samples_seen": samples_seen,
            "bad_samples": run.bad_samples,
            "skipped_steps": nonfinite.flush()["skipped"],
            **metrics.memory(distributed.device),
        }
        if data_values is not None:
            line.update(data_values(samples_seen))
        if flops_per_image is not None:
            mfu = metrics.model_flops_share(flops_per_image, speed["samples_per_second"], distributed)
            if mfu is not None:
                line["mfu"] = mfu
        reporter.line(step, line)

    def judge() -> None:
        assert evaluate is not None
        watchdog.begin("evaluation", step - 1)
        with clock.paused(), _undisturbed(method, distributed.device):
            scores = evaluate(step)
        reporter.line(step, {f"eval/{name}": value for name, value in scores.items()})

    try:
        with watchdog, StopSignals(distributed) as signals, checkpoints, _manual_garbage_collection():
            if step == 0 and evaluate is not None:
                judge()
            while step < last and signum is None:
                found_inf, sample_ids = _step(
                    method,
                    loader,
                    optimizer,
                    window,
                    watchdog,
                    step,
                    num_micro_steps,
                    train_config.precision,
                    distributed,
                )
                nonfinite.record(step, sample_ids, found_inf)
                step += 1
                clock.tick()
                reporter.advance()
                if step % train_config.log_every == 0 or step == last:
                    log()
                    gc.collect()
                if evaluate is not None and (step == last or (evaluate_every and step % evaluate_every == 0)):
                    judge()
                signum = signals.agreed()
                if step % train_config.checkpoint_every == 0 or step == last or signum is not None:
                    watchdog.begin("checkpoint", step - 1)
                    with clock.paused():
                        run.save(step)
    finally:
        reporter.close()
    if signum is not None:
        _log.warning("stopped by signal %d after step %d; the same command resumes there", signum, step)
    return TrainResult(step, signum)


def micro_steps(config: TrainConfig, world_size: int) -> int:
    """Passes that make up one step on each rank. Raises UserError where the batch cannot be shared out evenly."""
    if config.global_batch_size % world_size:
        raise UserError(
            f"train.global_batch_size={config.global_batch_size} cannot be shared out among {world_size} processes; "
            "make it a multiple of their number"
        )
    per_rank = config.global_batch_size // world_size
    micro = config.micro_batch_size or per_rank
    if per_rank % micro:
        raise UserError(
            f"train.micro_batch_size={micro} does not divide the {per_rank} images of a step that fall to each of "
            f"{world_size} processes; choose a divisor of {per_rank}"
        )
    return per_rank // micro


def _step(
    method: Method,
    loader: Loader,
    optimizer: Optimizer,
    window: metrics.MetricsWindow,
    watchdog: Watchdog,
    step: int,
    num_micro_steps: int,
    precision: str,
    distributed: Distributed,
) -> tuple[Tensor, np.ndarray]:
    """One optimizer step: whether it was skipped (device scalar), and this rank's sample ids."""
    device = distributed.device
    loss_sum = torch.zeros((), device=device)
    sample_ids = []
    for micro_step in range(num_micro_steps):
        watchdog.begin("loading data", step)
        host_batch = loader.batch(step, micro_step)
        watchdog.begin("computing", step)
        sample_ids.append(host_batch.sample_ids)
        batch = host_batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, scalars = method.training_step(batch, step)
        (loss / num_micro_steps).backward()
        loss_sum += loss.detach() / num_micro_steps
        window.add({"loss": loss, **scalars}, 1 / num_micro_steps, host_batch.num_bad)
    outcome = optimizer.step(step, loss_sum)
    method.after_step(step)
    window.add({f"grad_norm/{name}": norm for name, norm in outcome.grad_norms.items()})
    window.close_step(outcome.found_inf)
    return outcome.found_inf, np.concatenate(sample_ids)


@contextmanager
def _undisturbed(method: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and torch's random state are put back afterwards."""
    modes = {module: module.training for module in method.modules()}
    method.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _manual_garbage_collection() -> Iterator[None]:
    """Collects at logged steps only, which all ranks reach together: one that collects alone makes the others wait.

    What was there before is not looked at again: torch's modules alone cost 0.3 s a collection.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
