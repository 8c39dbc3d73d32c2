"""What the OCR's scores mean, and images that it cannot take. (How well it finds text is in test_filter_text.py.)"""

import sys

import numpy as np
import pytest

from tests.judges.labelled_images import labelled_images
from webssl_fast.config.filter import OcrConfig, OcrThresholds
from webssl_fast.errors import UserError
from webssl_fast.judges import ocr

pytest.importorskip("rapidocr_onnxruntime")
pytest.importorskip("matplotlib")


def test_thresholds_apply_to_raw_scores():
    scores = {
        "confidence": np.array([0.4, 0.6, 0.6, 0.6, np.nan], np.float32),
        "num_lines": np.array([9, 9, 1, 1, 0], np.int32),
        "area_share": np.array([0.5, 0.0, 0.3, 0.1, np.nan], np.float32),
    }
    light, heavy = ocr.answers(scores, OcrThresholds(confidence=0.5, heavy_num_lines=5, heavy_area_share=0.25))
    assert light.tolist() == [False, True, True, True, False]
    assert heavy.tolist() == [False, True, True, False, False]


def test_images_of_extreme_shape_do_not_stop_it():
    judge = ocr.OcrJudge(OcrConfig())
    shapes = [(1, 1), (1, 3000), (3000, 1), (2, 2), (40, 400)]
    for scores in judge.judge(judge.prepare([np.full((*shape, 3), 200, np.uint8) for shape in shapes])):
        assert isinstance(scores, ocr.Unjudged) or scores["confidence"] == 0.0


def test_narrow_images_are_not_enlarged_without_bound(monkeypatch):
    """A strip whose shorter side were enlarged to min_side_px would take gigabytes."""
    judge = ocr.OcrJudge(OcrConfig())
    sizes = []
    detect = judge._ocr.text_det.infer

    def measured(batch_1CHW):
        sizes.append(batch_1CHW.shape[2:])
        return detect(batch_1CHW)

    monkeypatch.setattr(judge._ocr.text_det, "infer", measured)
    shapes = [(1500, 50), (50, 1500), (3000, 40), (300, 400), (4000, 3000)]
    judge.judge(judge.prepare([np.full((*shape, 3), 200, np.uint8) for shape in shapes]))
    assert len(sizes) == len(shapes) and max(height * width for height, width in sizes) <= 1280 * 960
    assert sizes[3] == (640, 864), "rounded to multiples of 32"


def test_threads_of_onnxruntime_do_not_change_a_score():
    images = [np.asarray(image.image) for image in labelled_images(1)][-2:]
    found = []
    for num_threads in (1, 2):
        judge = ocr.OcrJudge(OcrConfig(num_threads=num_threads))
        found.append(judge.judge(judge.prepare(images)))
    assert found[0] == found[1]


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rapidocr-onnxruntime.*pip install 'webssl_fast\[filter\]'"):
        ocr.check(OcrConfig())
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(UserError, match="opencv-python-headless"):
        ocr.OcrJudge(OcrConfig())
