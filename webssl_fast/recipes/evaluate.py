"""`webssl eval`: a frozen encoder is judged; that of an own run beside an untrained one of the same architecture."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader, loader_threads
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.knn import evaluate_knn
from webssl_fast.models.encoders import Encoder
from webssl_fast.recipes.encoder_source import is_own_training, load_encoder, untrained_twin
from webssl_fast.recipes.evaluate_dense import evaluate_dense, names_dense_data
from webssl_fast.recipes.setup import prepared
from webssl_fast.records import EvalResult, Preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnnSources:
    train: Index
    test: Index

    @classmethod
    def open(cls, config: RunConfig) -> KnnSources:
        knn = config.eval.knn
        for key in ("train_source", "test_source"):
            if not getattr(knn, key):
                raise ConfigError(
                    f"eval.knn.{key} is empty: name labelled images, e.g. a folder with one subfolder a class"
                )
        train = Index.open(knn.train_source)
        return cls(train, Index.open(knn.test_source, class_names=train.class_names or None))


def evaluate(config_path: Path, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Evaluates by a config; prints a table, writes `output_dir/eval.json`, and returns the scores.

    Where the config names data for segmentation or depth, and none for k-NN, only those are run.
    """
    with prepared(config_path, overrides) as (config, ranks):
        sources = None
        if config.eval.knn.train_source or not names_dense_data(config.eval):
            sources = KnnSources.open(config)
        if not config.eval.checkpoint and not Path(config.output_dir).is_dir():
            raise UserError(f"there is no run at output_dir {config.output_dir}: train first, or set eval.checkpoint")
        source = config.eval.checkpoint or config.output_dir
        encoder = load_encoder(source, ranks.device)
        dense = evaluate_dense(encoder, config, ranks)
        if sources is None:
            return {result.name: result.scores for result in dense}
        judged = {"trained": encoder}
        if is_own_training(source):
            judged["untrained"] = untrained_twin(encoder, config.seed)
        results = {key: knn(each, sources, config, ranks) for key, each in judged.items()}
        scores = {key: result.scores for key, result in results.items()}
        if ranks.is_main:
            output_dir = Path(config.output_dir)
            output_dir.mkdir(parents=True, exist_ok=True)
            content = {"evaluation": results["trained"].name, "encoder": encoder.name, **scores}
            (output_dir / "eval.json").write_text(json.dumps(content, indent=1) + "\n")
            print(_table(encoder.name, scores, sources))
    return scores


def knn(encoder: Encoder, sources: KnnSources, config: RunConfig, ranks: Distributed) -> EvalResult:
    """k-NN of an encoder. Every rank computes the same, since a sharded encoder needs all of them at each batch."""
    size_px, patch_px = config.eval.image_size_px or encoder.image_size_px, encoder.patch_size
    if size_px % patch_px and size_px != encoder.image_size_px:
        below = max(size_px // patch_px, 1) * patch_px
        raise ConfigError(
            f"eval.image_size_px is {size_px}, which is not a multiple of the patch size {patch_px} of {encoder.name}; "
            f"{below} and {below + patch_px} are"
        )
    preprocessing = encoder.preprocessing.at(size_px)
    assert isinstance(encoder, nn.Module)
    return evaluate_knn(
        encoder,
        config.eval.knn,
        _batches(sources.train, config, preprocessing),
        _batches(sources.test, config, preprocessing),
        ranks.device,
        torch.bfloat16 if config.train.precision == "bf16" else None,
    )


def _batches(index: Index, config: RunConfig, preprocessing: Preprocessing) -> EvalLoader:
    assert config.data.prefetch_batches is not None
    return EvalLoader(
        index,
        config.data,
        preprocessing=preprocessing,
        batch_size=config.eval.knn.batch_size,
        prefetch_batches=config.data.prefetch_batches,
        num_threads=loader_threads(config.data, config.data.prefetch_batches, torch.get_num_threads()),
    )


def _table(name: str, scores: dict[str, dict[str, float]], sources: KnnSources) -> str:
    columns = [name, *list(scores)[1:]]
    widths = [max(len(column) + 2, 12) for column in columns]
    lines = [
        f"k-NN: {len(sources.train)} training, {len(sources.test)} test of {len(sources.train.class_names)} classes",
        " " * 22 + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)),
    ]
    for score in scores["trained"]:
        values = zip(scores.values(), widths, strict=True)
        lines.append(f"{score:22}" + "".join(f"{of_one[score]:>{width}.1%}" for of_one, width in values))
    return "\n".join(lines)
