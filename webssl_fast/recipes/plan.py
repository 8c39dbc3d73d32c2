"""`webssl plan`: what a run would take, before it is run. Nothing is allocated: it answers on a laptop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from webssl_fast.config.load import load_config
from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.plan import words
from webssl_fast.plan.estimate import Estimate, estimate, remedies, resolved_for
from webssl_fast.plan.memory import CHECKPOINTING, ParameterCounts
from webssl_fast.recipes.setup import describe_method, num_parameters


def plan(
    config_path: Path,
    overrides: Sequence[str],
    *,
    num_gpus: int,
    gpu_name: str,
    mfu: float | None = None,
    as_json: bool = False,
) -> None:
    """Prints parameters, memory, FLOPs, time and whether it fits. ConfigError for an unknown GPU, or a batch that does
    not divide among so many."""
    config = load_config(config_path, overrides)
    planned = planned_run(config, gpu_name, num_gpus, mfu)
    changes = [] if planned.fits else remedies(config, planned)
    by_checkpointing = {mode: planned.with_checkpointing(mode) for mode in CHECKPOINTING}
    if as_json:
        print(json.dumps(words.as_dict(planned, by_checkpointing, changes), indent=2))
    else:
        print(words.as_text(planned, by_checkpointing, changes))


def planned_run(config: RunConfig, gpu_name: str, num_gpus: int, mfu: float | None = None) -> Estimate:
    """The estimate of a config as loaded."""
    resolved = resolved_for(config, num_gpus)
    return estimate(config, parameter_counts(resolved), gpu_name, num_gpus, mfu)


def parameter_counts(config: RunConfig) -> ParameterCounts:
    """Of a resolved config, counted on the method itself, made on the meta device. ConfigError for a method whose step
    webssl_fast/plan does not know."""
    method = describe_method(config)
    if not isinstance(method, DinoV2):
        raise ConfigError(f"method.name is {config.method.name}, but plans are made for dinov2 only")
    student = method.student
    backbone = num_parameters(student.backbone)
    heads = num_parameters(student.dino_head) + num_parameters(student.ibot_head)
    block = num_parameters(student.backbone.blocks[0])
    return ParameterCounts(backbone, heads, block)
