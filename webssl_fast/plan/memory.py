"""Memory of one rank in a training step, by what holds it, at the moments that can be the peak.

torch's MemTracker finds the same (tests/plan/test_memory.py). What an allocator loses to fragmentation is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from webssl_fast.plan.choices import FP32, MemoryChoices
from webssl_fast.plan.parameters import ParameterCounts
from webssl_fast.plan.step import Moment, Step

# CUDA's context, cuBLAS' workspace and NCCL's buffers: an allowance, not measured.
_WORKSPACE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them, at each of the step's moments."""

    moments: dict[str, dict[str, float]]

    @property
    def at_peak(self) -> dict[str, float]:
        return max(self.moments.values(), key=lambda held: sum(held.values()))

    @property
    def peak(self) -> float:
        return sum(self.at_peak.values())


def step_memory(step: Step, parameters: ParameterCounts, choices: MemoryChoices) -> Memory:
    """Bytes of one rank.

    weights, gradients, optimizer, teacher  this rank's shards
    activations      that the backward needs
    logits           what the loss compares (prototypes' logits, pixels, cosines), with gradients of it
    gathered         weights of other ranks' shards and gradients on their way to them (several ranks), or bf16 copies
                     that autocast makes of fp32 weights (one rank)
    transient        what dies within the block at work
    inputs           crops, and what the loader says about them
    workspace        CUDA, cuBLAS and NCCL
    """
    return Memory({moment.name: _held(moment, step, parameters, choices) for moment in step.moments(choices)})


def _held(moment: Moment, step: Step, parameters: ParameterCounts, choices: MemoryChoices) -> dict[str, float]:
    trained = parameters.student
    done = moment.with_gradients
    if choices.accumulates or done is None:
        with_gradients = trained
    else:
        with_gradients = sum(module.total for module in parameters.trained if module.name in done)
        if choices.gathers and moment.in_backward:  # they are on their way to their shards, see _gathered
            with_gradients -= parameters.of(moment.at_work).outside_blocks
    transient = moment.transient
    if moment.in_backward and (choices.accumulates or moment.adds_gradients) and not choices.gathers:
        transient += parameters.of(moment.at_work).outside_blocks * choices.student_weights
    return {
        "weights": trained * choices.student_weights / choices.num_shards,
        "gradients": with_gradients * choices.student_weights / choices.num_shards,
        "optimizer": trained * choices.optimizer / choices.num_shards,
        "teacher": parameters.untrained * choices.teacher_weights / choices.num_shards,
        "activations": moment.activations,
        "logits": moment.logits,
        "gathered": _gathered(moment, parameters, choices),
        "transient": transient,
        "inputs": step.input_bytes,
        "workspace": _WORKSPACE_BYTES if choices.on_gpu else 0,
    }


def _gathered(moment: Moment, parameters: ParameterCounts, choices: MemoryChoices) -> float:
    gathered_bytes = choices.compute if choices.on_gpu else choices.student_weights
    copies = choices.compute < (gathered_bytes if choices.gathers else choices.student_weights)
    module = parameters.of(moment.at_work)
    total = 0.0
    if copies:  # autocast keeps its bf16 copies until the forward has ended, and the graph keeps them from there on
        rounded = sum(each.total - each.embedded for each in parameters.trained)
        total += (module.block if moment.in_backward else rounded) * choices.compute
    if not choices.gathers:
        return total
    # The block at work, those ahead of it, and the buffer from which the next one is copied out; and what is outside
    # of blocks, from the module's first use to its last. Modules whose turn is over are sharded again.
    block = module.block * gathered_bytes
    if choices.reshard_after_forward or moment.in_backward:
        total += (2 + choices.prefetch_blocks) * block + module.outside_blocks * gathered_bytes
    else:
        total += parameters.student * gathered_bytes
    if moment.in_backward:  # a block's gradients, and the fp32 buffers of two reductions; gradients outside of blocks
        total += block + 2 * module.block * FP32 + module.outside_blocks * FP32
    return total
