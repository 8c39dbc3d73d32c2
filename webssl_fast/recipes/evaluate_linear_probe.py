"""`webssl eval` with `eval.linear_probe`: 52 linear heads on a frozen encoder, served by one backbone pass a step.

With several ranks, each encodes its share of a step's images, the features go to all, and each trains its share of the
learning rates on the whole batch. So the gradients are those of the whole batch, and no gradient travels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from webssl_fast.config.schema import LinearProbeConfig, RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import TrainLoader, loader_threads
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.stopping import StopSignals
from webssl_fast.errors import ConfigError, Interrupted
from webssl_fast.evals.base import judged
from webssl_fast.evals.linear_probe import (
    Hits,
    cached_features,
    head_hits,
    joined_features,
    load_heads,
    lr_factor,
    mean_finite,
    newest_step,
    probe_blocks,
    probe_result,
    remove_older,
    save_heads,
    step_folder,
    variants,
)
from webssl_fast.evals.probe_heads import ProbeHeads
from webssl_fast.models.encoders import Encoder
from webssl_fast.recipes.frozen_features import FrozenFeatures
from webssl_fast.recipes.labelled_splits import LabelledSplits
from webssl_fast.records import CropRecipe, EvalResult

LOSS_EVERY = 20  # steps between readings of the loss, each of which waits for the device


def evaluate_linear_probe(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """Trains the heads of eval.linear_probe on `encoder` and chooses the best on its val_source.

    Saves the heads every eval.linear_probe.save_every steps below output_dir/linear_probe, in a folder of their own for
    each encoder, data and settings; goes on from there when started again, and after the last step only judges.
    Raises ConfigError for settings that do not fit, UserError for images without labels, Interrupted after a signal.
    """
    settings = config.eval.linear_probe
    splits = LabelledSplits.open(settings, "eval.linear_probe")
    num_classes = len(splits.train.class_names)
    frozen = FrozenFeatures(encoder, config, ranks)
    blocks = probe_blocks(settings, encoder.num_blocks)
    heads = ProbeHeads(
        variants(settings),
        settings.learning_rates[ranks.rank :: ranks.world_size],
        width=encoder.width,
        num_classes=num_classes,
        seed=config.seed,
        device=ranks.device,
    )
    kept = HeadFiles(_folder(frozen, splits.train, config), ranks)
    _train(heads, kept, encoder, blocks, splits.train, frozen, config, ranks)

    def judge(index: Index) -> tuple[Hits, int]:
        table = frozen.of(index, cached_features(blocks), batch_size=settings.encode_batch_size)
        features_NF = torch.cat([table.features[feature] for feature in cached_features(blocks)], 1)
        hits: Hits = {}
        for of_rank in ranks.gather(head_hits(heads, features_NF, table.labels, ranks.device)):
            hits |= of_rank
        return hits, len(features_NF)

    val, num_val = judge(splits.val)
    test, num_test = judge(splits.test) if splits.test is not None else (None, 0)
    result = probe_result(val, num_val, test, num_test, num_classes, settings)
    return replace(result, data=splits.describe())


def _train(
    heads: ProbeHeads,
    kept: HeadFiles,
    encoder: Encoder,
    blocks: list[int],
    train: Index,
    frozen: FrozenFeatures,
    config: RunConfig,
    ranks: Distributed,
) -> None:
    settings = config.eval.linear_probe
    first = kept.load(heads)
    if first >= settings.num_steps:
        return
    assert isinstance(encoder, nn.Module)
    precision = torch.bfloat16 if config.train.precision == "bf16" else None
    steps = tqdm(
        range(first, settings.num_steps),
        f"{len(variants(settings)) * len(settings.learning_rates)} probes",
        initial=first,
        total=settings.num_steps,
        disable=not ranks.is_main,
    )
    with (
        _loader(train, frozen, config, ranks) as loader,
        StopSignals(ranks) as signals,
        judged(encoder, ranks.device),
        torch.autocast(ranks.device.type, precision) if precision else nullcontext(),
    ):
        for step in steps:
            features_BF, labels_B = _encoded_batch(loader, step, encoder, blocks, ranks)
            with torch.autocast(ranks.device.type, enabled=False):
                losses = heads.step(
                    features_BF, labels_B, lr_factor=lr_factor(step, settings), momentum=settings.momentum
                )
            if ranks.is_main and step % LOSS_EVERY == 0:
                steps.set_postfix(loss=f"{mean_finite(losses):.3f}", refresh=False)
            stopped = signals.agreed()
            if stopped or (step + 1) % settings.save_every == 0 or step + 1 == settings.num_steps:
                kept.save(heads, step + 1)
            if stopped and step + 1 < settings.num_steps:
                raise Interrupted(
                    f"stopped after step {step + 1} of the linear probe and saved; the same command goes on from there"
                )


def _encoded_batch(
    loader: TrainLoader, step: int, encoder: Encoder, blocks: list[int], ranks: Distributed
) -> tuple[Tensor, Tensor]:
    """Features [B, F] and labels [B] of the whole step, in the order of its positions, on every rank."""
    features, labels = [], []
    for micro_step in range(loader.num_micro_steps):
        batch = loader.batch(step, micro_step).to(ranks.device)
        joined_BF = joined_features(encoder.block_features(batch.crops[0][0], blocks, final_norm=True))
        features.append(ranks.concatenate(joined_BF))
        labels.append(ranks.concatenate(batch.labels))
    return torch.cat(features), torch.cat(labels)


def _loader(train: Index, frozen: FrozenFeatures, config: RunConfig, ranks: Distributed) -> TrainLoader:
    settings, preprocessing, prefetch = config.eval.linear_probe, frozen.preprocessing, config.data.prefetch_batches
    assert prefetch is not None
    batch = settings.batch_size
    if batch % ranks.world_size or batch > len(train):
        raise ConfigError(
            f"eval.linear_probe.batch_size is {batch}; it must be a multiple of the {ranks.world_size} ranks and at "
            f"most the {len(train)} training images"
        )
    per_rank = batch // ranks.world_size
    return TrainLoader(
        train,
        config.data,
        [CropRecipe(preprocessing.crop_px, scale=settings.crop_scale, flip_probability=0.5)],
        seed=config.seed,
        global_batch_size=batch,
        micro_batch_size=max(n for n in range(1, settings.encode_batch_size + 1) if per_rank % n == 0),
        rank=ranks.rank,
        world_size=ranks.world_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        prefetch_batches=prefetch,
        num_threads=loader_threads(config.data, prefetch, torch.get_num_threads()),
    )


def _folder(frozen: FrozenFeatures, train: Index, config: RunConfig) -> Path:
    """Named by everything that the trained heads depend on."""
    irrelevant = {"val_source", "test_source", "train_source", "save_every"}
    settings: LinearProbeConfig = config.eval.linear_probe
    content = {
        **frozen.identity(train),
        "labels": hashlib.sha256(train.labels.tobytes()).hexdigest(),
        "classes": train.class_names,
        "seed": config.seed,
        "settings": settings.model_dump(mode="json", exclude=irrelevant),
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.output_dir) / "linear_probe" / name


@dataclass(frozen=True)
class HeadFiles:
    """The heads of one probe on disk; a save is complete or not there. Every rank calls each method."""

    folder: Path
    ranks: Distributed

    def load(self, heads: ProbeHeads) -> int:
        """Takes up the newest save; the number of steps that it has behind it, 0 where there is none."""
        step = self.ranks.gather(newest_step(self.folder))[0]
        if step:
            load_heads(step_folder(self.folder, step), heads)
        return step

    def save(self, heads: ProbeHeads, step: int) -> None:
        final = step_folder(self.folder, step)
        partial = final.with_name("partial")
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)  # a killed run's, perhaps of another number of ranks
            partial.mkdir(parents=True)
        self.ranks.barrier()
        save_heads(partial, self.ranks.rank, heads.state())
        self.ranks.barrier()
        if self.ranks.is_main:
            partial.rename(final)
            remove_older(self.folder, step)
