"""What the commands that take a config do first."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine import distributed
from webssl_fast.engine.distributed import Distributed
from webssl_fast.methods import build_method
from webssl_fast.methods.base import Method
from webssl_fast.models.encoders import Encoder
from webssl_fast.ops import force_reference


@contextmanager
def prepared(config_path: Path, overrides: Sequence[str]) -> Iterator[tuple[RunConfig, Distributed]]:
    """The effective config, in a process that has joined its run."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = load_config(config_path, overrides)
    with distributed.start(config.train.device, config.train.num_threads) as ranks:
        if not ranks.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        config = resolve(config, world_size=ranks.world_size, device=ranks.device.type)
        force_reference(config.ops == "reference")
        yield config, ranks


def describe_method(config: RunConfig) -> Method:
    """The method on the meta device: every setting is checked, nothing is allocated."""
    with torch.device("meta"):
        return build_method(config)


def num_parameters(module: nn.Module | Encoder) -> int:
    assert isinstance(module, nn.Module)
    return sum(p.numel() for p in module.parameters())
