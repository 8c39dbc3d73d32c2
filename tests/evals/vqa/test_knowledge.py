from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.vqa.answered import answered
from tests.evals.vqa.tiny_benchmarks import encoded, write_rows
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import LETTER_ONLY, SHORT_ANSWER
from webssl_fast.evals.vqa.knowledge import (
    MATHVISTA_CHOICE,
    SCIENCEQA_INSTRUCTION,
    is_right_in_scienceqa,
    is_same_or_close,
    load_ai2d,
    load_mathvista,
    load_mmmu,
    load_scienceqa,
    score_ai2d,
    score_mathvista,
    score_mmmu,
    score_scienceqa,
)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("12", "12", True),
        ("12.5", "12", True),  # |12 - 12.5| = 0.5 <= 0.05 * 12.5
        ("11.45", "12", True),  # 0.55 <= 0.5725
        ("11.4", "12", False),  # 0.6 > 0.57, though it is 5% of the truth
        ("12.63", "12", True),  # 0.63 <= 0.6315, though it is more than 5% of the truth
        ("0", "0.0", True),
        ("0", "0.01", False),
        ("12%", "12", False),
        ("yes", "Yes", True),
        ("", "0", False),
    ],
)
def test_numbers_are_within_5_percent_of_the_answer(answer: str, truth: str, right: bool):
    assert is_same_or_close(answer, truth) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("b.", True),
        ("B. They attract.", True),
        ("The answer is B", True),
        ("they attract", True),
        ("They, attract!", True),
        ("B) They attract", False),
        ("B They attract.", False),
        ("A", False),
        ("", False),
        ("?!", False),
    ],
)
def test_scienceqa_takes_letter_or_text(answer: str, right: bool):
    assert is_right_in_scienceqa(answer, "B", "They attract.") is right


def test_scienceqa_of_nothing_but_punctuation_is_never_right():
    assert not is_right_in_scienceqa("", "B", "?") and not is_right_in_scienceqa("!", "B", "?")


def test_scienceqa_asks_the_rows_with_an_image(tiny_benchmarks: Path):
    questions = load_scienceqa(tiny_benchmarks / "scienceqa")
    assert [each.id for each in questions] == ["0", "2", "3"]
    assert questions[0].prompt == (
        f"Two magnets. Do they attract?\nA. They repel.\nB. They attract.\n{SCIENCEQA_INSTRUCTION}"
    )
    assert questions[1].prompt == f"Which is north?\nA. Ohio\nB. Maine\nC. Utah\n{SCIENCEQA_INSTRUCTION}"
    assert score_scienceqa(answered(("b", questions[0].truth), ("b", questions[2].truth))) == {"scienceqa": 50}


def test_mmmu_shows_one_image_and_whole_options(tiny_benchmarks: Path):
    questions = load_mmmu(tiny_benchmarks / "mmmu")
    assert questions[0].prompt == f"Which style is it? Options:\nA. Cubism\nB. Baroque\nC. Gothic\n{LETTER_ONLY}"
    assert questions[1].prompt == f"Whose law is in ? Options:\nA. Ohm's law\nB. Snell\nC. Hooke\n{LETTER_ONLY}"
    assert questions[2].prompt == f"What is the sum in  and ?\n{SHORT_ANSWER}"
    assert questions[3].prompt == f"Name it: \n{SHORT_ANSWER}"


def test_mmmu_scores_letters_and_open_answers():
    choice, opened = {"answer": "B", "is_choice": True}, {"answer": "12.5", "is_choice": False}
    rows = [("(B) because", choice), ("C", choice), ("The answer is 12.6.", opened), ("about 12.5", opened)]
    assert score_mmmu(answered(*rows)) == {"mmmu": 50}


def test_mmmu_rejects_options_that_are_no_list(tmp_path: Path):
    row = {"id": "v_1", "question": "?", "options": "['a', ", "question_type": "multiple-choice", "answer": "A",
           "image_1": encoded("x")}  # fmt: skip
    write_rows(tmp_path / "data/validation-0.parquet", [row], images=["image_1"])
    with pytest.raises(UserError, match=r"v_1: options are no list of texts"):
        load_mmmu(tmp_path)


def test_mathvista_asks_for_reasoning_but_scores_the_whole_answer(tiny_benchmarks: Path):
    choice, free, _ = load_mathvista(tiny_benchmarks / "mathvista")
    assert choice.prompt.endswith(f"(B) right\n{MATHVISTA_CHOICE}") and choice.truth == {"answer": "B"}
    assert free.prompt == f"Question: How many are there?\n{SHORT_ANSWER}" and free.truth == {"answer": "12"}
    rows = [("b", choice.truth), ("The answer is B.", choice.truth), ("12.0", free.truth), ("twelve", free.truth)]
    assert score_mathvista(answered(*rows)) == {"mathvista": 50}


def test_mathvista_of_equal_choices_takes_the_last_letter(tmp_path: Path):
    row = {"query": "?", "question_type": "multi_choice", "choices": ["1", "2", "1"], "answer": "1",
           "decoded_image": encoded("x")}  # fmt: skip
    write_rows(tmp_path / "data/testmini-0.parquet", [row], images=["decoded_image"])
    assert load_mathvista(tmp_path)[0].truth == {"answer": "C"}
    write_rows(tmp_path / "data/testmini-0.parquet", [row | {"answer": "3"}], images=["decoded_image"])
    with pytest.raises(UserError, match=r"row 0: the answer '3' is none of"):
        load_mathvista(tmp_path)


def test_ai2d_takes_letter_or_place(tiny_benchmarks: Path):
    question = load_ai2d(tiny_benchmarks / "ai2d")[0]
    assert question.prompt == f"Which part is 2?\nA. leaf\nB. root\nC. stem\nD. seed\n{LETTER_ONLY}"
    rows = [("C", question.truth), ("2", question.truth), ("c) stem", question.truth), ("stem", question.truth)]
    assert score_ai2d(answered(*rows)) == {"ai2d": 75}
