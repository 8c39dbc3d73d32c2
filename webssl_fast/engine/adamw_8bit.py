"""AdamW for weights that barely fit: moments in 8 bits, and bf16 weights that are rounded stochastically.

The moments are quantised block by block with a dynamic map (Dettmers et al., arXiv 2110.02861), by torchao. Its own
AdamW8bit is not used: it takes steps that are not finite, draws its rounding from a generator whose state no checkpoint
holds, and cuts blocks by shards, which ties a checkpoint to its number of ranks. Here blocks lie within rows of the
whole tensor.

Dimensions: E elements of a shard, S blocks ("scales") of it, Q elements of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from webssl_fast.errors import UserError
from webssl_fast.rounding import fused_on_gpu, rounding_key, stochastic_bf16
from webssl_fast.shards import first_element

_MAX_BLOCK, _MIN_BLOCK = 2048, 64  # elements; 2048 is the paper's
_MIN_QUANTISED = 4096  # elements; smaller tensors keep fp32 moments, which cost nothing


class AdamW8bit(torch.optim.Optimizer):
    """AdamW that honours `found_inf` as torch's fused one does: where it is 1, weights, moments and counts stay.

    Weights are fp32 or bf16; the arithmetic is fp32. State of a quantised parameter: uint8 codes of its shape, and fp32
    scales of [rows, blocks of a row].
    """

    def __init__(
        self,
        groups: list[dict],
        wholes: Mapping[Tensor, tuple[str, Tensor]],
        betas: tuple[float, float],
        eps: float,
        *,
        seed: int,
    ):
        """
        groups  with "params", the local shards
        wholes  for each shard its parameter's name, and the parameter that it is a shard of
        seed    of the stochastic rounding, with the step and the name

        Raises UserError where torchao is missing.
        """
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._betas, self._eps, self._seed = betas, eps, seed
        self._wholes = dict(wholes)
        self.found_inf: Tensor | None = None
        self.step_index = 0  # of the whole run; set before each step
        for shard, (_, whole) in self._wholes.items():
            self.state[shard] = _initial_state(shard, block_size(whole.shape))
        self._maps = _quantisation_maps(next(iter(self._wholes)).device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert self.found_inf is not None
        skipped = self.found_inf.bool()
        for group in self.param_groups:
            lr, weight_decay = torch.tensor(group["lr"]), torch.tensor(group["weight_decay"])
            for shard in group["params"]:
                if shard.grad is None:
                    continue
                state = self.state[shard]
                num_taken = state["step"].add_(1 - self.found_inf)  # also where this rank has no row, as on the others
                if not shard.numel():
                    continue
                name, whole = self._wholes[shard]
                step = _Step(
                    num_taken=num_taken,
                    lr=lr,
                    weight_decay=weight_decay,
                    betas=self._betas,
                    eps=self._eps,
                    skipped=skipped,
                    key=rounding_key(self._seed, "adamw", self.step_index, name),
                    first_element=first_element(whole),
                )
                weight_E, grad_E = shard.view(-1), shard.grad.view(-1)
                if "exp_avg" in state:
                    _update(weight_E, grad_E, state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1), step)
                else:
                    m, v = (
                        _Quantised(state[f"{name}_codes"].view(-1), state[f"{name}_scales"].view(-1), map_)
                        for name, map_ in zip(("exp_avg", "exp_avg_sq"), self._maps, strict=True)
                    )
                    _update_8bit(weight_E, grad_E, m, v, step)


def block_size(shape: torch.Size) -> int | None:
    """Elements that share a scale, for a whole tensor of that shape: the largest divisor of a row up to 2048, so that
    no block lies on two ranks. None: the moments stay fp32 (small tensors; rows without a divisor of 64 or more)."""
    row = shape[1:].numel()
    if len(shape) < 2 or shape.numel() < _MIN_QUANTISED:
        return None
    block = next(q for q in range(min(row, _MAX_BLOCK), 0, -1) if row % q == 0)
    return block if block >= _MIN_BLOCK else None


def _initial_state(shard: Tensor, block: int | None) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=shard.device)
    if block is None:
        return {"step": step} | {
            name: torch.zeros_like(shard, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")
        }
    state = {"step": step}
    num_blocks = shard.shape[1:].numel() // block
    for name, zero in (("exp_avg", _zero_code(signed=True)), ("exp_avg_sq", _zero_code(signed=False))):
        state[f"{name}_codes"] = torch.full_like(shard, zero, dtype=torch.uint8)
        state[f"{name}_scales"] = shard.new_zeros(shard.shape[0], num_blocks, dtype=torch.float32)
    return state


class _Quantised(NamedTuple):
    """A tensor of which element e is map[codes_E[e]] * scales_S[e // Q]."""

    codes_E: Tensor  # uint8
    scales_S: Tensor
    map: Tensor  # [256]


class _Step(NamedTuple):
    """What an update needs besides a parameter's own tensors; what changes from step to step is a scalar tensor."""

    num_taken: Tensor  # steps taken, this one included
    lr: Tensor
    weight_decay: Tensor
    betas: tuple[float, float]
    eps: float
    skipped: Tensor  # bool
    key: Tensor  # of the stochastic rounding
    first_element: int


@fused_on_gpu
def _update(weight_E: Tensor, grad_E: Tensor, m_E: Tensor, v_E: Tensor, step: _Step) -> None:
    """One step, in place, with fp32 moments."""
    new_weight_E, new_m_E, new_v_E = _adamw(weight_E, grad_E, m_E, v_E, step)
    for into, new in ((weight_E, new_weight_E), (m_E, new_m_E), (v_E, new_v_E)):
        into.copy_(torch.where(step.skipped, into, new))


@fused_on_gpu
def _update_8bit(weight_E: Tensor, grad_E: Tensor, m: _Quantised, v: _Quantised, step: _Step) -> None:
    """One step, in place, with quantised moments."""
    torchao = _quantiser()
    m_E, v_E = (torchao.dequant_with_qmap(x.codes_E, x.map, x.scales_S) for x in (m, v))
    new_weight_E, new_m_E, new_v_E = _adamw(weight_E, grad_E, m_E, v_E, step)
    weight_E.copy_(torch.where(step.skipped, weight_E, new_weight_E))
    for x, new_E in ((m, new_m_E), (v, new_v_E)):
        scaled_E, scales_S = torchao.scale_tensor(new_E, x.codes_E.numel() // x.scales_S.numel())
        codes_E = torchao.quantize_8bit_with_qmap(scaled_E, x.map)
        x.codes_E.copy_(torch.where(step.skipped, x.codes_E, codes_E))
        x.scales_S.copy_(torch.where(step.skipped, x.scales_S, scales_S))


def _adamw(weight_E: Tensor, grad_E: Tensor, m_E: Tensor, v_E: Tensor, step: _Step) -> tuple[Tensor, Tensor, Tensor]:
    """New weight (in its dtype) and moments (fp32): Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, in fp32."""
    old_E, grad_E = weight_E.float(), grad_E.float()
    beta1, beta2 = step.betas
    m_E = torch.lerp(m_E, grad_E, 1 - beta1)
    v_E = torch.lerp(v_E, grad_E.square(), 1 - beta2)
    m_hat_E, v_hat_E = m_E / (1 - beta1**step.num_taken), v_E / (1 - beta2**step.num_taken)
    new_E = old_E - step.lr * step.weight_decay * old_E - step.lr * m_hat_E / (v_hat_E.sqrt() + step.eps)
    if weight_E.dtype == torch.bfloat16:
        new_E = stochastic_bf16(new_E, step.key, step.first_element)
    return new_E, m_E, v_E


def _quantiser() -> Any:
    try:
        from torchao.optim import quant_utils
    except ImportError as error:
        raise UserError(
            "optim.implementation=torchao_8bit needs torchao: pip install 'webssl_fast[fp8]', or set "
            "optim.implementation=torch"
        ) from error
    return quant_utils


def _quantisation_maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 256 codes of a signed and of an unsigned tensor stand for, as shares of a block's scale."""
    maps = [torch.tensor(_quantiser().create_dynamic_map(signed=signed)) for signed in (True, False)]
    return maps[0].to(device), maps[1].to(device)


@cache
def _zero_code(signed: bool) -> int:
    return _quantiser().create_dynamic_map(signed=signed).index(0)
