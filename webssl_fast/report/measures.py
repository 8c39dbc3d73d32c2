"""The columns of the paper's classic-vision table: which result belongs where, and how it departs from the protocol.

The defaults of config/schema.py are the protocols of "lin." and "lin. 1"; what the others change stands here, and a
test holds it to configs/eval/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from webssl_fast.config.schema import EvalConfig
from webssl_fast.report.result_files import Result

# Settings that move no score, or that are told of as data.
IRRELEVANT = {
    "source",
    "train_source",
    "val_source",
    "test_source",
    "allow_subset",
    "num_pictures",
    "windows_per_pass",
    "encode_batch_size",
    "save_every",
}


@dataclass(frozen=True)
class Measure:
    """A column. `scores` are those of the result file that give its value, the first that is there; `factor` brings
    them to `unit`; `sizes` are those of the whole data; `protocol` is what differs from the schema's defaults."""

    name: str
    data: str
    title: str
    unit: str
    evaluation: str
    scores: tuple[str, ...]
    factor: float
    decimals: int
    sizes: dict[str, int]
    protocol: dict[str, Any]

    def value(self, result: Result) -> float | None:
        """In `unit`; None where the result belongs to another column."""
        if result.evaluation != self.evaluation or not self._is_meant(result.config):
            return None
        return next((self.factor * result.scores[name] for name in self.scores if name in result.scores), None)

    def departures(self, result: Result) -> list[str]:
        """Why the value is no match for the published ones, in words; empty where it is."""
        found = ["a subset of the data"] if result.is_subset else []
        for key, size in self.sizes.items():
            if (own := result.data.get(key)) != size:
                own = f"{own:,}" if isinstance(own, int) else "an unknown number of"
                found.append(f"{own} {key.replace('_', ' ')} instead of {size:,}")
        published = EvalConfig().model_dump(mode="json").get(self.evaluation, {}) | self.protocol
        for key, value in published.items():
            if key not in IRRELEVANT and result.config.get(key, value) != value:
                found.append(f"{key} {json.dumps(result.config[key])} instead of {json.dumps(value)}")
        return found

    def _is_meant(self, config: dict[str, Any]) -> bool:
        """Of two columns of one evaluation, segmentation at several scales is +ms, depth goes by its blocks."""
        if self.evaluation == "segmentation":
            scales = config.get("test_scales")
            return (isinstance(scales, list) and len(scales) > 1) == ("test_scales" in self.protocol)
        if self.evaluation == "depth":
            return config.get("num_blocks") == self.protocol["num_blocks"]
        return True


MULTISCALE = {
    "num_last_blocks": 4,
    "short_side_px": 640,
    "max_long_side_px": None,
    "train_scales": [1.0, 3.0],
    "crop_px": 640,
    "test_scales": [1.0, 1.32, 1.73, 2.28, 3.0],
    "test_flip": True,
    "stride_px": 320,
}
IMAGENET_SCORES = ("best_on_val/test_top1", "best_on_val/val_top1")

IMAGENET = {"train_images": 1_281_167, "val_images": 50_000, "classes": 1000}
ADE20K = {"train_images": 20_210, "test_images": 2000}
NYUD = {"train_images": 24_231, "test_images": 654}

MEASURES = (
    Measure(
        "imagenet1k_linear_probe",
        "ImageNet-1k",
        "linear",
        "% top-1",
        "linear_probe",
        IMAGENET_SCORES,
        100,
        2,
        IMAGENET,
        {},
    ),
    Measure("ade20k_linear", "ADE20K", "linear", "% mIoU", "segmentation", ("miou",), 100, 2, ADE20K, {}),
    Measure("ade20k_multiscale", "ADE20K", "+ms", "% mIoU", "segmentation", ("miou",), 100, 2, ADE20K, MULTISCALE),
    *(
        Measure(f"nyud_lin{n}", "NYUd v2", f"lin. {n}", "m RMSE", "depth", ("rmse",), 1, 3, NYUD, protocol)
        for n in (1, 4)
        for protocol in [{"num_blocks": n, "pick_best_every": 800}]
    ),
)
