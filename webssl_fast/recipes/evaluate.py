"""`webssl eval`: a checkpoint's frozen encoder, judged beside an untrained one of the same architecture."""

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
from webssl_fast.engine import sharding
from webssl_fast.engine.checkpoint import load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals.knn import evaluate_knn
from webssl_fast.recipes.setup import describe_method, prepared
from webssl_fast.records import EvalResult

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
    """Evaluates by a config; prints a table, writes `output_dir/eval.json`, and returns its content."""
    with prepared(config_path, overrides) as (config, ranks):
        method = describe_method(config)
        sources = KnnSources.open(config)
        sharding.materialize(method, config.seed, ranks, config.train)
        untrained = knn(method.encoder(), sources, config, ranks)
        state = load_weights(config.eval.checkpoint or config.output_dir, method, ranks)
        trained = knn(method.encoder(), sources, config, ranks)
        results = {"trained": trained.scores, "untrained": untrained.scores}
        if ranks.is_main:
            output_dir = Path(config.output_dir)
            output_dir.mkdir(parents=True, exist_ok=True)
            content = {"evaluation": trained.name, "step": state["step"], **results}
            (output_dir / "eval.json").write_text(json.dumps(content, indent=1) + "\n")
            print(_table(trained, untrained, state["step"], sources))
    return results


def knn(encoder: nn.Module, sources: KnnSources, config: RunConfig, ranks: Distributed) -> EvalResult:
    """k-NN of an encoder. Every rank computes the same, since a sharded encoder needs all of them at each batch."""
    return evaluate_knn(
        encoder,
        config.eval.knn,
        _batches(sources.train, config),
        _batches(sources.test, config),
        ranks.device,
        torch.bfloat16 if config.train.precision == "bf16" else None,
    )


def _batches(index: Index, config: RunConfig) -> EvalLoader:
    assert config.eval.image_size_px is not None and config.data.prefetch_batches is not None
    return EvalLoader(
        index,
        config.data,
        image_size_px=config.eval.image_size_px,
        batch_size=config.eval.knn.batch_size,
        prefetch_batches=config.data.prefetch_batches,
        num_threads=loader_threads(config.data, config.data.prefetch_batches, torch.get_num_threads()),
    )


def _table(trained: EvalResult, untrained: EvalResult, step: int, sources: KnnSources) -> str:
    lines = [
        f"k-NN: {len(sources.train)} training, {len(sources.test)} test of {len(sources.train.class_names)} classes",
        f"{'':22}{f'step {step}':>12}{'untrained':>12}",
    ]
    lines += [f"{name:22}{score:>12.1%}{untrained.scores[name]:>12.1%}" for name, score in trained.scores.items()]
    return "\n".join(lines)
