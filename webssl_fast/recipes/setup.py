"""What the commands that take a config do first."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import nn

from webssl_fast.config.load import changed_keys, load_config, load_config_of, save_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig, TrainConfig
from webssl_fast.engine import distributed
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.methods import build_method
from webssl_fast.methods.base import Method
from webssl_fast.models.encoders import Encoder
from webssl_fast.ops import force_reference

logger = logging.getLogger(__name__)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@contextmanager
def joined(train: TrainConfig) -> Iterator[Distributed]:
    """The run's ranks, of which the main one alone logs more than errors."""
    with distributed.start(train.device, train.num_threads) as ranks:
        if not ranks.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        yield ranks


@contextmanager
def prepared(config_path: Path, overrides: Sequence[str]) -> Iterator[tuple[RunConfig, Distributed]]:
    """The effective config, in a process that has joined its run."""
    log_to_stderr()
    config = load_config(config_path, overrides)
    with joined(config.train) as ranks:
        config = resolve(config, world_size=ranks.world_size, device=ranks.device.type)
        force_reference(config.ops == "reference")
        yield config, ranks


def keep_config(config: BaseModel, output_dir: Path) -> None:
    """Writes config.yaml, and warns where the one that is there differs."""
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "config.yaml"
    if path.exists():
        try:
            changes = changed_keys(load_config_of(type(config), path), config)
        except ConfigError:  # written by another version; a checkpoint's own checks still stand
            changes = ["the old config cannot be read by this version"]
        if changes:
            logger.warning("%s goes on with another config than before: %s", output_dir, "; ".join(changes))
    save_config(config, path)


def describe_method(config: RunConfig) -> Method:
    """The method on the meta device: every setting is checked, nothing is allocated."""
    with torch.device("meta"):
        return build_method(config)


def num_parameters(module: nn.Module | Encoder) -> int:
    assert isinstance(module, nn.Module)
    return sum(p.numel() for p in module.parameters())
