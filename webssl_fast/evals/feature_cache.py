"""Features of frozen encoders on disk, so that evaluations share them and an interrupted extraction goes on.

A cache folder holds one folder for each identity (weights, images, preprocessing, precision: whatever changes the
features), named by its hash; in it one folder for each feature, in that one file for each shard of consecutive images:

    <cache>/<hash>/identity.json
    <cache>/<hash>/block_23_cls/shard_00007.safetensors      features fp32 [n, D], sample_ids int64 [n]

A file appears whole or not at all. Nothing is ever overwritten: other weights or images are another hash.

Dimensions: N images, D width, S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from webssl_fast.errors import UserError
from webssl_fast.evals.base import FEATURES, LabelledBatch, judged
from webssl_fast.models.encoders import Encoder

FORMAT = 1
SHARD_IMAGES = (64, 4096)  # at least and at most; about 64 shards between, so that many ranks have something to do
_HASHING_THREADS = 8


@dataclass(frozen=True)
class FrozenFeature:
    """One vector of an image: what `pool` makes of the tokens after a block (0 the first)."""

    block: int
    pool: Literal["cls", "patch_mean"] = "cls"

    @property
    def name(self) -> str:
        return f"block_{self.block}_{self.pool}"


class FeatureCache:
    """The files of one identity and one list of images.

    folder      the cache folder, shared by every rank and every evaluation
    identity    what the features depend on, JSON; the images and their order come in addition
    sample_ids  int64 [N], each once
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], sample_ids: np.ndarray):
        self._sample_ids = np.ascontiguousarray(sample_ids, np.int64)
        low, high = SHARD_IMAGES
        self._shard_images = min(max(len(sample_ids) // 64, low), high)
        listed = {
            "format": FORMAT,
            **identity,
            "sample_ids": hashlib.sha256(self._sample_ids.tobytes()).hexdigest(),
            "num_images": len(sample_ids),
            "shard_images": self._shard_images,
        }
        self._identity = json.dumps(listed, indent=1, sort_keys=True) + "\n"
        self.folder = folder / hashlib.sha256(self._identity.encode()).hexdigest()[:32]

    @property
    def num_shards(self) -> int:
        return -(-len(self._sample_ids) // self._shard_images)

    def shard_ids(self, shard: int) -> np.ndarray:
        return self._sample_ids[shard * self._shard_images : (shard + 1) * self._shard_images]

    def incomplete_shards(self, features: Sequence[FrozenFeature]) -> list[int]:
        """Shards that lack one of the features."""
        return [s for s in range(self.num_shards) if not all(self._path(f, s).is_file() for f in features)]

    def write(self, shard: int, sample_ids: np.ndarray, rows: Mapping[FrozenFeature, Tensor]) -> None:
        """Adds what a shard lacks of the features. sample_ids: those of its images that could be decoded."""
        identity_path = self.folder / "identity.json"
        if not identity_path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = _partial(identity_path)
            partial.write_text(self._identity)
            os.replace(partial, identity_path)
        for feature, rows_ND in rows.items():
            path = self._path(feature, shard)
            if path.is_file():
                continue
            path.parent.mkdir(exist_ok=True)
            partial = _partial(path)
            save_file({"features": rows_ND.contiguous(), "sample_ids": torch.from_numpy(sample_ids)}, partial)
            os.replace(partial, path)

    def read(self, features: Sequence[FrozenFeature]) -> tuple[dict[FrozenFeature, Tensor], np.ndarray]:
        """Every feature, fp32 [N, D], and the ids of the images that could be decoded. UserError for a damaged file."""
        found: dict[FrozenFeature, Tensor] = {}
        ids: np.ndarray | None = None
        for feature in features:
            shards = [_read(self._path(feature, shard)) for shard in range(self.num_shards)]
            sample_ids = np.concatenate([shard["sample_ids"].numpy() for shard in shards])
            if ids is not None and not np.array_equal(ids, sample_ids):
                raise UserError(
                    f"{self.folder}: its features are of different images, since some could be decoded at one time and "
                    "not at another; delete that folder to compute them again"
                )
            ids = sample_ids
            found[feature] = torch.cat([shard["features"] for shard in shards if len(shard["features"])])
        assert ids is not None, "at least one feature"
        return found, ids

    def _path(self, feature: FrozenFeature, shard: int) -> Path:
        return self.folder / feature.name / f"shard_{shard:05d}.safetensors"


def extract_into(
    cache: FeatureCache,
    shards: Sequence[int],
    encoder: Encoder,
    features: Sequence[FrozenFeature],
    batches: Iterable[LabelledBatch],
    device: torch.device,
    *,
    final_norm: bool,
    autocast_dtype: torch.dtype | None = None,
) -> None:
    """Computes the features of some shards and writes each shard as soon as its last image is through.

    batches  the images of `shards`, in their order; images may be left out
    """
    blocks = sorted({feature.block for feature in features})
    shard_of = {int(i): shard for shard in shards for i in cache.shard_ids(shard)}
    waiting = iter(shards)
    current = next(waiting, None)
    ids: list[np.ndarray] = []
    rows: dict[FrozenFeature, list[Tensor]] = {feature: [] for feature in features}

    def finish() -> None:
        nonlocal current
        assert current is not None
        empty = torch.empty(0, encoder.width)
        found = {feature: torch.cat(parts) if parts else empty for feature, parts in rows.items()}
        cache.write(current, np.concatenate(ids) if ids else np.empty(0, np.int64), found)
        ids.clear()
        for parts in rows.values():
            parts.clear()
        current = next(waiting, None)

    assert isinstance(encoder, nn.Module)
    autocast = torch.autocast(device.type, autocast_dtype) if autocast_dtype is not None else nullcontext()
    with judged(encoder, device), autocast:
        for images_B3SS, _, sample_ids_B in batches:
            of_blocks = encoder.block_features(images_B3SS.to(device, non_blocking=True), blocks, final_norm=final_norm)
            by_block = dict(zip(blocks, of_blocks, strict=True))
            vectors = {feature: FEATURES[feature.pool](by_block[feature.block]).cpu() for feature in features}
            shards_B = np.array([shard_of[int(i)] for i in sample_ids_B])
            for shard in dict.fromkeys(shards_B.tolist()):
                while current != shard:
                    finish()
                chosen_B = torch.from_numpy(shards_B == shard)
                ids.append(np.asarray(sample_ids_B, np.int64)[chosen_B.numpy()])
                for feature, vectors_BD in vectors.items():
                    rows[feature].append(vectors_BD[chosen_B])
    while current is not None:
        finish()


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256 over what an encoder computes: its modules, settings, and every weight and buffer, bit for bit.

    Not over its name: the same network from two places is one network. Computed once for each object, which is frozen.
    """
    if encoder not in _HASHES:
        _HASHES[encoder] = _encoder_hash(encoder)
    return _HASHES[encoder]


_HASHES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def _encoder_hash(encoder: nn.Module) -> str:
    digest = hashlib.sha256(repr(encoder).encode())
    for module in encoder.modules():
        digest.update(_settings(getattr(module, "config", None)).encode())
    state = encoder.state_dict()

    def of_tensor(name: str) -> bytes:
        tensor = state[name].detach().cpu().contiguous()
        described = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        described.update(tensor.reshape(-1).view(torch.uint8).numpy())
        return described.digest()

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashlib lets other threads run
        for part in pool.map(of_tensor, sorted(state)):
            digest.update(part)
    return digest.hexdigest()


def _settings(config: Any) -> str:
    """What repr(module) does not show, such as the number of heads or how positions are interpolated."""
    if isinstance(config, BaseModel):
        return config.model_dump_json()
    if hasattr(config, "to_dict"):  # transformers
        content = config.to_dict()
        content.pop("_name_or_path", None)
        return json.dumps(content, sort_keys=True, default=str)
    return ""


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing after every rank wrote its part: eval.cache_dir must be one folder that all ranks see"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and the next start computes it again") from None
