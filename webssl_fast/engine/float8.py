"""FP8 matrix products in the blocks' linear layers, by torchao (row-wise or tensor-wise scales).

Weights stay in their own dtype; inputs, weights and (tensor-wise) gradients are scaled and cast at each product.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from webssl_fast.errors import ConfigError, UserError

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method

_MIN_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
_MULTIPLE = 16  # of both sides of a weight, for FP8 tensor cores
# Row-wise scaling leaves the weights' gradients in bf16, as DINOv3 does: they add up over tokens, of any number.
_RECIPES = {"rowwise": "rowwise_with_gw_hp", "tensorwise": "tensorwise"}


def convert_to_float8(
    method: Method, where: str, scaling: str, device: torch.device, *, emulate: bool = False
) -> list[nn.Module]:
    """Makes the blocks' linear layers compute in FP8, in place; returns those converted.

    where    "none", "teacher" (modules that are not trained) or "both"
    scaling  "rowwise" or "tensorwise"
    emulate  on any device, by casting to FP8 and back: for tests

    Raises UserError without torchao or a GPU of capability 8.9, ConfigError where a size is no multiple of 16.
    """
    if where == "none":
        return []
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"train.fp8={where} needs torchao: pip install 'webssl_fast[fp8]', or set train.fp8=none")
    if not emulate:
        _check_device(where, device)
    blocks = [
        block
        for blocks in method.block_sequences()
        for block in blocks
        if where == "both" or not any(p.requires_grad for p in block.parameters())
    ]
    for block in blocks:
        for name, linear in _linears(block).items():
            _check_size(name, linear)
    config = _config(scaling, emulate)
    return [converted for block in blocks for converted in _convert(block, config)]


def _check_device(where: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(f"train.fp8={where} needs an NVIDIA GPU, and this run's device is {device}; set train.fp8=none")
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        raise UserError(
            f"train.fp8={where} needs a GPU of compute capability 8.9 or more (Ada, Hopper), and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}; set train.fp8=none"
        )


def _check_size(name: str, linear: nn.Linear) -> None:
    for size in (linear.in_features, linear.out_features):
        if size % _MULTIPLE:
            raise ConfigError(
                f"{name} is {linear.in_features} x {linear.out_features}, and FP8 wants multiples of {_MULTIPLE}; set "
                "model.swiglu_pad_multiple=64, which changes no output (models/swiglu_padding.py)"
            )


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def _config(scaling: str, emulate: bool) -> Any:
    from torchao.float8 import Float8LinearConfig

    config = Float8LinearConfig.from_recipe_name(_RECIPES[scaling])
    # pad_inner_dim: tensor-wise weight gradients add up over tokens, whose number may be no multiple of 16.
    return dataclasses.replace(config, emulate=emulate, pad_inner_dim=scaling == "tensorwise")


def _convert(block: nn.Module, config: Any) -> list[nn.Module]:
    from torchao.float8 import convert_to_float8_training

    names = list(_linears(block))
    convert_to_float8_training(block, config=config)
    return [block.get_submodule(name) for name in names]
