"""`webssl filter` with the stand-in judge, as a program, so that a test can kill it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.data.image_files import encode, write_tar
from tests.judges import stand_in
from webssl_fast.config.filter import FilterConfig
from webssl_fast.recipes.filter import filter_images

FILES = ("scores.parquet", "light.subset", "heavy.subset", "summary.json")
BAD = {5: b"no image at all", 11: encode(np.full((60, 60, 3), 90, np.uint8))[:300]}


def write_source(folder: Path, num_shards: int = 2, num_samples: int = 12) -> str:
    """Shards of images of all shades; in the first number 5 is no image and number 11 is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for shard in range(num_shards):
        members = {}
        for i in range(num_samples):
            shade = int(255 * (i + 0.5 * shard % 1) / num_samples)
            noise = rng.integers(0, 9, (int(rng.integers(10, 40)), 30, 3))
            members[f"{shard}-{i:03d}.png"] = encode((shade + noise).clip(0, 255).astype(np.uint8), "PNG")
            if shard == 0 and i in BAD:
                members[f"{shard}-{i:03d}.png"] = BAD[i]
        write_tar(folder / f"{shard:03d}.tar", members)
    return f"{folder}/*.tar"


def config_of(source: str, output_dir: Path, **changes) -> FilterConfig:
    data = {"source": source, "decode": {"backend": "pillow"}, "read_attempts": 1, **changes.pop("data", {})}
    judge = {"thresholds": {"confidence": 0.4, "heavy_area_share": 0.8}, **changes.pop("judge", {})}
    return FilterConfig.model_validate(
        {
            "output_dir": str(output_dir),
            "data": data,
            "judge": {"name": "ocr", **judge},
            "samples_per_part": 4,
            **changes,
        }
    )


def bytes_of(output_dir: Path) -> dict[str, bytes]:
    return {name: (output_dir / name).read_bytes() for name in FILES}


if __name__ == "__main__":
    print("begins", flush=True)
    filter_images(config_of(sys.argv[1], Path(sys.argv[2]), executor={"num_workers": int(sys.argv[3])}), stand_in.KIND)
