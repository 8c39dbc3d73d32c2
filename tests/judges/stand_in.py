"""A judge that costs nothing, for tests of what is around judges: the brighter an image, the surer it is of text."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from webssl_fast.config.filter import OcrConfig
from webssl_fast.judges.base import JudgeKind, Scores, Unjudged

SECONDS_AN_IMAGE = "WEBSSL_TEST_SECONDS_AN_IMAGE"  # environment variable: so that a kill meets it at work
TOO_SMALL_PX = 8


class StandIn:
    batch_size = 3

    def __init__(self, config: OcrConfig):
        self._pause_s = float(os.environ.get(SECONDS_AN_IMAGE, 0))

    def prepare(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(images)

    def judge(self, prepared: Sequence[np.ndarray]) -> list[Scores | Unjudged]:
        time.sleep(self._pause_s * len(prepared))
        return [self._judge(image) for image in prepared]

    def _judge(self, image: np.ndarray) -> Scores | Unjudged:
        if min(image.shape[:2]) < TOO_SMALL_PX:
            return Unjudged("too small")
        return {"brightness": float(image.mean()) / 255, "note": f"{image.shape[1]} wide"}


def answers(scores, thresholds):
    """light by thresholds.confidence, heavy by heavy_area_share."""
    return (
        scores["brightness"] >= np.float32(thresholds.confidence),
        scores["brightness"] >= np.float32(thresholds.heavy_area_share),
    )


def columns(config: OcrConfig) -> dict[str, str]:
    return {"brightness": "float32", "note": "string"}


def check(config: OcrConfig) -> dict[str, str]:
    return {"stand_in": "1"}


KIND = JudgeKind(check=check, load=StandIn, columns=columns, answers=answers, heavy="very bright")
