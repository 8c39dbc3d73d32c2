"""NVIDIA Apex's FusedAdam behind the interface of torch's fused AdamW (`optim.implementation: apex`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from webssl_fast.errors import UserError

_HOW_TO_GET_IT = (
    "optim.implementation=apex needs NVIDIA Apex with its CUDA extensions. The package named `apex` on PyPI is another "
    "project, so `pip install apex` does not help. Build NVIDIA's from source (https://github.com/NVIDIA/apex, "
    "`APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation .` in a clone), or use "
    "optim.implementation=torch, whose fused AdamW computes the same"
)


class ApexAdamW(torch.optim.Optimizer):
    """FusedAdam in decoupled-decay mode that honours `found_inf`, and keeps a step count for each parameter in its
    state as torch does: a checkpoint does not tell which of the two wrote it.

    Raises UserError where NVIDIA Apex is missing or the device is no GPU.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float, device: torch.device):
        fused_adam = _import_fused_adam()
        if device.type != "cuda":
            raise UserError(f"NVIDIA Apex runs on GPUs only, and this run's device is {device}; {_HOW_TO_GET_IT}")
        # capturable: its kernels take the skip flag, the learning rate and the step count from the device.
        inner_groups = [{"params": list(group["params"])} for group in groups]
        self._inner = fused_adam(inner_groups, lr=0.0, betas=betas, eps=eps, adam_w_mode=True, capturable=True)
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._inner.state = self.state
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert self.found_inf is not None
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner["lr"].fill_(group["lr"])
            inner["weight_decay"] = group["weight_decay"]
            # Apex keeps one count for a group and adds to it by what the last step of any group found: it is set here.
            counts = [self.state[p]["step"] for p in group["params"] if p.grad is not None]
            if counts:
                inner["step"] = counts[0].to(torch.int).reshape(1)
        self._inner._dummy_overflow_buf.copy_(self.found_inf.reshape(1))
        self._inner.step(grad_scaler=_SkipFlag(self.found_inf))
        taken = 1 - self.found_inf
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["step"].add_(taken)


class _SkipFlag:
    """The two questions that FusedAdam asks of a gradient scaler."""

    def __init__(self, found_inf: Tensor):
        self._found_inf = found_inf.reshape(1)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[torch.device, Tensor]:
        return {self._found_inf.device: self._found_inf}

    def _get_scale_async(self) -> Tensor:
        return torch.ones_like(self._found_inf)


def _import_fused_adam() -> Any:
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise UserError(_HOW_TO_GET_IT) from error
    return FusedAdam
