"""What a config decides about the memory of a step, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass

from webssl_fast.config.schema import RunConfig

CHECKPOINTING = ("none", "selective", "full")
FP32, BF16 = 4, 2  # bytes
_QUANTISED_MOMENTS = 2 * (1 + 4 / 2048)  # bytes a parameter: two codes, and their fp32 scales of 2048 elements each


@dataclass(frozen=True)
class MemoryChoices:
    """Sizes are bytes of an element.

    num_shards   ranks that share one copy of the weights
    gathers      several ranks, so that FSDP2 gathers weights for use
    compute      a linear layer's activations: 2 in bf16, 4 in fp32
    stream       the residual stream: as the position embedding, as the forward sees it
    norm_input   what a LayerNorm keeps: autocast computes it in fp32 on a GPU, as it comes on a CPU
    on_gpu       bf16 weights are gathered, and CUDA takes its own share; a CPU gathers fp32 and rounds at each use
    accumulates  several passes make a step, so that gradients are alive during all forwards but the first
    """

    num_shards: int
    gathers: bool
    compute: int
    stream: int
    norm_input: int
    on_gpu: bool
    student_weights: int
    teacher_weights: int
    optimizer: float
    checkpointing: str
    reshard_after_forward: bool
    prefetch_blocks: int
    accumulates: bool


def memory_choices(config: RunConfig, num_ranks: int, *, on_gpu: bool) -> MemoryChoices:
    """Of a resolved config."""
    train = config.train
    assert train.micro_batch_size is not None
    size = {"fp32": FP32, "bf16": BF16}
    quantised = config.optim.implementation == "torchao_8bit"
    compute = size[train.precision]
    stream = compute if on_gpu and num_ranks > 1 else size[train.student_weights]
    return MemoryChoices(
        num_shards=num_ranks // train.sharding.num_replicas,
        gathers=num_ranks > 1,
        compute=compute,
        stream=stream,
        norm_input=FP32 if on_gpu else stream,
        on_gpu=on_gpu,
        student_weights=size[train.student_weights],
        teacher_weights=size[train.teacher_weights],
        optimizer=_QUANTISED_MOMENTS if quantised else 2 * FP32,
        checkpointing=train.activation_checkpointing,
        reshard_after_forward=train.sharding.reshard_after_forward,
        prefetch_blocks=train.sharding.prefetch_blocks,
        accumulates=train.global_batch_size > train.micro_batch_size * num_ranks,
    )
