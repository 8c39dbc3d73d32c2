"""Answered questions for the tests of scorers."""

from __future__ import annotations

from typing import Any

from webssl_fast.evals.vqa.question import Answered


def answered(*rows: tuple[str, dict[str, Any]]) -> list[Answered]:
    """Of pairs (answer, truth)."""
    return [Answered(str(i), "?", answer, truth) for i, (answer, truth) in enumerate(rows)]
