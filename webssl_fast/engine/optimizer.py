"""AdamW under DINOv2's schedules, clipped module by module, that never takes a step which is not finite.

Nothing here reads the device from the host: the norms, the decision to skip a step and the skipping are device work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from webssl_fast.config.schema import OptimConfig
from webssl_fast.engine.adamw_8bit import AdamW8bit
from webssl_fast.engine.apex import ApexAdamW
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.schedules import cosine, scaled_lr, warmup_cosine
from webssl_fast.shards import local_shard, num_copies

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method, ParameterGroup


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step found, as fp32 scalars on the device, equal on all ranks.

    found_inf   1 where loss or gradient was not finite on any rank, so that weights and moments stayed as they were
    grad_norms  norm before clipping of each trained module
    """

    found_inf: Tensor
    grad_norms: dict[str, Tensor]


class Optimizer:
    """AdamW over the local shards of a method's parameters.

    The shards are handed to AdamW as plain tensors: its fused kernels, torch's and Apex's, then run over them without
    DTensor's dispatch, and one all-reduce of a few numbers is all the communication that a step needs.
    """

    def __init__(
        self,
        method: Method,
        config: OptimConfig,
        distributed: Distributed,
        *,
        num_steps: int,
        global_batch_size: int,
        seed: int = 0,
    ):
        """`seed`: of the stochastic rounding of bf16 weights. Raises UserError where the implementation asked for is
        not installed, or cannot train weights of this dtype."""
        assert isinstance(method, nn.Module)
        self._config = config
        self._distributed = distributed
        self._num_steps = num_steps
        self._peak_lr = scaled_lr(config.base_lr, global_batch_size, config.lr_scaling)
        self._groups = method.parameter_groups()
        self._shards = _local_shards(method, self._groups)
        # Of HSDP's copies of a gradient, only one counts in its norm.
        self._num_copies = max((num_copies(parameter) for parameter in self._shards), default=1)
        self._modules = {
            name: [p for p in module.parameters() if p in self._shards]
            for name, module in method.trained_modules().items()
        }
        _check_coverage(method, self._groups, self._modules)
        groups = [{"params": [self._shards[p] for p in g.parameters], "name": g.name} for g in self._groups]
        self._adamw = self._make_adamw(method, groups, seed)

    def schedule_values(self, step: int) -> dict[str, float]:
        config = self._config
        return {
            "lr": warmup_cosine(step, self._peak_lr, config.min_lr, config.warmup_steps, self._num_steps),
            "weight_decay": cosine(step, *config.weight_decay, self._num_steps),
        }

    @torch.no_grad()
    def step(self, step: int, loss: Tensor) -> StepOutcome:
        """Takes the step from the gradients that stand in the parameters, and clears them.

        `loss`: this rank's loss, a scalar on the device; it only says whether the step is to be taken.
        """
        for parameter, shard in self._shards.items():
            shard.grad = None if parameter.grad is None else local_shard(parameter.grad)
        names = list(self._modules)
        norms = [self._local_norm(self._modules[name]) for name in names]
        squares = [norm.square() / self._num_copies for norm in norms]
        sums = self._distributed.sum_(torch.stack(squares + [loss.detach().float()]))
        grad_norms = dict(zip(names, sums[:-1].sqrt().unbind(), strict=True))
        found_inf = (~sums.isfinite()).any().float()
        if self._config.clip_grad_norm is not None:
            for name in names:
                shards = [self._shards[p] for p in self._modules[name]]
                nn.utils.clip_grads_with_norm_(shards, self._config.clip_grad_norm, grad_norms[name])
        self._set_schedule(step)
        # The fused kernels leave weights, moments and step counters alone where this is 1: torch's GradScaler protocol.
        self._adamw.grad_scale = None  # type: ignore[attr-defined]
        self._adamw.found_inf = found_inf  # type: ignore[attr-defined]
        if isinstance(self._adamw, AdamW8bit):
            self._adamw.step_index = step
        self._adamw.step()
        for parameter, shard in self._shards.items():
            parameter.grad = shard.grad = None
        return StepOutcome(found_inf, grad_norms)

    def state_tensors(self, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
        """The optimizer's state by the parameters' names, `NAME.exp_avg` and so on, sharded as the parameters are.

        These are the tensors themselves: what is loaded into them is loaded into the optimizer.
        """
        return {
            f"{names[parameter]}.{key}": _sharded_like(parameter, value) if value.dim() else value
            for parameter, shard in self._shards.items()
            for key, value in self._adamw.state[shard].items()
        }

    def _local_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        grads = [g for p in parameters if (g := self._shards[p].grad) is not None]
        if not grads:
            return torch.zeros((), device=self._distributed.device)
        # In fp32: bf16 gradients would give norms of 8 bits.
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32)))

    def _make_adamw(self, method: nn.Module, groups: list[dict], seed: int) -> torch.optim.Optimizer:
        config, device = self._config, self._distributed.device
        if config.implementation == "torchao_8bit":
            names = {parameter: name for name, parameter in method.named_parameters()}
            wholes = {shard: (names[parameter], parameter) for parameter, shard in self._shards.items()}
            return AdamW8bit(groups, wholes, config.betas, config.eps, seed=seed)
        if any(shard.dtype != torch.float32 for shard in self._shards.values()):
            raise UserError(
                f"optim.implementation={config.implementation} rounds weights to nearest, and in bf16 that loses most "
                "updates; set optim.implementation=torchao_8bit, which rounds stochastically, or "
                "train.student_weights=fp32"
            )
        if config.implementation == "apex":
            adamw: torch.optim.Optimizer = ApexAdamW(groups, config.betas, config.eps, device)
        else:
            adamw = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
        for shard in self._shards.values():  # now, not at the first step, so that a checkpoint can be loaded into it
            adamw.state[shard] = {
                "step": torch.zeros((), dtype=torch.float32, device=shard.device),
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }
        return adamw

    def _set_schedule(self, step: int) -> None:
        values = self.schedule_values(step)
        for group, into in zip(self._groups, self._adamw.param_groups, strict=True):
            into["lr"] = values["lr"] * group.lr_factor if step >= group.scheduled_lr_off_steps else 0.0
            into["weight_decay"] = values["weight_decay"] * group.weight_decay_factor


def _local_shards(method: Method, groups: list[ParameterGroup]) -> dict[nn.Parameter, Tensor]:
    shards: dict[nn.Parameter, Tensor] = {}
    for group in groups:
        for parameter in group.parameters:
            if parameter in shards:
                raise ValueError(f"{method.name}.parameter_groups() names a parameter twice, again in {group.name!r}")
            # The detached tensor shares the shard's memory, and is a leaf that takes a gradient.
            shards[parameter] = local_shard(parameter) if isinstance(parameter, DTensor) else parameter
    return shards


def _check_coverage(method: nn.Module, groups: list[ParameterGroup], modules: dict[str, list[nn.Parameter]]) -> None:
    names = {parameter: name for name, parameter in method.named_parameters()}
    grouped = {p for group in groups for p in group.parameters}
    clipped = {p for parameters in modules.values() for p in parameters}
    trained = {p for module in method.trained_modules().values() for p in module.parameters() if p.requires_grad}  # type: ignore[operator]
    stray = [names.get(p, "?") for p in (trained ^ grouped) | (clipped ^ grouped)]
    if stray:
        raise ValueError(
            f"{method.name}: parameter_groups() and trained_modules() must hold the same parameters; "  # type: ignore[union-attr]
            f"only one of them holds {', '.join(sorted(stray)[:5])}"
        )


def _sharded_like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """`local` as this rank's rows of a whole tensor with as many rows as `parameter`."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size([parameter.shape[0], *local.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
