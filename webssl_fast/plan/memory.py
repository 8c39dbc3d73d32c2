"""Memory of one rank in a training step, by what holds it, at the two moments that can be the peak.

A step's memory has its peak either where the student's forward has ended, when every activation is alive, or where the
backward ends, when every gradient is; in between, each block trades one for the other. torch's MemTracker finds the
same (tests/plan/test_memory.py). What an allocator loses to fragmentation is not in it.

Dimensions: T packed tokens, T' of them kept by drop-path, D width, F hidden width of the SwiGLU, H heads, R rows, K
prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

from webssl_fast.config.schema import RunConfig
from webssl_fast.plan.step_shape import StepShape, num_tokens

CHECKPOINTING = ("none", "selective", "full")
_FP32, _BF16 = 4, 2
# CUDA's context, cuBLAS' workspace and NCCL's buffers: an allowance, not measured.
_WORKSPACE_BYTES = 2 * 2**30
_QUANTISED_MOMENTS = 2 * (1 + 4 / 2048)  # bytes a parameter: two codes, and their fp32 scales of 2048 elements each


@dataclass(frozen=True)
class ParameterCounts:
    """Of the student; `block`: one block of the backbone."""

    backbone: int
    heads: int
    block: int

    @property
    def student(self) -> int:
        return self.backbone + self.heads


@dataclass(frozen=True)
class MemoryChoices:
    """What a config decides about memory.

    num_shards   ranks that share one copy of the weights
    gathers      several ranks, so that FSDP2 gathers weights for use
    compute      bytes of a linear layer's activations: 2 in bf16, 4 in fp32
    stream       bytes of the residual stream: those of the position embedding, as the forward sees it
    norm_input   bytes of what a LayerNorm keeps: autocast computes it in fp32 on a GPU, as it comes on a CPU
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
    size = {"fp32": _FP32, "bf16": _BF16}
    quantised = config.optim.implementation == "torchao_8bit"
    compute = size[train.precision]
    stream = compute if on_gpu and num_ranks > 1 else size[train.student_weights]
    return MemoryChoices(
        num_shards=num_ranks // train.sharding.num_replicas,
        gathers=num_ranks > 1,
        compute=compute,
        stream=stream,
        norm_input=_FP32 if on_gpu else stream,
        on_gpu=on_gpu,
        student_weights=size[train.student_weights],
        teacher_weights=size[train.teacher_weights],
        optimizer=_QUANTISED_MOMENTS if quantised else 2 * _FP32,
        checkpointing=train.activation_checkpointing,
        reshard_after_forward=train.sharding.reshard_after_forward,
        prefetch_blocks=train.sharding.prefetch_blocks,
        accumulates=train.global_batch_size > train.micro_batch_size * num_ranks,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them, at the two moments."""

    forward_end: dict[str, float]
    backward_end: dict[str, float]

    @property
    def peak(self) -> float:
        return max(sum(self.forward_end.values()), sum(self.backward_end.values()))


def step_memory(shape: StepShape, parameters: ParameterCounts, choices: MemoryChoices) -> Memory:
    """Bytes of one rank.

    weights, gradients, optimizer, teacher  this rank's shards
    activations      of the student, that the backward needs; at the end of the backward, of the first block only
    logits           of both heads: student, its gradient, teacher
    gathered         weights of other ranks' shards and gradients on their way to them (several ranks), or bf16 copies
                     that autocast makes of fp32 weights (one rank)
    transient        features of student and teacher; at the end of the backward, gradients of a block's activations
    inputs           crops, masks and drop-path's choices
    workspace        CUDA, cuBLAS and NCCL
    """
    weights = parameters.student * choices.student_weights / choices.num_shards
    held = {
        "weights": weights,
        "optimizer": parameters.student * choices.optimizer / choices.num_shards,
        "teacher": parameters.student * choices.teacher_weights / choices.num_shards,
        "inputs": _inputs(shape),
        "workspace": _WORKSPACE_BYTES if choices.on_gpu else 0,
    }
    block = _block_activations(shape, choices, "none")
    forward_end = {
        "gradients": weights if choices.accumulates else 0,
        "activations": _activations(shape, choices),
        "logits": _logits(shape, choices),
        "gathered": _gathered(parameters, choices, in_backward=False),
        "transient": (num_tokens(shape.student) + num_tokens(shape.teacher)) * shape.width * choices.norm_input,
    }
    if choices.checkpointing == "full":  # the last block's backward begins by computing it again
        forward_end["activations"] += block
        forward_end["transient"] = 0
    backward_end = {
        "gradients": weights,
        "activations": block + _embedding_activations(shape, choices),
        "logits": 0,
        "gathered": _gathered(parameters, choices, in_backward=True),
        # Gradients of the SwiGLU's two factors and of their product, and of the stream.
        "transient": num_tokens(shape.branch) * 3 * shape.hidden_dim * choices.compute
        + num_tokens(shape.student) * shape.width * choices.stream,
    }
    order = ("weights", "gradients", "optimizer", "teacher", "activations", "logits", "gathered", "transient", "inputs")
    forward, backward = held | forward_end, held | backward_end
    names = (*order, "workspace")
    return Memory({name: forward[name] for name in names}, {name: backward[name] for name in names})


def _activations(shape: StepShape, choices: MemoryChoices) -> float:
    """What the student's forward keeps for its backward."""
    blocks = shape.depth * _block_activations(shape, choices, choices.checkpointing)
    norm = num_tokens(shape.student) * shape.width * choices.norm_input
    return _embedding_activations(shape, choices) + blocks + norm + _head_activations(shape, choices)


def _embedding_activations(shape: StepShape, choices: MemoryChoices) -> float:
    num_patches = sum(count * (length - 1) for count, length in shape.student)
    return num_patches * 3 * shape.patch_size**2 * choices.compute


def _block_activations(shape: StepShape, choices: MemoryChoices, checkpointing: str) -> float:
    """Of one block."""
    T, kept_T, D, F, H = (
        num_tokens(shape.student),
        num_tokens(shape.branch),
        shape.width,
        shape.hidden_dim,
        shape.num_heads,
    )
    if checkpointing == "full":
        return T * D * choices.stream
    # Outputs of qkv (3 D), of attention and of its joined groups (2 D), of proj and w3 (1 D each), of w12 (2 F).
    products = kept_T * choices.compute * (7 * D + 2 * F) + kept_T * H * _FP32
    if checkpointing == "selective":
        return T * D * choices.stream + products
    # Inputs of qkv, w12 (1 D each) and w3 (1 F), and the gate's SiLU (1 F).
    rest = kept_T * choices.compute * (2 * D + 2 * F)
    # Inputs of the two norms with their means and deviations; drop-path also keeps the two scaled residuals.
    norm_inputs = (2 * kept_T if shape.kept is not None else 2 * T) * D * choices.norm_input
    norm_inputs += 4 * kept_T * _FP32
    scaled_residuals = 2 * kept_T * D * choices.stream if shape.kept is not None else 0
    return products + rest + norm_inputs + scaled_residuals


def _head_rows(shape: StepShape) -> tuple[int, int]:
    return shape.num_student_crops, shape.num_masked


def _head_activations(shape: StepShape, choices: MemoryChoices) -> float:
    """Inputs of a head's linear layers, of its two GELUs and of the normalisation; the normed prototypes."""
    total = 0.0
    for head, rows in zip((shape.dino_head, shape.ibot_head), _head_rows(shape), strict=True):
        total += rows * (shape.width + 4 * head.hidden_dim + 2 * head.bottleneck_dim) * choices.compute
        total += head.num_prototypes * head.bottleneck_dim * choices.compute
    return total


def _logits(shape: StepShape, choices: MemoryChoices) -> float:
    """Of student, teacher, and the student's gradient, which the forward of the cross-entropy computes."""
    dino_rows, ibot_rows = _head_rows(shape)
    dino = (2 * dino_rows + shape.num_teacher_crops) * shape.dino_head.num_prototypes
    ibot = 3 * ibot_rows * shape.ibot_head.num_prototypes
    return (dino + ibot) * choices.compute


def _gathered(parameters: ParameterCounts, choices: MemoryChoices, *, in_backward: bool) -> float:
    gathered_bytes = choices.compute if choices.on_gpu else choices.student_weights
    copies = choices.compute < (gathered_bytes if choices.gathers else choices.student_weights)
    total = 0.0
    if copies:  # autocast keeps its bf16 copies until the forward has ended, and the graph keeps them from there on
        total += (parameters.block if in_backward else parameters.student) * choices.compute
    if not choices.gathers:
        return total
    # The block at work, those ahead of it, and the buffer from which the next one is copied out. At both moments the
    # heads, whose turn is over, are sharded again.
    block = parameters.block * gathered_bytes
    if choices.reshard_after_forward or in_backward:
        total += (2 + choices.prefetch_blocks) * block
    else:
        total += parameters.student * gathered_bytes
    if in_backward:  # a block's gradients, and the fp32 buffers of two reductions
        total += block + 2 * parameters.block * _FP32
    return total


def _inputs(shape: StepShape) -> float:
    num_pixels = sum(count * (length - 1) for count, length in shape.student) * shape.patch_size**2
    kept_index = 2 * shape.depth * num_tokens(shape.branch) * 8 if shape.kept is not None else 0
    return num_pixels * 3 * _FP32 + kept_index
