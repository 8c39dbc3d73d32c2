"""`webssl plan`: what a run would take, before it is run. Nothing is allocated: it answers on a laptop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from webssl_fast.config.load import load_config
from webssl_fast.config.schema import RunConfig
from webssl_fast.plan import words
from webssl_fast.plan.choices import CHECKPOINTING
from webssl_fast.plan.estimate import Estimate, estimate, remedies, resolved_for
from webssl_fast.plan.parameters import ModuleParameters, ParameterCounts
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
    """Prints parameters, memory, FLOPs, time and whether it fits. ConfigError for an unknown GPU, a batch that does not
    divide among so many, a method of which no plan is made."""
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
    """Of a resolved config, counted on the method itself, made on the meta device."""
    method = describe_method(config)
    assert isinstance(method, nn.Module)
    trained = []
    for name, module in method.trained_modules().items():
        of_module = set(module.modules())
        blocks = next((blocks for blocks in method.block_sequences() if blocks[0] in of_module), ())
        trained.append(
            ModuleParameters(
                name,
                num_parameters(module),
                block=num_parameters(blocks[0]) if blocks else 0,
                num_blocks=len(blocks),
                embedded=sum(num_parameters(table) for table in of_module if isinstance(table, nn.Embedding)),
            )
        )
    return ParameterCounts(tuple(trained), num_parameters(method) - sum(module.total for module in trained))
