"""Features of a frozen encoder on a data source, from the cache or computed into it by all ranks together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from webssl_fast.config.schema import RunConfig
from webssl_fast.data.identity import source_identity
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader, loader_threads
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals.feature_cache import FeatureCache, FrozenFeature, encoder_hash, extract_into
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import Preprocessing

logger = logging.getLogger(__name__)


def evaluation_preprocessing(encoder: Encoder, config: RunConfig) -> Preprocessing:
    """How images are prepared: as the encoder has it, at eval.image_size_px. ConfigError where patches do not fit."""
    size_px, patch_px = config.eval.image_size_px or encoder.image_size_px, encoder.patch_size
    if size_px % patch_px and size_px != encoder.image_size_px:
        below = max(size_px // patch_px, 1) * patch_px
        raise ConfigError(
            f"eval.image_size_px is {size_px}, which is not a multiple of the patch size {patch_px} of {encoder.name}; "
            f"{below} and {below + patch_px} are"
        )
    return encoder.preprocessing.at(size_px)


@dataclass(frozen=True)
class FeatureTable:
    """features fp32 [N, D] each, labels int64 [N] (-1: none) and sample ids int64 [N], all on the CPU."""

    features: dict[FrozenFeature, Tensor]
    labels: Tensor
    sample_ids: np.ndarray


class FrozenFeatures:
    """One encoder under one config. Every rank calls the same methods in the same order."""

    def __init__(self, encoder: Encoder, config: RunConfig, ranks: Distributed):
        assert isinstance(encoder, nn.Module)
        self._encoder, self._config, self._ranks = encoder, config, ranks
        self.preprocessing = evaluation_preprocessing(encoder, config)
        self.cache_dir = Path(config.eval.cache_dir or Path(config.output_dir) / "feature_cache")
        self._encoder_hash = ranks.gather(encoder_hash(encoder) if ranks.is_main else "")[0]

    def identity(self, index: Index) -> dict[str, object]:
        """Everything that the features of a source depend on. (Not whether nvImageCodec or Pillow decodes, where
        data.decode.backend is auto: the two agree to a level or two of 255.)"""
        return {
            "encoder": self._encoder_hash,
            "cls_source": self._encoder.cls_source,
            "data": self._ranks.gather(source_identity(index) if self._ranks.is_main else "")[0],
            "preprocessing": asdict(self.preprocessing),
            "decode": self._config.data.decode.model_dump(mode="json"),
            "precision": self._config.train.precision,
        }

    def of(
        self,
        index: Index,
        features: Sequence[FrozenFeature],
        *,
        batch_size: int,
        final_norm: bool = True,
        sample_ids: Sequence[int] | None = None,
    ) -> FeatureTable:
        """Features of every image (or of `sample_ids`) that can be decoded, in order; the same on every rank."""
        ids_N = np.arange(len(index)) if sample_ids is None else np.asarray(sample_ids, np.int64)
        cache = FeatureCache(self.cache_dir, {**self.identity(index), "final_norm": final_norm}, ids_N)
        missing = self._ranks.gather(cache.incomplete_shards(features))[0]
        if len(missing) < cache.num_shards:
            done = cache.num_shards - len(missing)
            logger.info("%s: features of %d of %d shards are in %s", index.source, done, cache.num_shards, cache.folder)
        own = missing[self._ranks.rank :: self._ranks.world_size]
        if own:
            batches = self._batches(index, np.concatenate([cache.shard_ids(shard) for shard in own]), batch_size)
            precision = torch.bfloat16 if self._config.train.precision == "bf16" else None
            extract_into(
                cache,
                own,
                self._encoder,
                features,
                tqdm(batches, f"features of {index.source}", disable=not self._ranks.is_main),
                self._ranks.device,
                final_norm=final_norm,
                autocast_dtype=precision,
            )
        self._ranks.barrier()
        found, found_ids = cache.read(features)
        return FeatureTable(found, torch.from_numpy(index.label(found_ids)), found_ids)

    def _batches(self, index: Index, ids_N: np.ndarray, batch_size: int) -> EvalLoader:
        prefetch = self._config.data.prefetch_batches
        assert prefetch is not None
        return EvalLoader(
            index,
            self._config.data,
            preprocessing=self.preprocessing,
            batch_size=batch_size,
            sample_ids=ids_N.tolist(),
            prefetch_batches=prefetch,
            num_threads=loader_threads(self._config.data, prefetch, torch.get_num_threads()),
        )
