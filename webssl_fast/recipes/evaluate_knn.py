"""k-NN of an encoder: by `webssl eval` with `eval.knn`, and during training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader, loader_threads
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals import knn
from webssl_fast.evals.base import check_labels
from webssl_fast.evals.feature_cache import FrozenFeature
from webssl_fast.models.encoders import Encoder
from webssl_fast.recipes.frozen_features import FrozenFeatures, evaluation_preprocessing
from webssl_fast.records import EvalResult


@dataclass(frozen=True)
class KnnSources:
    train: Index
    test: Index

    @classmethod
    def open(cls, config: RunConfig) -> KnnSources:
        settings = config.eval.knn
        for key in ("train_source", "test_source"):
            if not getattr(settings, key):
                raise ConfigError(
                    f"eval.knn.{key} is empty: name labelled images, e.g. a folder with one subfolder a class"
                )
        train = Index.open(settings.train_source)
        return cls(train, Index.open(settings.test_source, class_names=train.class_names or None))

    def describe(self) -> dict[str, str | int | bool]:
        return {
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.train.class_names),
        }


def evaluate_knn(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """k-NN of a frozen encoder, its features from the cache or computed into it by all ranks together."""
    sources = KnnSources.open(config)
    settings, frozen = config.eval.knn, FrozenFeatures(encoder, config, ranks)
    features = {pool: FrozenFeature(encoder.num_blocks - 1, pool) for pool in settings.features}
    found: list[tuple[dict[str, Tensor], Tensor]] = []
    for index in (sources.train, sources.test):
        ids = np.arange(len(index))
        check_labels(torch.from_numpy(index.label(ids)), ids, index.source)
        table = frozen.of(index, list(features.values()), batch_size=settings.batch_size)
        found.append(({pool: table.features[feature] for pool, feature in features.items()}, table.labels))
    result = knn.judge_features(settings, *found[0], *found[1], ranks.device)
    return EvalResult(result.name, result.scores, sources.describe())


def knn_in_training(encoder: Encoder, sources: KnnSources, config: RunConfig, ranks: Distributed) -> EvalResult:
    """k-NN of an encoder that changes: nothing is kept. Every rank computes the same, since a sharded encoder needs all
    of them at each batch."""
    assert isinstance(encoder, nn.Module) and config.data.prefetch_batches is not None
    prefetch = config.data.prefetch_batches
    train, test = (
        EvalLoader(
            index,
            config.data,
            preprocessing=evaluation_preprocessing(encoder, config),
            batch_size=config.eval.knn.batch_size,
            prefetch_batches=prefetch,
            num_threads=loader_threads(config.data, prefetch, torch.get_num_threads()),
        )
        for index in (sources.train, sources.test)
    )
    precision = torch.bfloat16 if config.train.precision == "bf16" else None
    return knn.evaluate_knn(encoder, config.eval.knn, train, test, ranks.device, precision)
