"""`webssl plan`: what a run would take, before it is run."""

from __future__ import annotations

from webssl_fast.config.schema import RunConfig
from webssl_fast.plan.memory import ParameterCounts
from webssl_fast.recipes.setup import describe_method, num_parameters


def parameter_counts(config: RunConfig) -> ParameterCounts:
    """Counted on the method itself, made on the meta device."""
    student = describe_method(config).student
    backbone, heads = num_parameters(student.backbone), [num_parameters(student.dino_head), num_parameters(student.ibot_head)]
    block = num_parameters(student.backbone.blocks[0])
    rest = backbone - block * len(student.backbone.blocks)
    return ParameterCounts(backbone, sum(heads), block, max(block, rest, *heads))
