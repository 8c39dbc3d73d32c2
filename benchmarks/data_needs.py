"""What 256 H100s need of storage, network and decoding, on paper, for docs/data.md (`python -m benchmarks.tables`).

The rate of a run is `webssl plan`'s at its stated MFU, the cost of an image on a core that of bench_data's lines.
"""

from __future__ import annotations

from benchmarks.plan_tables import planned

NUM_GPUS, GPUS_OF_A_NODE = 256, 8
CONFIGS = ("webdino_300m_mc2b", "webdino_7b_mc2b")
IMAGE_KB = 100  # assumed of a web image at its own size; the paper does not tell MC-2B's
DATA_SET_IMAGES = 2_000_000_000
# nvJPEG and DALI on an A100, images of about 0.4 megapixels: pytorch/vision issue 8496 (7,800), NVIDIA/DALI issue
# 5362 (7,000 with three quarters of the batch for the engine). We know none of an H100.
A100_JPEGS_PER_S = 7_000


def stored(bytes_per_sample: float) -> list[list[str]]:
    """Sizes of what lies on storage, given an index line's bytes a sample."""
    return [
        ["images", "bytes of an image (assumed)", "shards", "index"],
        [
            f"{DATA_SET_IMAGES:,}",
            f"{IMAGE_KB} KB",
            f"{DATA_SET_IMAGES * IMAGE_KB / 1e9:,.0f} TB",
            f"{DATA_SET_IMAGES * bytes_per_sample / 1e9:.0f} GB",
        ],
    ]


def needs(
    measured_kb: float, decode_ms: float, loader_ms: float, requests_per_image: dict[int, float]
) -> list[list[str]]:
    """A row for each config.

    decode_ms, loader_ms   of a core for an image of measured_kb, decoded alone and with its ten crops: decoding is
                           taken to go with the bytes, the rest to stay
    requests_per_image     by data.shuffle_run
    """
    needed_decode_ms = decode_ms * IMAGE_KB / measured_kb
    needed_loader_ms = loader_ms - decode_ms + needed_decode_ms
    header = [
        f"{NUM_GPUS} H100",
        "images/s (a GPU)",
        "storage, GB/s (a node of 8)",
        "read in all",
        *(f"requests/s, `shuffle_run` {length}" for length in requests_per_image),
        "cores a GPU, decode",
        "cores a GPU, decode and crops",
        f"of the {A100_JPEGS_PER_S:,} JPEGs/s published of an A100",
    ]
    rows = [header]
    for name in CONFIGS:
        plan = planned(name, NUM_GPUS)
        train = plan.config.train
        rate = train.global_batch_size / plan.seconds_per_step
        rate_gpu = rate / NUM_GPUS
        rows.append(
            [
                f"`{name}`, MFU {plan.mfu:.0%} (assumed)",
                f"{rate:,.0f} ({rate_gpu:,.0f})",
                f"{rate * IMAGE_KB / 1e6:.2f} ({rate_gpu * GPUS_OF_A_NODE * IMAGE_KB / 1e6:.3f})",
                f"{train.num_steps * train.global_batch_size * IMAGE_KB / 1e9:,.0f} TB",
                *(f"{rate * share:,.0f}" for share in requests_per_image.values()),
                f"{rate_gpu * needed_decode_ms / 1e3:.2f}",
                f"{rate_gpu * needed_loader_ms / 1e3:.2f}",
                f"{rate_gpu / A100_JPEGS_PER_S:.1%}",
            ]
        )
    return rows
