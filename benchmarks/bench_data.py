"""Images per second of each stage from files to crops, apart and together, on the CPU and on a GPU.

    python -m benchmarks.photo_shards SHARDS
    python -m benchmarks.bench_data --images 'SHARDS/{0..3}.tar' --threads 2

One JSON line for each stage and side, which take turns:
  read      files to bytes; small folders come from the page cache
  decode    bytes to uint8 RGB: our decoders, Pillow, and a DALI pipeline where it is installed, the yardstick (it fails
            a whole batch on one bad image, and reads no GIF)
  augment   decoded images to the ten crops of DINOv2 (2 of 224 pixels, 8 of 98)
  together  a training loader: all of these, with `--threads` threads and nothing made ahead; on shards also torch's
            DataLoader with torchvision, and webdataset's loader, where they are installed, with each of `--workers`.
            torchvision pulls a torch of its own, so these belong into an environment of their own:
              python -m venv rivals && . rivals/bin/activate
              pip install torch webdataset nvidia-nvimgcodec-cu12 pydantic PyYAML tqdm
              pip install --no-deps torchvision
              PYTHONPATH=. python -m benchmarks.bench_data ...
            (any torchvision for that torch will do, also PyPI's beside a CPU build of torch)

    python -m benchmarks.bench_data --storage

measures instead what reading costs by where shards lie (page cache, disk, an HTTP server with latency) and by
data.shuffle_run, and what an index of two billion samples costs to open and to ask.

With `--device cuda` decoding and cropping are measured on the GPU too, with `--hardware-share` of the JPEGs for its
JPEG engine. A GPU's side ends when the GPU has finished.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.crop_recipes import RECIPES, SIZES_PX
from benchmarks.harness import argument_parser, emit, time_interleaved
from benchmarks.loader_rivals import installed, torchvision_loaders, unpack, webdataset_loaders
from benchmarks.storage_sides import measure_index, measure_storage
from webssl_fast.config.schema import DataConfig, DecodeConfig
from webssl_fast.data.decode import BadImage, Decoder, make_decoder
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import TrainLoader
from webssl_fast.data.read import SampleReader
from webssl_fast.ops.crop_parameters import draw_crop_parameters
from webssl_fast.ops.multi_crop import multi_crop

BATCH = 32
CHUNK = 8  # images that a thread decodes at once, as the loader does


@dataclass(frozen=True)
class Side:
    stage: str
    name: str
    run: Callable[[], object]
    num_images: int  # of a run
    device: str = "cpu"
    about: dict[str, Any] = field(default_factory=dict)  # further fields of its line

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}/{self.about.get('workers', '')}"


def batches(items: list, size: int = BATCH) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def reading(index: Index, sample_ids: list[int], pool: ThreadPoolExecutor) -> None:
    reader = SampleReader()
    for _ in pool.map(lambda sample_id: reader.read(index.locate(sample_id)), sample_ids):
        pass
    reader.close()


def decoding(decoder: Decoder, encoded: list[bytes], pool: ThreadPoolExecutor) -> list[Tensor]:
    """As the loader does it: whole batches from one thread, or chunks from many."""
    if decoder.whole_batches:
        decoded = [image for part in batches(encoded) for image in decoder.decode(part)]
    else:
        decoded = [image for images in pool.map(decoder.decode, batches(encoded, CHUNK)) for image in images]
    images = [image for image in decoded if not isinstance(image, BadImage)]
    if len(images) < len(decoded):
        raise SystemExit(f"--images: {len(decoded) - len(images)} images cannot be decoded; name a folder without them")
    _finish(decoder.device)
    return images


def augmenting(images: list[Tensor], num_threads: int) -> None:
    for number, part in enumerate(batches(images)):
        sizes_B2 = torch.tensor([image.shape[:2] for image in part], dtype=torch.int32)
        parameters_BVP = draw_crop_parameters(sizes_B2, RECIPES, 0, number * BATCH + torch.arange(len(part)))
        multi_crop(part, parameters_BVP, SIZES_PX, num_threads=num_threads)
    _finish(images[0].device)


def loading(loader: TrainLoader, num_steps: int) -> None:
    for step in range(num_steps):
        crops = loader.batch(step).crops
    _finish(crops[0].device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dali(encoded: list[bytes], num_threads: int, hardware_share: float | None) -> Callable[[], None]:
    """DALI's pipeline on the CPU, or with a hardware share its "mixed" decoder on the GPU."""
    from nvidia.dali import Pipeline, fn

    parts = batches([np.frombuffer(data, np.uint8) for data in encoded])
    on_gpu = hardware_share is not None
    options = {"device": "mixed", "hw_decoder_load": hardware_share} if on_gpu else {"device": "cpu"}
    built = Pipeline(BATCH, num_threads, device_id=torch.cuda.current_device() if on_gpu else None)
    with built:
        files = fn.external_source(source=parts, cycle=True, batch=True)
        built.set_outputs(fn.decoders.image(files, **options))
    built.build()

    def run() -> None:
        for _ in parts:
            (images,) = built.run()
            if not on_gpu:
                for i in range(len(images)):
                    np.asarray(images[i])
        if on_gpu:
            torch.cuda.synchronize()

    return run


# ---------------------------------------------------------------- sides


def rival_sides(index: Index, num_images: int, scratch: Path, worker_counts: list[int]) -> Iterator[Side]:
    """Other people's loaders on the same shards, one side for each number of workers."""
    here = installed()
    if index.kind != "tar":
        print("WARNING: --images names no shards: other loaders are not measured", file=sys.stderr)
        return
    if not here["torchvision"]:
        print("WARNING: torchvision is not installed: other loaders are not measured (see --help)", file=sys.stderr)
        return
    shards = [index.files[i] for i in range(len(index.files))]
    rivals = list(torchvision_loaders(unpack(shards, scratch), num_images, BATCH, worker_counts))
    if here["webdataset"]:
        rivals += webdataset_loaders(shards, num_images, BATCH, worker_counts)
    else:
        print("WARNING: webdataset is not installed: its loader is not measured (see --help)", file=sys.stderr)
    for rival in rivals:
        about = {"workers": rival.num_workers, "versions": rival.versions}
        yield Side("together", rival.name, rival.epoch, num_images, about=about)


def sides(
    index: Index, encoded: list[bytes], images: list[Tensor], pool: ThreadPoolExecutor, arguments: argparse.Namespace
) -> Iterator[Side]:
    sample_ids = [i % len(index) for i in range(len(encoded))]
    yield Side("read", "ours", partial(reading, index, sample_ids, pool), len(encoded))
    configs = {"nvimgcodec": DecodeConfig(backend="nvimgcodec"), "pillow": DecodeConfig(backend="pillow")}
    with_codec, with_dali = (_has_nvidia(name) for name in ("nvimgcodec", "dali"))
    if not with_codec:
        del configs["nvimgcodec"]
    if not (with_codec and with_dali):
        print("WARNING: DALI or nvImageCodec is not installed: pip install 'webssl_fast[dali]'", file=sys.stderr)
    if arguments.device == "cuda":
        configs["nvimgcodec_gpu"] = DecodeConfig(device="gpu", hardware_share=arguments.hardware_share)
    else:
        print("WARNING: no GPU, or --device cpu: decoding and cropping there are not measured", file=sys.stderr)
    for name, config in configs.items():
        decoder = make_decoder(config, arguments.threads)
        yield Side("decode", name, partial(decoding, decoder, encoded, pool), len(encoded), decoder.device.type)
    if with_dali:
        yield Side("decode", "dali", dali(encoded, arguments.threads, None), len(encoded))
    if with_dali and arguments.device == "cuda":
        run = dali(encoded, arguments.threads, arguments.hardware_share)
        yield Side("decode", "dali_mixed", run, len(encoded), "cuda")
    for device in ("cpu", "cuda") if arguments.device == "cuda" else ("cpu",):
        there = [image.to(device) for image in images]
        yield Side("augment", f"ours_{device}", partial(augmenting, there, arguments.threads), len(there), device)
        decode = configs["nvimgcodec_gpu"] if device == "cuda" else DecodeConfig()
        batch = min(BATCH, len(index))
        options: dict[str, Any] = {"global_batch_size": batch, "micro_batch_size": batch}
        loader = TrainLoader(
            index, DataConfig(decode=decode), RECIPES, seed=0, num_threads=arguments.threads, **options
        )
        num_steps = max(1, len(encoded) // batch)
        about = {"decoder": make_decoder(decode).name}
        yield Side(
            "together", f"loader_{device}", partial(loading, loader, num_steps), num_steps * batch, device, about
        )


def _has_nvidia(name: str) -> bool:
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec(f"nvidia.{name}"))


def main() -> None:
    parser = argument_parser(__doc__, repeats=7)
    parser.epilog = (__doc__ or "").partition("\n\n")[2]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    measured_stages = parser.add_mutually_exclusive_group(required=True)
    measured_stages.add_argument("--storage", action="store_true", help="measure storage and index, not the stages")
    measured_stages.add_argument("--images", help="a folder or tar pattern of images that every decoder can read")
    parser.add_argument("--num-images", type=int, default=256, help="images of a timed run; short folders are repeated")
    parser.add_argument(
        "--hardware-share", type=float, default=DecodeConfig().hardware_share, help="of a batch, for the JPEG engine"
    )
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of the HTTP server (default: %(default)s)")
    parser.add_argument("--storage-threads", type=int, default=16, help="that read shards (default: %(default)s)")
    parser.add_argument("--scratch", help="a folder on the disk to measure (default: the system's for such files)")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 2, 4], help="processes of other loaders (default: 1 2 4)"
    )
    arguments = parser.parse_args()
    if arguments.storage:
        measure_index(arguments)
        measure_storage(arguments)
        return

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        measure_stages(arguments, Path(scratch))


def measure_stages(arguments: argparse.Namespace, scratch: Path) -> None:
    """Prints a line for each stage and side."""
    index, reader = Index.open(arguments.images), SampleReader()
    encoded = [reader.read(index.locate(i % len(index))) for i in range(arguments.num_images // BATCH * BATCH)]
    pool = ThreadPoolExecutor(arguments.threads)
    images = decoding(make_decoder(DecodeConfig()), encoded, pool)
    measured = list(rival_sides(index, len(encoded), scratch, arguments.workers))
    measured += sides(index, encoded, images, pool, arguments)
    # By the clock also on a GPU: host and GPU work together, and each side waits for the GPU.
    timings = time_interleaved({side.key: side.run for side in measured}, arguments.repeats)
    ours = next(side for side in measured if side.name == "loader_cpu")
    for side in measured:
        timing = timings[side.key]
        compared = {}
        if "workers" in side.about:
            share = ours.num_images / side.num_images
            compared = {
                "ours_over_it": share * timing.p50_ms / timings[ours.key].p50_ms,
                "ours_over_it_cpu": share * timing.cpu_ms / timings[ours.key].cpu_ms,
            }
        emit(
            "data",
            record=arguments.record,
            device=side.device,
            stage=side.stage,
            side=side.name,
            images_per_second=1e3 * side.num_images / timing.p50_ms,
            p20_images_per_second=1e3 * side.num_images / timing.p80_ms,
            p80_images_per_second=1e3 * side.num_images / timing.p20_ms,
            cpu_ms_per_image=timing.cpu_ms / side.num_images,
            **compared,
            **side.about,
            threads=arguments.threads,
            repeats=arguments.repeats,
            hardware_share=arguments.hardware_share if side.device == "cuda" else None,
            mean_height_px=float(np.mean([image.shape[0] for image in images])),
            mean_width_px=float(np.mean([image.shape[1] for image in images])),
            mean_kib=float(np.mean([len(data) for data in encoded])) / 1024,
        )


if __name__ == "__main__":
    main()
