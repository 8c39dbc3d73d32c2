from __future__ import annotations

import pytest

from webssl_fast.evals.vqa.answer_text import (
    after_announcement,
    is_within_5_percent,
    lettered,
    number,
    option_letter,
    option_text,
)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "b"),
        ("b.", "b"),
        ("(B)", "b"),
        ("(B).", "b"),
        ("B. the dog", "b"),
        ("  C:\n", "c"),
        ("The answer is B.", "b"),
        ("The answer is A. No, the answer is (D)", "d"),
        ("Answer: C", "c"),
        ("The answer is: B", ":"),  # what the protocol's code makes of it
        ("I think it is B", "i"),
        ("", ""),
        ("...", ""),
        ("()", ""),
        ("The answer is", ""),
        ("Ä", "ä"),
        ("答案是B", "答"),
    ],
)
def test_option_letter(text: str, letter: str):
    assert option_letter(text) == letter


def test_marks_at_the_end_differ_between_benchmarks():
    assert option_letter("(b,", ".:,") == option_letter("(b,", ".") == "b"
    assert option_text("b:", ".:,") == "b" and option_text("b:", ".") == "b:"
    assert option_letter(":", ".:,") == "" and option_letter(":", ".") == ":"


def test_an_option_s_text_is_kept_whole():
    assert option_text("The answer is: (On the mat).") == ": (on the mat"
    assert option_text("(On the mat).") == "on the mat"


def test_after_announcement_takes_the_last():
    assert after_announcement("Answer: 3. So the answer is 4") == "4"
    assert after_announcement("The answer is 4. Answer: 5 ") == "5"
    assert after_announcement(" Nothing Announced ") == "nothing announced"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-2.5", -2.5),
        ("1e3", 1000),
        (" 7 ", 7),
        ("12%", None),
        ("1,200", None),
        ("", None),
        ("3 or 4", None),
    ],
)
def test_number(text: str, value: float | None):
    assert number(text) == value


def test_within_5_percent():
    assert is_within_5_percent(105, of=100) and is_within_5_percent(-95, of=-100) and is_within_5_percent(0, of=0)
    assert not is_within_5_percent(105.1, of=100) and not is_within_5_percent(0.01, of=0)
    assert not any(is_within_5_percent(number(text), of=1.0) for text in ("nan", "inf", "-inf", "one"))
    assert not is_within_5_percent(1.0, of=number("inf")) and not is_within_5_percent(1.0, of=None)


def test_lettered():
    assert lettered(["x", "y"]) == "\nA. x\nB. y"
    assert lettered([]) == ""
