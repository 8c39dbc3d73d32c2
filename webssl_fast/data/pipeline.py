"""Batches for training and evaluation: order, bytes, pixels, crops. No state: a batch is a function of its step.

Dimensions: B images, S size of a crop in pixels.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import DataConfig
from webssl_fast.data.bad_samples import BadSampleLog, BadShareLimit
from webssl_fast.data.captions import read_caption
from webssl_fast.data.crops import evaluation_crop, training_crops
from webssl_fast.data.decode import BadImage, make_decoder
from webssl_fast.data.device_stream import DeviceStream
from webssl_fast.data.index import Index
from webssl_fast.data.order import positions_of
from webssl_fast.data.prefetch import Prefetcher
from webssl_fast.data.read import SampleReader
from webssl_fast.data.storage import Retries
from webssl_fast.data.training_data import Part, SampleOrder, TrainingData
from webssl_fast.errors import UserError
from webssl_fast.ops.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from webssl_fast.records import Batch, CropRecipe, Preprocessing

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 64  # samples tried for one position before the data source counts as unreadable
_MAX_CHUNK = 8  # images handed to the decoder at once


def loader_threads(config: DataConfig, prefetch_batches: int, num_compute_threads: int) -> int:
    """`data.num_threads`; where it is 0, every core for a loader that runs between steps (no prefetching), and the
    cores that computing leaves free otherwise: threads of both kinds on the same cores slow each other down."""
    if config.num_threads:
        return config.num_threads
    num_cores = len(os.sched_getaffinity(0))
    return num_cores if prefetch_batches == 0 else max(1, num_cores - num_compute_threads)


@dataclass
class _Loaded:
    images: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    sample_ids: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)  # sample id, reason


class _ImageSource:
    """Decoded images of samples, on a pool of threads. Where the decoder wants whole batches, the pool only reads."""

    def __init__(self, index: Index | TrainingData, config: DataConfig, num_threads: int):
        self._index = index
        retries = Retries(config.read_attempts, config.read_timeout_s)
        self._reader = SampleReader(retries=retries, remote_reads=config.remote_reads)
        self._run_length = config.shuffle_run
        self._num_unreadable = 0
        self._decoder = make_decoder(config.decode, num_threads)
        self.stream = DeviceStream(self._decoder.device)
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="webssl-data")
        self._lock = threading.Lock()

    def map_chunks(self, work: Callable[[np.ndarray], _Loaded], numbers_B: np.ndarray) -> _Loaded:
        """`work` over chunks of an array, on the pool; results in the array's order. Whole and on the calling thread,
        where the decoder wants whole batches."""
        if self._decoder.whole_batches:
            return work(numbers_B)
        loaded = _Loaded()
        for part in self._pool.map(work, self._chunks(numbers_B)):
            loaded.images += part.images
            loaded.captions += part.captions
            loaded.sample_ids += part.sample_ids
            loaded.bad += part.bad
        return loaded

    def load(self, ids_B: np.ndarray) -> list[Tensor | BadImage]:
        """uint8 [H, W, 3] of each sample, or why there is none; on the calling thread."""
        if self._decoder.whole_batches:
            files = [data for part in self._pool.map(self._read, self._chunks(ids_B)) for data in part]
        else:
            files = self._read(ids_B)
        images = iter(self._decoder.decode([data for data in files if isinstance(data, bytes)]))
        return [data if isinstance(data, BadImage) else next(images) for data in files]

    def load_pairs(self, ids_B: np.ndarray) -> list[tuple[Tensor, str] | BadImage]:
        """Image and caption of each sample, or why one of them is missing; on the calling thread."""
        captions = [self._caption(sample_id) for sample_id in ids_B.tolist()]
        captioned_B = np.array([isinstance(caption, str) for caption in captions])
        images = iter(self.load(ids_B[captioned_B]))
        pairs: list[tuple[Tensor, str] | BadImage] = []
        for caption in captions:
            image = caption if isinstance(caption, BadImage) else next(images)
            pairs.append(image if isinstance(image, BadImage) else (image, str(caption)))
        return pairs

    def _caption(self, sample_id: int) -> str | BadImage:
        try:
            return read_caption(self._index, self._reader, sample_id)
        except UserError as error:
            return BadImage(str(error))

    def health(self) -> dict[str, int]:
        """What reading has met so far: remote reads that were tried again, samples that could not be read at all."""
        return {"read_retries": self._reader.num_retries, "unreadable_samples": self._num_unreadable}

    def _chunks(self, numbers_B: np.ndarray) -> list[np.ndarray]:
        """What a thread takes at once: a run of neighbours at least, since that is one read."""
        fair_share = max(1, len(numbers_B) // (2 * self._num_threads))
        chunk = max(min(_MAX_CHUNK, fair_share), min(self._run_length, 2 * fair_share))
        return [numbers_B[i : i + chunk] for i in range(0, len(numbers_B), chunk)]

    def _read(self, ids_B: np.ndarray) -> list[bytes | BadImage]:
        found = self._reader.read_many([self._index.locate(sample_id) for sample_id in ids_B.tolist()])
        with self._lock:
            self._num_unreadable += sum(isinstance(data, OSError) for data in found)
        return [BadImage(f"cannot be read: {data}") if isinstance(data, OSError) else data for data in found]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


class TrainLoader:
    """Micro-batches of one rank, by step.

    data, config      what is read (an Index: all of it), and how
    recipes           the crops of an image (methods.base.Method.crop_recipes)
    prepare           the method's host work on a batch; runs on the thread that makes the batch
    captions          batches come with captions; a sample without one is replaced, as an undecodable one is
    dtype             of the crops
    mean, std         of the crops' normalisation
    prefetch_batches  made ahead in the background; 0: made in `batch`, between the steps of training
    num_threads       that decode and crop (see `loader_threads`)
    output_dir        where bad_samples.jsonl is written; None: nowhere
    pin_memory        of batches that go to a GPU
    Raises UserError where the source has fewer images than a step needs, ValueError where the batch sizes do not fit
    each other.
    """

    def __init__(
        self,
        data: Index | TrainingData,
        config: DataConfig,
        recipes: Sequence[CropRecipe],
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: Callable[[Batch], None] | None = None,
        captions: bool = False,
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        prefetch_batches: int = 0,
        num_threads: int = 1,
        output_dir: str | None = None,
        pin_memory: bool = False,
    ):
        data = TrainingData([Part(data)]) if isinstance(data, Index) else data
        if len(data) < global_batch_size:
            raise UserError(
                f"data source {data.source!r} has {len(data)} images, fewer than train.global_batch_size = "
                f"{global_batch_size}: add images, or set train.global_batch_size to at most {len(data)}"
            )
        positions_of(0, 0, rank, world_size, global_batch_size, micro_batch_size)  # checks the sizes
        self._data, self._recipes, self._seed = data, list(recipes), seed
        self.order = SampleOrder(data, seed, config.shuffle_run)
        self._place = (rank, world_size, global_batch_size, micro_batch_size)
        self._prepare, self._dtype, self._num_threads = prepare, dtype, num_threads
        self._captions, self._pin_memory = captions, pin_memory
        self._mean, self._std = mean, std
        self.num_micro_steps = global_batch_size // (world_size * micro_batch_size)
        self.data_wait_seconds = 0.0  # time spent in `batch` so far
        self._source = _ImageSource(data, config, num_threads)
        self._log = BadSampleLog(data, output_dir)
        self._limit = BadShareLimit(config.max_bad_share, config.min_seen_before_stop, self._log.path)
        self._prefetcher = Prefetcher(self._make_batch, self._following, prefetch_batches)

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        """A micro-batch on the host, its crops where images are decoded. Any step may be asked for; the next in order
        is what is prefetched.

        Raises UserError where too large a share of the samples cannot be decoded.
        """
        begin = time.perf_counter()
        batch = self._prefetcher.get((step, micro_step))
        self.data_wait_seconds += time.perf_counter() - begin
        self._limit.count(batch.num_images, batch.num_bad)
        self._source.stream.hand_over(batch.crops)
        return batch

    def health(self) -> dict[str, int]:
        """Counters of this process by their names in the metrics, since it started."""
        return self._source.health()

    def close(self) -> None:
        """Ends the threads. Safe to call twice."""
        self._prefetcher.close()
        self._source.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _following(self, key: tuple[int, int]) -> tuple[int, int]:
        step, micro_step = key
        return (step, micro_step + 1) if micro_step + 1 < self.num_micro_steps else (step + 1, 0)

    def _make_batch(self, key: tuple[int, int]) -> Batch:
        positions_B = positions_of(*key, *self._place)
        with self._source.stream.work():
            loaded = self._source.map_chunks(self._load_positions, positions_B)
            crops = training_crops(
                loaded.images,
                positions_B,
                self._recipes,
                seed=self._seed,
                dtype=self._dtype,
                num_threads=self._num_threads,
                mean=self._mean,
                std=self._std,
            )
        for sample_id, reason in loaded.bad:
            self._log.add(sample_id, reason)
        ids_B = np.array(loaded.sample_ids, np.int64)
        batch = Batch(
            positions=positions_B,
            sample_ids=ids_B,
            crops=crops,
            labels=torch.from_numpy(self._data.label(ids_B)),
            num_bad=int((ids_B != self.order.sample_ids(positions_B)).sum()),
            captions=loaded.captions if self._captions else None,
        )
        if self._prepare is not None:
            self._prepare(batch)
        return batch.pinned() if self._pin_memory else batch

    def _load_positions(self, positions_B: np.ndarray) -> _Loaded:
        """Images (and captions) at positions; each bad sample replaced by the next in a sequence that its position
        draws."""
        images: list[Tensor | None] = [None] * len(positions_B)
        captions = [""] * len(positions_B) if self._captions else []
        ids_B = self.order.sample_ids(positions_B)
        bad: list[tuple[int, str]] = []
        pending = np.arange(len(positions_B))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            load = self._source.load_pairs if self._captions else self._source.load
            results = load(ids_B[pending])
            for place, result in zip(pending.tolist(), results, strict=True):
                if isinstance(result, BadImage):
                    bad.append((int(ids_B[place]), result.reason))
                elif isinstance(result, tuple):
                    images[place], captions[place] = result
                else:
                    images[place] = result
            pending = pending[[isinstance(result, BadImage) for result in results]]
            if not len(pending):
                return _Loaded(images, captions, ids_B.tolist(), bad)  # type: ignore[arg-type]  # every place is filled now
            ids_B[pending] = self.order.replacement_ids(positions_B[pending], attempt)
        sample_id, reason = bad[-1]
        raise UserError(
            f"{MAX_ATTEMPTS} samples in a row could not be used, the last being {self._data.name(sample_id)!r}: "
            f"{reason}. Check that data.source = {self._data.source!r} is readable and holds "
            f"{'images with captions' if self._captions else 'images'}."
        )


class EvalBatch(NamedTuple):
    images: Tensor  # [B, 3, S, S], normalised, where the images are decoded
    labels: Tensor  # int64 [B], -1 where a sample has none
    sample_ids: np.ndarray  # int64 [B]


class EvalLoader:
    """Every sample once, in the order of the index (or `sample_ids`, in theirs), as `preprocessing` asks for it.

    What cannot be decoded is left out and counted; UserError where that is everything. With several ranks, rank r sees
    the samples r, r + world_size, ...
    """

    def __init__(
        self,
        index: Index,
        config: DataConfig,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        sample_ids: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype = torch.float32,
        prefetch_batches: int = 0,
        num_threads: int = 1,
    ):
        self._index, self._config = index, config
        self._preprocessing, self._batch_size, self._dtype = preprocessing, batch_size, dtype
        self._ids = np.asarray(range(len(index)) if sample_ids is None else sample_ids, np.int64)[rank::world_size]
        self._prefetch_batches, self._num_threads = prefetch_batches, num_threads
        self.num_bad = 0  # in the pass so far
        if preprocessing.interpolation != "bicubic" and config.decode.device == "gpu":
            logger.warning(
                "images are decoded on the GPU, but this encoder wants them resized by Pillow's %s filter: they go to "
                "the host and back; data.decode.device=cpu spares that",
                preprocessing.interpolation,
            )

    def __len__(self) -> int:
        return -(-len(self._ids) // self._batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        self.num_bad = 0
        source = _ImageSource(self._index, self._config, self._num_threads)
        prefetcher = Prefetcher(
            lambda number: self._make_batch(source, number),
            lambda number: number + 1 if number + 1 < len(self) else None,
            self._prefetch_batches,
        )
        try:
            for number in range(len(self)):
                batch, bad = prefetcher.get(number)
                if bad and self.num_bad == 0:
                    name, reason = self._index.name(bad[0][0]), bad[0][1]
                    logger.warning("evaluation leaves out what cannot be decoded, e.g. %s: %s", name, reason)
                self.num_bad += len(bad)
                source.stream.hand_over([batch.images])
                if len(batch.sample_ids):
                    yield batch
                if self.num_bad == len(self._ids):
                    sample_id, reason = bad[-1]
                    raise UserError(
                        f"none of the {self.num_bad} images of {self._index.source!r} can be decoded, e.g. "
                        f"{self._index.name(sample_id)!r}: {reason}"
                    )
        finally:
            prefetcher.close()
            source.close()

    def _load_ids(self, source: _ImageSource, ids_B: np.ndarray) -> _Loaded:
        loaded = _Loaded()
        for sample_id, result in zip(ids_B.tolist(), source.load(ids_B), strict=True):
            if isinstance(result, BadImage):
                loaded.bad.append((sample_id, result.reason))
            else:
                loaded.images.append(result)
                loaded.sample_ids.append(sample_id)
        return loaded

    def _make_batch(self, source: _ImageSource, number: int) -> tuple[EvalBatch, list[tuple[int, str]]]:
        """The batch of what can be decoded, perhaps empty; what cannot, with reasons."""
        numbered_B = self._ids[number * self._batch_size : (number + 1) * self._batch_size]
        with source.stream.work():
            loaded = source.map_chunks(lambda ids_B: self._load_ids(source, ids_B), numbered_B)
            images_B3SS = evaluation_crop(
                loaded.images, self._preprocessing, dtype=self._dtype, num_threads=self._num_threads
            )
        ids_B = np.array(loaded.sample_ids, np.int64)
        return EvalBatch(images_B3SS, torch.from_numpy(self._index.label(ids_B)), ids_B), loaded.bad
