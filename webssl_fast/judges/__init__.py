"""Judges say of an image whether it contains text, for `webssl filter`: an OCR, or a vision-language model."""

from __future__ import annotations

from webssl_fast.judges import ocr, vlm
from webssl_fast.judges.base import JudgeKind

KINDS: dict[str, JudgeKind] = {"ocr": ocr.KIND, "vlm": vlm.KIND}  # by judge.name of the config
