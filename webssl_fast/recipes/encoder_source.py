"""From what a user names to a frozen encoder: by what the source is, and a refusal where that is not clear."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.engine.checkpoint import METHOD_PREFIX, find_checkpoint, load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.models.encoders import BackboneEncoder, Encoder
from webssl_fast.recipes.setup import describe_method


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """A frozen encoder on `device`, in eval mode, in fp32.

    source  an own run's output_dir, its `checkpoints` folder or one checkpoint (the encoder is what the method judges:
            for Web-DINO the teacher)

    Raises UserError, naming the source, what was found and what is expected.
    """
    encoder = _own_encoder(Path(source))
    return encoder.to(device).eval().requires_grad_(False)


def _own_encoder(source: Path) -> BackboneEncoder:
    try:
        checkpoint = find_checkpoint(source)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    config_path = checkpoint.parent.parent / "config.yaml"
    if not config_path.is_file():
        raise UserError(
            f"{checkpoint} is a checkpoint, but its run's config is not at {config_path}; put it back there"
        )
    method = describe_method(resolve(load_config(config_path), world_size=1, device="cpu"))
    encoder = method.encoder()
    assert isinstance(method, nn.Module) and isinstance(encoder, BackboneEncoder)
    encoder.to_empty(device="cpu")
    prefix = next(name for name, module in method.named_modules() if module is encoder.backbone)
    here = Distributed(torch.device("cpu"))
    state = load_weights(checkpoint, encoder.backbone, here, prefix=f"{METHOD_PREFIX}{prefix}.")
    encoder.name = f"{source.name or checkpoint.parent.parent.name} step {state['step']}"
    return encoder
