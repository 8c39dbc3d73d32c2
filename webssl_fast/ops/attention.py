"""Self-attention over packed groups of equally long sequences, softmax(q k^T / sqrt(d)) v without a mask.

Vaswani et al., "Attention Is All You Need", 2017, equation 1. The crops of a batch travel as one token matrix; a group
is a run of sequences of one length (the global crops, the local crops), and tokens attend within their own sequence.

On a GPU, short sequences in bf16 are the kernels' of csrc/attention: they read the packed matrix where it lies, and the
backward needs neither the output nor a second pass. Everything else is torch's scaled_dot_product_attention.

Dimensions: T packed tokens, N tokens of a sequence, H heads, d head width, D = H d.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from webssl_fast.ops import _library

Groups = tuple[tuple[int, int], ...]

HEAD_WIDTHS = (64, 128)  # of the CUDA kernels
_LONGEST_EXPLICIT = 128  # tokens: beyond it, N x N temporaries cost what they save
_ALIGNMENT = 16  # bytes: what the kernels read and write at once


def attention(qkv_T3Hd: Tensor, groups: Groups) -> Tensor:
    """Attention outputs [T, H d], in the dtype and on the device of `qkv_T3Hd`; differentiable once.

    A group of bf16 sequences of up to `longest_sequence(...)` tokens on a GPU goes to our kernels, which want a
    contiguous `qkv_T3Hd` (otherwise a copy is made). Every other group is one call of torch's
    scaled_dot_product_attention on strided views; in training in bf16 on a CPU, sequences of up to 128 tokens are
    computed from the formula. Outputs of groups are joined by a copy unless our kernels take all of them.

    Args:
        qkv_T3Hd: queries, keys and values of each token, any floating dtype, as the qkv projection writes them.
        groups: ((num_sequences, length), ...) of consecutive sequences; they cover all T tokens.

    Raises:
        ValueError: `qkv_T3Hd` is not of shape [T, 3, H, d], a group is not positive, or the groups do not cover T.
    """
    _check(qkv_T3Hd, groups)
    if _library.reference_forced():
        return attention_reference(qkv_T3Hd, groups)
    if all(_has_kernel(qkv_T3Hd, length) for _, length in groups):
        return _with_kernel(qkv_T3Hd, groups)
    num_tokens = [num_sequences * length for num_sequences, length in groups]
    outputs = [
        _with_kernel(qkv, (group,)) if _has_kernel(qkv, group[1]) else _with_torch(qkv, *group)
        for qkv, group in zip(qkv_T3Hd.split(num_tokens), groups, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _has_kernel(qkv_T3Hd: Tensor, length: int) -> bool:
    if qkv_T3Hd.dtype != torch.bfloat16:
        return False
    # Each width is a constant to torch.compile, where the tensor's may be a symbol.
    return any(
        qkv_T3Hd.shape[3] == head_width and length <= longest_sequence(qkv_T3Hd.device, head_width)
        for head_width in HEAD_WIDTHS
    )


def _with_kernel(qkv_T3Hd: Tensor, groups: Groups) -> Tensor:
    num_sequences, lengths = [count for count, _ in groups], [length for _, length in groups]
    out_TD, _ = torch.ops.webssl.attention(qkv_T3Hd.contiguous(), num_sequences, lengths)
    return out_TD


def _with_torch(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    # unbind, not indexing: its backward writes the three gradients into one buffer.
    q, k, v = qkv_T3Hd.unflatten(0, (num_sequences, length)).transpose(1, 3).unbind(2)
    if q.device.type == "cuda":
        with sdpa_kernel(torch_backends(q.device), set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    elif _trains_in_bf16(q) and length <= _LONGEST_EXPLICIT:
        out = _explicit_bf16(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _trains_in_bf16(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and q.requires_grad and torch.is_grad_enabled()


def _explicit_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, H, N, d] from its formula: scores and softmax in fp32, probabilities in bf16 as in torch's SDPA.

    The backward of torch 2.13's SDPA is slow in bf16 on CPUs (benchmarks/ops/bench_attention.py times both); the errors
    are alike.
    """
    with torch.autocast("cpu", enabled=False):  # which would round the scores to bf16
        scores_BHNN = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
        return torch.softmax(scores_BHNN, dim=-1).to(v.dtype) @ v


def _check(qkv_T3Hd: Tensor, groups: Groups) -> None:
    if qkv_T3Hd.ndim != 4 or qkv_T3Hd.shape[1] != 3:
        raise ValueError(f"qkv_T3Hd has shape {tuple(qkv_T3Hd.shape)}; it needs (tokens, 3, heads, head width)")
    if not groups or any(num_sequences < 1 or length < 1 for num_sequences, length in groups):
        raise ValueError(f"groups are {groups}; each needs at least 1 sequence of at least 1 token")
    num_tokens = sum(num_sequences * length for num_sequences, length in groups)
    if num_tokens != qkv_T3Hd.shape[0]:
        raise ValueError(f"groups {groups} hold {num_tokens} tokens, but qkv_T3Hd has {qkv_T3Hd.shape[0]}")


# ---------------------------------------------------------------- which implementation


@torch.compiler.assume_constant_result
def longest_sequence(device: torch.device, head_width: int) -> int:
    """The longest sequence, in tokens, that our kernels take on a device; 0 where there are none for it."""
    if device.type != "cuda":
        return 0
    return _longest_on_gpu(torch.cuda.current_device() if device.index is None else device.index, head_width)


@functools.cache
def _longest_on_gpu(index: int, head_width: int) -> int:
    if not _library.cuda_architectures():
        warnings.warn(
            "attention: this webssl_fast was built without CUDA kernels, since CMake found no nvcc; torch's "
            "scaled_dot_product_attention takes their place. Put nvcc on PATH (or set CUDACXX) and install again.",
            stacklevel=2,
        )
        return 0
    with torch.cuda.device(index):
        return _library.C.attention_longest_sequence_cuda(head_width)


@torch.compiler.assume_constant_result
def torch_backends(device: torch.device) -> list[SDPBackend]:
    """torch's backends on a GPU, best first; torch takes the first that supports the tensors.

    On Hopper cuDNN's kernel is about twice as fast as the flash attention that torch would take by itself, which was
    written for the generation before (github.com/pytorch/pytorch/issues/142132).
    """
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    return [SDPBackend.CUDNN_ATTENTION, *backends] if is_hopper else backends


def implementation(device: torch.device) -> str:
    """What `attention` runs on a device, in words."""
    if device.type != "cuda":
        return "torch's scaled_dot_product_attention"
    longest = {width: longest_sequence(device, width) for width in HEAD_WIDTHS}
    own = ", ".join(f"{length} tokens at head width {width}" for width, length in longest.items() if length > 0)
    backends = ", ".join(backend.name.lower() for backend in torch_backends(device))
    return f"{f'own kernels in bf16 up to {own}; else ' if own else ''}torch's first of {backends}"


# ---------------------------------------------------------------- reference


def attention_reference(qkv_T3Hd: Tensor, groups: Groups) -> Tensor:
    """The same from its formula in plain torch, softmax in fp32, with temporaries of N x N."""
    outputs = []
    begin = 0
    for num_sequences, length in groups:
        end = begin + num_sequences * length
        qkv_3BHNd = qkv_T3Hd[begin:end].unflatten(0, (num_sequences, length)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv_3BHNd.float()
        probability_BHNN = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        outputs.append((probability_BHNN @ v).transpose(1, 2).flatten(2).flatten(0, 1).to(qkv_T3Hd.dtype))
        begin = end
    return torch.cat(outputs)


# ---------------------------------------------------------------- the kernels' operator

_library.LIBRARY.define(
    "attention(Tensor qkv_T3Hd, int[] num_sequences, int[] lengths) -> (Tensor out_TD, Tensor log_sum_exp_HT)"
)
_library.LIBRARY.define(
    "attention_backward(Tensor qkv_T3Hd, Tensor log_sum_exp_HT, Tensor grad_out_TD, int[] num_sequences, "
    "int[] lengths) -> Tensor grad_qkv_T3Hd"
)


def _forward_fake(qkv_T3Hd: Tensor, num_sequences: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
    num_tokens, _, num_heads, head_width = qkv_T3Hd.shape
    out_TD = qkv_T3Hd.new_empty(num_tokens, num_heads * head_width)
    return out_TD, qkv_T3Hd.new_empty(num_heads, num_tokens, dtype=torch.float32)


def _backward_fake(
    qkv_T3Hd: Tensor, log_sum_exp_HT: Tensor, grad_out_TD: Tensor, num_sequences: list[int], lengths: list[int]
) -> Tensor:
    return torch.empty_like(qkv_T3Hd)


def _forward_cuda(qkv_T3Hd: Tensor, num_sequences: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
    kernel = _library.cuda_kernel("attention_cuda")
    _check_for_kernel(qkv_T3Hd, num_sequences, lengths)
    out_TD, log_sum_exp_HT = _forward_fake(qkv_T3Hd, num_sequences, lengths)
    with _library.cuda_stream(qkv_T3Hd.device) as stream:
        for first_token, count, length in _runs(num_sequences, lengths):
            sizes = (first_token, count, length, qkv_T3Hd.shape[0], *qkv_T3Hd.shape[2:])
            kernel(qkv_T3Hd.data_ptr(), *sizes, out_TD.data_ptr(), log_sum_exp_HT.data_ptr(), stream)
    return out_TD, log_sum_exp_HT


def _backward_cuda(
    qkv_T3Hd: Tensor, log_sum_exp_HT: Tensor, grad_out_TD: Tensor, num_sequences: list[int], lengths: list[int]
) -> Tensor:
    kernel = _library.cuda_kernel("attention_backward_cuda")
    _check_for_kernel(qkv_T3Hd, num_sequences, lengths)
    num_tokens, _, num_heads, head_width = qkv_T3Hd.shape
    _check_tensor("log_sum_exp_HT", log_sum_exp_HT, torch.float32, (num_heads, num_tokens), qkv_T3Hd.device)
    _check_tensor("grad_out_TD", grad_out_TD, torch.bfloat16, (num_tokens, num_heads * head_width), qkv_T3Hd.device)
    grad_qkv_T3Hd = torch.empty_like(qkv_T3Hd)
    pointers = (qkv_T3Hd.data_ptr(), log_sum_exp_HT.data_ptr(), grad_out_TD.data_ptr())
    with _library.cuda_stream(qkv_T3Hd.device) as stream:
        for first_token, count, length in _runs(num_sequences, lengths):
            sizes = (first_token, count, length, num_tokens, num_heads, head_width)
            kernel(*pointers, *sizes, grad_qkv_T3Hd.data_ptr(), stream)
    return grad_qkv_T3Hd


def _runs(num_sequences: list[int], lengths: list[int]) -> list[tuple[int, int, int]]:
    """(first token, number of sequences, length) of each group."""
    runs, begin = [], 0
    for count, length in zip(num_sequences, lengths, strict=True):
        runs.append((begin, count, length))
        begin += count * length
    return runs


def _check_for_kernel(qkv_T3Hd: Tensor, num_sequences: list[int], lengths: list[int]) -> None:
    if len(num_sequences) != len(lengths):
        raise ValueError(f"num_sequences has {len(num_sequences)} groups and lengths {len(lengths)}; they need as many")
    _check(qkv_T3Hd, tuple(zip(num_sequences, lengths, strict=True)))
    if qkv_T3Hd.shape[2] == 0 or qkv_T3Hd.shape[3] not in HEAD_WIDTHS:
        raise ValueError(
            f"qkv_T3Hd has {qkv_T3Hd.shape[2]} heads of width {qkv_T3Hd.shape[3]}; the kernels need at least 1 head of "
            f"width {' or '.join(map(str, HEAD_WIDTHS))}. webssl_fast.ops.attention.attention takes any"
        )
    _check_tensor("qkv_T3Hd", qkv_T3Hd, torch.bfloat16, tuple(qkv_T3Hd.shape), qkv_T3Hd.device)
    longest = longest_sequence(qkv_T3Hd.device, qkv_T3Hd.shape[3])
    if max(lengths) > longest:
        raise ValueError(
            f"lengths are {lengths}; on this GPU the kernels take up to {longest} tokens. "
            "webssl_fast.ops.attention.attention takes any"
        )


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; the kernels need {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs {shape}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and qkv_T3Hd on {device}; they need the same device")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; the kernels need it contiguous: call .contiguous()")
    if tensor.data_ptr() % _ALIGNMENT != 0:
        raise ValueError(
            f"{name} begins at address {tensor.data_ptr():#x}; the kernels need a multiple of {_ALIGNMENT} bytes: "
            "call .clone()"
        )


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv_T3Hd, ctx.num_sequences, ctx.lengths = inputs
    _, log_sum_exp_HT = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(log_sum_exp_HT)
    ctx.save_for_backward(qkv_T3Hd, log_sum_exp_HT)


def _backward(ctx, grad_out_TD: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if grad_out_TD is None:
        return None, None, None
    grad_qkv_T3Hd = torch.ops.webssl.attention_backward(
        *ctx.saved_tensors, grad_out_TD.contiguous(), ctx.num_sequences, ctx.lengths
    )
    return grad_qkv_T3Hd, None, None


def _second_backward(ctx, _: Tensor) -> tuple:
    raise RuntimeError("attention has no second derivative with our kernels; `ops: reference` has one")


torch.library.register_fake("webssl::attention", _forward_fake, lib=_library.LIBRARY)
torch.library.register_fake("webssl::attention_backward", _backward_fake, lib=_library.LIBRARY)
_library.LIBRARY.impl("attention", _forward_cuda, "CUDA")
_library.LIBRARY.impl("attention_backward", _backward_cuda, "CUDA")
torch.library.register_autograd("webssl::attention", _backward, setup_context=_setup_context, lib=_library.LIBRARY)
torch.library.register_autograd("webssl::attention_backward", _second_backward, lib=_library.LIBRARY)
