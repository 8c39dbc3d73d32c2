"""A run of the toy method, in this process (`run_toy`) or as a command, plain or under torchrun:

python -m tests.engine.toy_run OUTPUT_DIR '{"train": {"num_steps": 10}, "step_time_s": 0.01}'
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.engine.toy_method import ToyLoader, ToyMethod
from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed, start
from webssl_fast.engine.loop import TrainResult, micro_steps, train
from webssl_fast.engine.sharding import materialize

TRAIN = {
    "precision": "fp32",
    "num_steps": 20,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "num_threads": 1,
    "log_every": 4,
    "checkpoint_every": 5,
}
OPTIM = {"base_lr": 0.3, "min_lr": 1e-3, "warmup_steps": 3}


def run_toy(
    output_dir: Path,
    *,
    distributed: Distributed | None = None,
    method: ToyMethod | None = None,
    train_settings: dict[str, Any] | None = None,
    optim_settings: dict[str, Any] | None = None,
    seed: int = 0,
    width: int = 7,
    step_time_s: float = 0.0,
    stop_at_step: int | None = None,
    on_batch: Any = None,
    evaluate: Any = None,
    evaluate_every: int | None = None,
    **loader_settings: Any,
) -> tuple[TrainResult, ToyMethod]:
    distributed = distributed or Distributed(torch.device("cpu"))
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    method = method or ToyMethod(width, config.num_steps)
    materialize(method, seed, distributed, config)
    num_micro_steps = micro_steps(config, distributed.world_size)
    loader = ToyLoader(
        config.global_batch_size,
        num_micro_steps,
        distributed.rank,
        distributed.world_size,
        seed,
        **{name: frozenset(value) for name, value in loader_settings.items()},
    )
    plain_batch = loader.batch

    def batch(step: int, micro_step: int):
        if micro_step == 0:
            time.sleep(step_time_s)
            if step == stop_at_step and distributed.rank == distributed.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if on_batch is not None:
                on_batch(step)
        return plain_batch(step, micro_step)

    loader.batch = batch  # type: ignore[method-assign]
    result = train(
        method,
        loader,
        distributed,
        train_config=config,
        optim_config=OptimConfig(**{**OPTIM, **(optim_settings or {})}),
        output_dir=output_dir,
        seed=seed,
        facts={"seed": seed},
        data_values=lambda samples_seen: {"epoch": samples_seen / 100},
        evaluate=evaluate,
        evaluate_every=evaluate_every,
    )
    return result, method


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    settings = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    with start("cpu", num_threads=1) as distributed:
        result, _ = run_toy(
            Path(sys.argv[1]),
            distributed=distributed,
            train_settings=settings.pop("train", None),
            optim_settings=settings.pop("optim", None),
            **settings,
        )
    return 0 if result.interrupted_by is None else 75


if __name__ == "__main__":
    sys.exit(main())
