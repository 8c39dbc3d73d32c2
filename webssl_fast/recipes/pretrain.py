"""`webssl train`: from a config to a trained encoder in `output_dir`."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from webssl_fast.config.schema import RunConfig
from webssl_fast.data.pipeline import TrainLoader, loader_threads
from webssl_fast.data.training_data import TrainingData
from webssl_fast.engine import loop, sharding
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import Interrupted
from webssl_fast.plan.steps import flops_per_image
from webssl_fast.recipes.evaluate_knn import KnnSources, knn_in_training
from webssl_fast.recipes.initial_weights import start_from
from webssl_fast.recipes.setup import describe_method, keep_config, num_parameters, prepared

logger = logging.getLogger(__name__)


def pretrain(config_path: Path, overrides: Sequence[str]) -> None:
    """Trains by a config, from where `output_dir` left off. Raises Interrupted after a signal, UserError for what the
    user can mend."""
    with prepared(config_path, overrides) as (config, ranks):
        method = describe_method(config)
        data = TrainingData.open(config.data)
        knn_sources = KnnSources.open(config) if config.eval.knn.train_source else None
        sharding.materialize(method, config.seed, ranks, config.train)
        if config.method.init_from:
            start_from(config.method.init_from, method, ranks)

        output_dir = Path(config.output_dir)
        if ranks.is_main:
            _announce(config, data, num_parameters(method.encoder()), ranks)
            _warn_of_accumulation(config, ranks, method.balanced_over_pass)
        assert config.data.prefetch_batches is not None and config.train.micro_batch_size is not None
        with TrainLoader(
            data,
            config.data,
            method.crop_recipes(),
            seed=config.seed,
            global_batch_size=config.train.global_batch_size,
            micro_batch_size=config.train.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            prepare=method.prepare,
            captions=method.wants_captions,
            prefetch_batches=config.data.prefetch_batches,
            num_threads=loader_threads(config.data, config.data.prefetch_batches, torch.get_num_threads()),
            output_dir=str(output_dir),
            pin_memory=ranks.device.type == "cuda",
        ) as loader:

            def evaluate(step: int) -> dict[str, float]:
                assert knn_sources is not None
                result = knn_in_training(method.encoder(), knn_sources, config, ranks)
                return {f"{result.name}/{name}": score for name, score in result.scores.items()}

            def data_values(samples_seen: int) -> dict[str, float]:
                of_ranks = ranks.gather(loader.health())
                counters = {name: sum(counts[name] for counts in of_ranks) for name in of_ranks[0]}
                return {**loader.order.epochs(samples_seen), **counters}

            result = loop.train(
                method,
                loader,
                ranks,
                train_config=config.train,
                optim_config=config.optim,
                output_dir=output_dir,
                seed=config.seed,
                facts={"seed": config.seed, "data": _what_decides_the_order(config, data)},
                data_values=data_values,
                evaluate=evaluate if knn_sources else None,
                evaluate_every=config.eval.every,
                on_start=lambda: keep_config(config, output_dir) if ranks.is_main else None,
                flops_per_image=flops_per_image(config, ranks.world_size),
            )
    if result.interrupted_by is not None:
        name = signal.Signals(result.interrupted_by).name
        raise Interrupted(f"{name} at step {result.step}: saved; start the same command again to go on")


def _warn_of_accumulation(config: RunConfig, ranks: Distributed, balanced_over_pass: str | None) -> None:
    train = config.train
    assert train.micro_batch_size is not None
    images_per_pass = train.micro_batch_size * ranks.world_size
    if balanced_over_pass and images_per_pass < train.global_batch_size:
        logger.warning(
            "GRADIENT ACCUMULATION: a step is %d passes of %d images. %s over one pass and not over "
            "train.global_batch_size=%d, so this is another objective than one pass would have (what goes by "
            "train.group_size=%d stays). More ranks, or a larger train.micro_batch_size, end it",
            train.global_batch_size // images_per_pass,
            images_per_pass,
            balanced_over_pass,
            train.global_batch_size,
            train.group_size,
        )


def _what_decides_the_order(config: RunConfig, data: TrainingData) -> str:
    parts = ", ".join(f"{len(part)} samples x {part.weight:g}" for part in data.parts)
    return parts if config.data.shuffle_run == 1 else f"{parts}, in runs of {config.data.shuffle_run}"


def _announce(config: RunConfig, data: TrainingData, encoder_parameters: int, ranks: Distributed) -> None:
    train = config.train
    logger.info(
        "%s on %s (%s M parameters), %s images from %s, %s steps of %s images, %s on %d x %s, into %s",
        config.method.name,
        config.model.preset,
        f"{encoder_parameters / 1e6:,.1f}",
        f"{len(data):,}",
        data.source,
        f"{train.num_steps:,}",
        train.global_batch_size,
        train.precision,
        ranks.world_size,
        ranks.device.type,
        config.output_dir,
    )
