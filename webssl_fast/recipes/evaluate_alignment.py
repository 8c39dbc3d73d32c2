"""`webssl eval` with `eval.alignment`: a vision encoder against a language model on the same image-caption pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from webssl_fast.config.schema import AlignmentConfig, RunConfig
from webssl_fast.data.captions import read_captions
from webssl_fast.data.index import Index
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.alignment import alignment
from webssl_fast.evals.feature_cache import FrozenFeature
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.language import LanguageEncoder, load_language_encoder
from webssl_fast.recipes.frozen_features import FrozenFeatures
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
    captions = read_captions(index, range(num_samples)[ranks.rank :: ranks.world_size])
    vision_NVD = _vision_features(encoder, index, range(num_samples), config, ranks)
    scores: dict[str, float] = {}
    for source in settings.language_models:
        language = load_language_encoder(source, ranks.device, DTYPES[settings.language_precision])
        language_NLD = _joined(_language_features(language, captions, settings, ranks), ranks)
        result, _ = alignment(
            vision_NVD.to(ranks.device), language_NLD.to(ranks.device), k=settings.k, clamp=settings.clamp
        )
        name = source.rstrip("/").rpartition("/")[2]
        scores |= {f"{name}/{key}": value for key, value in result.scores.items()}
    return EvalResult("alignment", scores, {"pairs": num_samples, "complete": num_samples == len(index)})


def _vision_features(
    encoder: Encoder, index: Index, sample_ids: range, config: RunConfig, ranks: Distributed
) -> Tensor:
    """The class token after every block, before the final norm: fp32 [N, V, D], on every rank."""
    features = [FrozenFeature(block) for block in range(encoder.num_blocks)]
    table = FrozenFeatures(encoder, config, ranks).of(
        index, features, batch_size=config.eval.alignment.batch_size, final_norm=False, sample_ids=sample_ids
    )
    if len(table.sample_ids) < len(sample_ids):
        raise UserError(
            f"eval.alignment.source: {len(sample_ids) - len(table.sample_ids)} images cannot be decoded, and every "
            "caption needs its image; repair or remove those pairs"
        )
    return torch.stack([table.features[feature] for feature in features], 1)


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
