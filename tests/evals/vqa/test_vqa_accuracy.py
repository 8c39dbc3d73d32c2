from __future__ import annotations

from itertools import combinations

import pytest

from webssl_fast.evals.vqa.vqa_accuracy import normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("a", ""),
        ("Ten", "10"),
        ("none", "0"),
        ("Two dogs, an owl and the cat?", "2 dogs owl and cat"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        ("t-shirt", "t shirt"),
        ("a - b-c", "bc"),  # one hyphen beside a space, and all are removed
        ("stop!", "stop"),
        ("(left)", "left"),
        ("dont", "don't"),
        ("im", "im"),
        ("John's", "john 's"),
        ("12\n34\tx", "12 34 x"),
        ("50%", "50%"),
        ("$5 & up", "$5 & up"),
        ("?!", ""),
        ("", ""),
        ("Çağ", "çağ"),
    ],
)
def test_normalised(text: str, expected: str):
    assert normalised(text) == expected


def agreement(answer: str, truths: list[str]) -> float:
    """VQA's definition: the mean, over the choices of nine of ten people, of min(1, a third of those who agree)."""
    choices = list(combinations(truths, len(truths) - 1))
    return sum(min(1, chosen.count(answer) / 3) for chosen in choices) / len(choices)


@pytest.mark.parametrize(("num_agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_matches_the_definition(num_agree: int, expected: float):
    truths = ["red"] * num_agree + [f"other {i}" for i in range(10 - num_agree)]
    assert vqa_accuracy("Red.", truths) == pytest.approx(agreement("red", truths)) == pytest.approx(expected)


def test_truths_are_normalised_too():
    assert vqa_accuracy("10", ["Ten"] * 3 + ["the ten"] * 7) == 1.0
    assert vqa_accuracy("dont walk", ["don't walk"] * 10) == 1.0


def test_other_numbers_of_truths():
    assert vqa_accuracy("x", ["x"] * 4) == 1.0
    assert vqa_accuracy("x", ["x"]) == 0.0  # nobody else agrees
    assert vqa_accuracy("x", []) == 0.0
