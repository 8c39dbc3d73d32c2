"""`webssl eval` with `eval.alignment`: a vision encoder against a language model on the same image-caption pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from webssl_fast.config.schema import AlignmentConfig, RunConfig
from webssl_fast.data.captions import read_captions
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader, loader_threads
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.alignment import alignment
from webssl_fast.evals.base import judged
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.language import LanguageEncoder, load_language_encoder
from webssl_fast.records import EvalResult

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def evaluate_alignment(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """The mutual k-NN alignment of `encoder` with each of eval.alignment.language_models, on its first samples.

    Scores are named by the language model: "<name>/alignment", "<name>/vision_layer", ...; the samples are shared out
    among the ranks.
    """
    settings = config.eval.alignment
    for key in ("source", "language_models"):
        if not getattr(settings, key):
            raise ConfigError(
                f"eval.alignment.{key} is empty: it needs image-caption pairs and at least one language "
                "model, a folder, hub id or .gguf file"
            )
    index = Index.open(settings.source)
    num_samples = min(settings.num_samples or len(index), len(index))
    sample_ids = range(num_samples)[ranks.rank :: ranks.world_size]
    captions = read_captions(index, sample_ids)
    vision_NVD = _joined(_vision_features(encoder, index, sample_ids, config, ranks), ranks)
    scores: dict[str, float] = {}
    for source in settings.language_models:
        language = load_language_encoder(source, ranks.device, DTYPES[settings.language_precision])
        language_NLD = _joined(_language_features(language, captions, settings, ranks), ranks)
        result, _ = alignment(
            vision_NVD.to(ranks.device), language_NLD.to(ranks.device), k=settings.k, clamp=settings.clamp
        )
        name = source.rstrip("/").rpartition("/")[2]
        scores |= {f"{name}/{key}": value for key, value in result.scores.items()}
    return EvalResult("alignment", scores)


def _vision_features(
    encoder: Encoder, index: Index, sample_ids: range, config: RunConfig, ranks: Distributed
) -> Tensor:
    """The class token after every block, before the final norm: fp32 [n, V, D] of this rank's samples."""
    assert isinstance(encoder, nn.Module) and config.data.prefetch_batches is not None
    prefetch = config.data.prefetch_batches
    loader = EvalLoader(
        index,
        config.data,
        preprocessing=encoder.preprocessing.at(config.eval.image_size_px or encoder.image_size_px),
        batch_size=config.eval.alignment.batch_size,
        sample_ids=sample_ids,
        prefetch_batches=prefetch,
        num_threads=loader_threads(config.data, prefetch, torch.get_num_threads()),
    )
    rows, seen = [], []
    autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.train.precision == "bf16")
    with judged(encoder, ranks.device), autocast:
        for images, _, ids in tqdm(loader, "images", disable=not ranks.is_main):
            blocks = encoder.block_features(images.to(ranks.device), range(encoder.num_blocks), final_norm=False)
            rows.append(torch.stack([features.cls_token.float().cpu() for features in blocks], dim=1))
            seen.append(ids)
    if not np.array_equal(np.concatenate(seen), np.asarray(sample_ids)):
        raise UserError(
            f"eval.alignment.source: {len(sample_ids) - sum(map(len, seen))} images cannot be decoded, and every "
            "caption needs its image; repair or remove those pairs"
        )
    return torch.cat(rows)


def _language_features(
    language: LanguageEncoder, captions: list[str], settings: AlignmentConfig, ranks: Distributed
) -> Tensor:
    batches = [captions[i : i + settings.batch_size] for i in range(0, len(captions), settings.batch_size)]
    progress = tqdm(batches, f"captions, {language.name}", disable=not ranks.is_main)
    return torch.cat([language(batch) for batch in progress])


def _joined(features: Tensor, ranks: Distributed) -> Tensor:
    """Every rank's rows, in the order of the samples that were dealt out."""
    parts = ranks.gather(features)
    joined = features.new_empty(sum(map(len, parts)), *features.shape[1:])
    for rank, part in enumerate(parts):
        joined[rank :: ranks.world_size] = part
    return joined
