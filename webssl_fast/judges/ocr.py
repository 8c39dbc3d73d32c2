"""Text found by PP-OCRv4 (PaddleOCR's mobile models), as the package rapidocr-onnxruntime carries it.

A detector outlines lines of text, a recogniser reads the largest of them. What the detector alone finds is no text
often enough (a cat's whiskers, a cell's edge); what can be read as two characters with some confidence is. The figures
that the defaults were chosen by are in docs/log.md.

Dimensions: B images, L lines of text, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from webssl_fast.config.filter import SURE_CONFIDENCE, OcrConfig, OcrThresholds
from webssl_fast.errors import UserError
from webssl_fast.judges.base import JudgeKind, Scores, Unjudged

MIN_CHARACTERS = 2  # a single one is often a ring or a stroke
MAX_ENLARGEMENT = 2  # times max_side_px, for the longer side of a narrow image whose shorter side is enlarged
COLUMNS = {"confidence": "float32", "num_lines": "int32", "area_share": "float32"}
HEAVY = "a proxy of charts, tables and documents: text was read, and it has many lines or covers much of the image"


def check(config: OcrConfig) -> dict[str, str]:
    """The version of the package, which carries the weights. Raises UserError where it is missing."""
    if find_spec("rapidocr_onnxruntime") is None:
        raise UserError(
            "judge.name=ocr needs the package rapidocr-onnxruntime, which is not installed: "
            "pip install 'webssl_fast[filter]' (on Python 3.10 to 3.12), or set judge.name=vlm"
        )
    return {"rapidocr_onnxruntime": version("rapidocr_onnxruntime")}


class OcrJudge:
    """confidence: the highest of a line of two characters or more, 0 where none was read; num_lines: that the detector
    outlines; area_share: of the image, within these outlines (which may overlap)."""

    batch_size = 8  # decoded at once; they are judged one by one, since their sizes differ

    def __init__(self, config: OcrConfig):
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise UserError(
                f"rapidocr-onnxruntime does not import ({error}). Where libGL is missing, as on many servers: "
                "pip uninstall opencv-python; pip install opencv-python-headless"
            ) from error
        self._config = config
        self._ocr = RapidOCR(
            max_side_len=config.max_side_px,
            det_limit_type="min",  # of which the detector's limit_side_len is set for each image
            intra_op_num_threads=config.num_threads,
            inter_op_num_threads=1,
        )

    def prepare(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The images in BGR, as OpenCV has them."""
        return [np.ascontiguousarray(image_HW3[:, :, ::-1]) for image_HW3 in images]

    def judge(self, prepared: Sequence[np.ndarray]) -> list[Scores | Unjudged]:
        judged: list[Scores | Unjudged] = []
        for bgr_HW3 in prepared:
            try:
                judged.append(self._judge(bgr_HW3))
            except Exception as error:  # of OpenCV or onnxruntime, for an image of extreme shape
                judged.append(Unjudged(f"the OCR failed: {type(error).__name__}: {error}"))
        return judged

    def _judge(self, bgr_HW3: np.ndarray) -> Scores:
        short_px, long_px = sorted(bgr_HW3.shape[:2])
        bound_px = MAX_ENLARGEMENT * self._config.max_side_px * short_px // long_px
        self._ocr.text_det.limit_side_len = max(1, min(self._config.min_side_px, bound_px))
        found, _ = self._ocr(bgr_HW3, use_cls=False, use_rec=False)
        outlines_L42 = np.array(found or np.zeros((0, 4, 2)), np.float32)
        areas_L = _areas(outlines_L42)
        confidence = 0.0
        for line in np.argsort(-areas_L, kind="stable")[: self._config.max_lines_read]:
            confidence = max(confidence, self._read(bgr_HW3, outlines_L42[line]))
            if confidence >= SURE_CONFIDENCE:
                break
        share = float(areas_L.sum()) / (bgr_HW3.shape[0] * bgr_HW3.shape[1])
        return {"confidence": confidence, "num_lines": len(areas_L), "area_share": min(share, 1.0)}

    def _read(self, bgr_HW3: np.ndarray, outline_42: np.ndarray) -> float:
        """How sure it is of what it reads in a line; 0 where that is not worth the name of text."""
        (line_HW3,) = self._ocr.get_crop_img_list(bgr_HW3, [outline_42])
        if not line_HW3.size:
            return 0.0
        # Tall lines come turned by a right angle to one side, so some stand on their head: use_cls finds which.
        ((text, confidence),), _ = self._ocr(line_HW3, use_det=False, use_cls=True)
        return float(confidence) if len(text.strip()) >= MIN_CHARACTERS else 0.0


def answers(scores: Mapping[str, np.ndarray], thresholds: OcrThresholds) -> tuple[np.ndarray, np.ndarray]:
    """bool [B] each: light and heavy."""
    light_B = scores["confidence"] >= np.float32(thresholds.confidence)
    many_B = scores["num_lines"] >= thresholds.heavy_num_lines
    large_B = scores["area_share"] >= np.float32(thresholds.heavy_area_share)
    return light_B, light_B & (many_B | large_B)


def _columns(config: OcrConfig) -> dict[str, str]:
    return COLUMNS


def _areas(outlines_L42: np.ndarray) -> np.ndarray:
    """Pixels [L] within polygons, by the shoelace formula."""
    x, y = outlines_L42[..., 0].astype(np.float64), outlines_L42[..., 1].astype(np.float64)
    return np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)) / 2


KIND = JudgeKind(check=check, load=OcrJudge, columns=_columns, answers=answers, heavy=HEAVY)
