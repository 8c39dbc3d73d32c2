"""Images per second from encoded bytes to uint8 RGB: our decoder, Pillow, and a DALI pipeline where it is installed.

    python -m benchmarks.bench_data --images FOLDER --threads 2

Real files are read once and decoded from memory, the decoders taking turns. DALI's CPU pipeline is the yardstick: it
fails a whole batch on one bad image, and reads no GIF. One JSON line each; `loader` is a whole training loader with the
DINOv2 recipe (2 x 224 + 8 x 98 crops), reading included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from benchmarks.provenance import provenance
from webssl_fast.config.schema import DataConfig, DecodeConfig
from webssl_fast.data.decode import BadImage, make_decoder
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import TrainLoader
from webssl_fast.data.read import SampleReader
from webssl_fast.records import CropRecipe

BATCH = 32
LOADER_STEPS = 4
GLOBAL_CROP = CropRecipe(
    224,
    scale=(0.32, 1.0),
    flip_probability=0.5,
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grayscale_probability=0.2,
)
LOCAL_CROP = replace(GLOBAL_CROP, size_px=98, scale=(0.05, 0.32), blur_probability=0.5)
RECIPES = [GLOBAL_CROP, replace(GLOBAL_CROP, blur_probability=0.9, solarize_probability=0.2), *[LOCAL_CROP] * 8]


def decoding(backend: str, encoded: list[bytes], num_threads: int) -> Callable[[], None]:
    decoder = make_decoder(DecodeConfig.model_validate({"backend": backend}))
    pool = ThreadPoolExecutor(num_threads)
    chunks = [encoded[i : i + 8] for i in range(0, len(encoded), 8)]

    def run() -> None:
        for images in pool.map(decoder.decode, chunks):
            assert not any(isinstance(image, BadImage) for image in images)

    return run


def dali(encoded: list[bytes], num_threads: int) -> Callable[[], None]:
    from nvidia.dali import Pipeline, fn

    arrays = [np.frombuffer(data, np.uint8) for data in encoded]
    batches = [arrays[i : i + BATCH] for i in range(0, len(arrays), BATCH)]

    built = Pipeline(BATCH, num_threads, device_id=None, prefetch_queue_depth=2)
    with built:
        files = fn.external_source(source=batches, cycle=True, batch=True)
        built.set_outputs(fn.decoders.image(files, device="cpu"))
    built.build()

    def run() -> None:
        for _ in batches:
            (images,) = built.run()
            for i in range(len(images)):
                np.asarray(images[i])

    return run


def loader(index: Index, num_threads: int) -> Callable[[], None]:
    batch = min(BATCH, len(index))
    options = {"global_batch_size": batch, "micro_batch_size": batch, "num_threads": num_threads}
    train_loader = TrainLoader(index, DataConfig(), RECIPES, seed=0, **options)  # type: ignore[arg-type]

    def run() -> None:
        for step in range(LOADER_STEPS):
            train_loader.batch(step)

    return run


def main() -> None:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_data",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="a folder or tar pattern of images that every decoder can read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-images", type=int, default=256, help="images of a timed run; short folders are repeated")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    index, reader = Index.open(arguments.images), SampleReader()
    encoded = [reader.read(index.locate(i % len(index))) for i in range(arguments.num_images // BATCH * BATCH)]
    sizes = [image.shape for image in make_decoder(DecodeConfig(backend="pillow")).decode(encoded[:64])]  # type: ignore[union-attr]
    sides = {"pillow": decoding("pillow", encoded, arguments.threads), "loader": loader(index, arguments.threads)}
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        sides["nvimgcodec"] = decoding("nvimgcodec", encoded, arguments.threads)
        sides["dali"] = dali(encoded, arguments.threads)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(arguments.repeats + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        num_images = LOADER_STEPS * min(BATCH, len(index)) if name == "loader" else len(encoded)
        result = {
            "benchmark": "data",
            "side": name,
            "images_per_second": round(num_images / statistics.median(times), 1),
            "images_per_second_best": round(num_images / min(times), 1),
            "threads": arguments.threads,
            "mean_height_px": round(float(np.mean([s[0] for s in sizes]))),
            "mean_width_px": round(float(np.mean([s[1] for s in sizes]))),
            "mean_kib": round(float(np.mean([len(data) for data in encoded])) / 1024, 1),
            **provenance(),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
