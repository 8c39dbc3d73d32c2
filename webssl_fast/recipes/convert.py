"""`webssl convert`: a network from one form into another, bit for bit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from webssl_fast.config.load import save_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import DinoV2Config, MaeConfig, RunConfig
from webssl_fast.engine.checkpoint import Checkpoints
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.models.checkpoint_layouts import HEADS, Weights, backbone_config
from webssl_fast.models.convert import refuse_existing, write_authors, write_hugging_face
from webssl_fast.models.dual_encoder import PairWeights, write_dual_encoder
from webssl_fast.models.encoders import WEB_SSL_PREPROCESSING
from webssl_fast.models.presets import WEB_MAE, preset
from webssl_fast.recipes.encoder_source import judged_prefix, load_method, read_weights
from webssl_fast.recipes.setup import describe_method

logger = logging.getLogger(__name__)


def convert(sources: Sequence[str], to: str, output: Path) -> None:
    """Reads one network (encoder_source.read_weights says from what) and writes it.

    to      "webssl": a .pth of the authors' layout, and `<name>_ssl_heads.pth` where there are heads
            "hf": a folder for transformers' Dinov2Model or ViTModel
            "native": a run of ours that holds no more than this, for `eval.checkpoint` and (Web-DINO)
            `method.init_from`
            "hf_dual_encoder": a folder for transformers' VisionTextDualEncoderModel, of a run of CLIP or SigLIP
    output  the file or folder; UserError where it exists
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if to == "hf_dual_encoder":
        convert_pairs(sources, output)
        return
    weights = read_weights(sources)
    if to == "webssl":
        written = write_authors(weights, output)
    elif to == "hf":
        if weights.heads:
            logger.warning("the heads of %s are left out: a Dinov2Model has no place for them", weights.source)
        write_hugging_face(weights, output, WEB_SSL_PREPROCESSING.at(weights.image_size_px))
        written = [output]
    else:
        write_native(weights, output)
        written = [output]
    files = " and ".join(map(str, written))
    print(f"wrote {files}: {weights.preset} at {weights.image_size_px} px, heads: {'yes' if weights.heads else 'no'}")


def convert_pairs(sources: Sequence[str], output: Path) -> None:
    """Image network, text tower and what joins them, of one own run of CLIP or SigLIP. UserError for anything else."""
    if len(sources) != 1:
        raise UserError(f"got {' and '.join(sources)}; --to hf_dual_encoder takes one run of clip or siglip")
    method = load_method(sources[0])
    if not isinstance(method, ImageTextMethod):
        raise UserError(
            f"--to hf_dual_encoder is for runs of clip and siglip, and {sources[0]} was trained by {method.name}, "
            "which has no text tower; its network goes with --to hf"
        )
    bias = method.logit_scale.logit_bias
    pairs = PairWeights(
        vision=read_weights(sources),
        text=method.text.state_dict(),
        text_config=method.config.text,
        vision_projection=method.joint.vision_projection.weight,
        text_projection=method.joint.text_projection.weight,
        log_scale=method.logit_scale.log_scale.squeeze(),
        logit_bias=None if bias is None else bias.item(),
        tokenizer=method.tokenizer,
    )
    write_dual_encoder(pairs, output, WEB_SSL_PREPROCESSING.at(pairs.vision.image_size_px))
    print(f"wrote {output}: {pairs.vision.preset} and {method.config.text.preset} of {method.name}")
    if bias is not None:
        logger.warning(
            "a VisionTextDualEncoderModel has no place for SigLIP's bias: embeddings are the run's, its logits lack "
            "%.4f, which stands in config.json as logit_bias",
            bias.item(),
        )


def write_native(weights: Weights, output: Path) -> None:
    """A run directory whose one checkpoint holds the judged network (and heads) alone, in fp32. UserError where it
    exists."""
    refuse_existing(output)
    heads = {head: weights.head_config(head) for head in HEADS} if weights.heads else {}
    is_mae = preset(weights.preset).architecture == WEB_MAE
    config = RunConfig(
        output_dir=str(output),
        model=backbone_config(weights.preset, weights.image_size_px),
        method=MaeConfig() if is_mae else DinoV2Config().model_copy(update=heads),
    )
    prefix = judged_prefix(describe_method(resolve(config, world_size=1, device="cpu")))
    tensors = {f"backbone.{name}": tensor for name, tensor in weights.backbone.items()} | weights.heads
    checkpoints = Checkpoints(output / "checkpoints", Distributed(torch.device("cpu")), keep=1, keep_every=None)
    checkpoints.save(
        0,
        {f"{prefix}{name}": tensor.float() for name, tensor in tensors.items()},
        {"step": 0, "facts": {}, "converted": {"source": weights.source, "heads": bool(weights.heads)}},
    )
    save_config(config, output / "config.yaml")
