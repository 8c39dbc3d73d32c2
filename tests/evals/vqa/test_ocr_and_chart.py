from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.evals.vqa.answered import answered
from webssl_fast.evals.vqa.answer_text import SHORT_ANSWER
from webssl_fast.evals.vqa.ocr_and_chart import (
    CHARTQA_INSTRUCTION,
    DIRECT_ANSWER,
    HANDWRITTEN_FORMULAS,
    anls,
    docvqa_submission,
    is_right_in_chartqa,
    is_right_in_ocrbench,
    load_chartqa,
    load_docvqa,
    load_docvqa_test,
    load_ocrbench,
    load_textvqa,
    score_chartqa,
    score_docvqa,
    score_ocrbench,
    score_textvqa,
)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("42", "40", True),  # exactly 5%
        ("42.1", "40", False),
        ("38.0", "40", True),
        ("-2.4", "-2.5", True),
        ("blue", "Blue", True),
        ("blue.", "Blue", False),
        ("12%", "12%", True),
        ("12", "12%", False),
        ("0.12", "12%", False),
        ("12%", "12", False),
        ("40 or 41", "40", False),
        ("0", "0", True),
        ("0.001", "0", False),
        ("nan", "40", False),
        ("", "40", False),
    ],
)
def test_chartqa_is_relaxed(answer: str, truth: str, right: bool):
    assert is_right_in_chartqa(answer, truth) is right


def test_chartqa(tiny_benchmarks: Path):
    questions = load_chartqa(tiny_benchmarks / "chartqa")
    assert questions[0].prompt == f"How many in 2010?\n{CHARTQA_INSTRUCTION}" and questions[0].max_new_tokens == 128
    rows = [("41", questions[0].truth), ("red", questions[1].truth), ("12%", questions[2].truth)]
    scores = score_chartqa(answered(*rows))
    assert scores == {"chartqa": pytest.approx(200 / 3), "chartqa_human": 50, "chartqa_augmented": 100}


@pytest.mark.parametrize(
    ("answer", "truths", "question_type", "right"),
    [
        ("The sign says Centre.", ["CENTRE"], "Regular Text Recognition", True),
        ("center", ["CENTRE"], "Regular Text Recognition", False),
        ("exit\n12", ["exit 12"], "Scene Text-centric VQA", True),
        ("it is 12", ["exit 13", "12"], "Scene Text-centric VQA", True),
        ("$x^{2}+Y$", ["x ^ { 2 } + Y"], HANDWRITTEN_FORMULAS, True),
        ("x^{2}+y", ["x ^ { 2 } + Y"], HANDWRITTEN_FORMULAS, False),
        ("", ["x"], "Regular Text Recognition", False),
        ("anything", [""], "Regular Text Recognition", False),
        ("anything", [], "Regular Text Recognition", False),
    ],
)
def test_ocrbench_looks_for_the_truth_in_the_answer(answer: str, truths: list[str], question_type: str, right: bool):
    assert is_right_in_ocrbench(answer, truths, question_type) is right


def test_ocrbench(tiny_benchmarks: Path):
    questions = load_ocrbench(tiny_benchmarks / "ocrbench")
    assert questions[0].prompt == f"what is written in the image?\n{DIRECT_ANSWER}"
    scores = score_ocrbench(answered(("centre", questions[0].truth), ("?", questions[2].truth)))
    assert scores == {"ocrbench": 50, "ocrbench_regular_text_recognition": 100, "ocrbench_scene_text-centric_vqa": 0}


def test_textvqa(tiny_benchmarks: Path):
    first, second = load_textvqa(tiny_benchmarks / "textvqa")
    assert first.prompt == f"what is the brand?\nReference OCR tokens: dakota, DIGITAL\n{SHORT_ANSWER}"
    assert second.prompt == f"what number is it?\nReference OCR tokens:\n{SHORT_ANSWER}"
    rows = [("Digital", first.truth), ("Dakota", first.truth), ("Five.", second.truth)]
    assert score_textvqa(answered(*rows)) == {"textvqa": pytest.approx(100 * (0.3 + 1 + 1) / 3)}


@cache
def distance(one: str, other: str) -> int:
    """Levenshtein's, as it is defined."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return distance(one[1:], other[1:])
    return 1 + min(distance(one[1:], other), distance(one, other[1:]), distance(one[1:], other[1:]))


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("1/8/93", "1/8/93"), ("1/8/98", "1/8/93"), ("P Carter", "P. Carter"), ("kitten", "sitting"), ("ab", "ac"),
     ("abc", "xyz"), ("", "x"), ("Straße", "strasse"), ("the date is 1993", "1993")],
)  # fmt: skip
def test_anls_matches_its_definition(answer: str, truth: str):
    one, other = answer.lower().strip(), truth.lower().strip()
    similarity = 1 - distance(one, other) / max(len(one), len(other))
    assert anls(answer, [truth]) == pytest.approx(similarity if similarity >= 0.5 else 0.0)


def test_anls_takes_the_best_truth():
    assert anls(" KITTEN ", ["sitting", "kitten"]) == 1.0
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("ab", ["ac"]) == 0.5  # one half still counts
    assert anls("", [""]) == 1.0 and anls("x", []) == 0.0


def test_docvqa(tiny_benchmarks: Path):
    questions = load_docvqa(tiny_benchmarks / "docvqa")
    assert questions[0].prompt == f"What is the date?\n{DIRECT_ANSWER}" and questions[0].max_new_tokens == 128
    rows = [("1/8/98", questions[0].truth), ("p carter", questions[1].truth), ("no idea", questions[2].truth)]
    assert score_docvqa(answered(*rows)) == {"docvqa": pytest.approx(100 * (5 / 6 + 8 / 9 + 0) / 3)}


def test_docvqa_test_has_no_truth(tiny_benchmarks: Path):
    questions = load_docvqa_test(tiny_benchmarks / "docvqa")
    assert [dict(each.truth) for each in questions] == [{}, {}]
    rows = answered(("1993", {}), ("x\n", {}))
    assert docvqa_submission(rows) == [{"questionId": 0, "answer": "1993"}, {"questionId": 1, "answer": "x"}]
