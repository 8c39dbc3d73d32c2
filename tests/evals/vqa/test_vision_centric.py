from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.evals.vqa.answered import answered
from tests.evals.vqa.tiny_benchmarks import write_mmvp
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import LETTER_ONLY
from webssl_fast.evals.vqa.vision_centric import (
    load_cv_bench_2d,
    load_cv_bench_3d,
    load_mmvp,
    load_realworldqa,
    score_cv_bench_2d,
    score_cv_bench_3d,
    score_mmvp,
    score_realworldqa,
)


def test_mmvp_questions(tiny_benchmarks: Path):
    questions = load_mmvp(tiny_benchmarks / "mmvp")
    assert questions[2].prompt == f"Where is the cat? Options:\nA. On the mat\nB. Under the mat\n{LETTER_ONLY}"
    assert [dict(each.truth) for each in questions[1:3]] == [
        {"answer": "b", "text": "Closed", "pair": 0},
        {"answer": "b", "text": "Under the mat", "pair": 1},
    ]


def test_mmvp_wants_both_of_a_pair():
    def row(answer: str, letter: str, text: str, pair: int):
        return answer, {"answer": letter, "text": text, "pair": pair}

    rows = [
        row("A", "a", "Open", 0),
        row("(b) Closed", "b", "Closed", 0),
        row("under the mat.", "b", "Under the mat", 1),
        row("(A)", "a", "On the mat", 1),
        row("(B).", "b", "No", 2),
    ]
    # The second is neither letter nor text; the fifth's other half is not there.
    assert score_mmvp(answered(*rows)) == {"mmvp": 50, "mmvp_questions": 80}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1", "Open?", "(a) Yes (b) No", "(c)"], r"expected are rows such as"),
        (["x", "Open?", "(a) Yes (b) No", "(a)"], r"expected are rows such as"),
        (["1", "Open?"], r"expected are rows such as"),
        (["9", "Open?", "(a) Yes (b) No", "(a)"], r"question 9 asks of .*9.jpg, which is not there"),
    ],
)
def test_mmvp_rejects_damaged_rows(tmp_path: Path, row: list[str], message: str):
    write_mmvp(tmp_path)
    with open(tmp_path / "mmvp/Questions.csv", "a", newline="") as file:
        csv.writer(file).writerow(row)
    with pytest.raises(UserError, match=message):
        load_mmvp(tmp_path / "mmvp")


def test_mmvp_rejects_other_columns(tmp_path: Path):
    write_mmvp(tmp_path)
    (tmp_path / "mmvp/Questions.csv").write_text("Index,Question,Choices,Answer\n1,a,b,c\n")
    with pytest.raises(UserError, match=r"Questions.csv has the columns \['Index', 'Question', 'Choi.*expected are"):
        load_mmvp(tmp_path / "mmvp")


def test_realworldqa_takes_the_first_word(tiny_benchmarks: Path):
    truths = [each.truth for each in load_realworldqa(tiny_benchmarks / "realworldqa")]
    rows = [("b", truths[0]), ("B and only B", truths[0]), ("B. Right", truths[0]), ("3.", truths[1]), ("", truths[2])]
    assert score_realworldqa(answered(*rows)) == {"realworldqa": 60}


def test_realworldqa_asks_as_it_is_written(tiny_benchmarks: Path):
    question = load_realworldqa(tiny_benchmarks / "realworldqa")[1]
    assert question.prompt == "How many lanes? Please answer directly with a single word or number."


def test_cv_bench_2d_is_the_mean_of_its_sources(tiny_benchmarks: Path):
    questions = load_cv_bench_2d(tiny_benchmarks / "cv_bench")
    assert questions[0].prompt.endswith(f"\n(C) 2\n{LETTER_ONLY}") and questions[0].truth["answer"] == "C"
    answers = ["(C)", "B", "B"]  # ADE20K one of two, COCO none of one
    scores = score_cv_bench_2d(answered(*zip(answers, (each.truth for each in questions), strict=True)))
    assert scores == {"cv_bench_2d": 25, "cv_bench_2d_ade20k": 50, "cv_bench_2d_coco": 0}


def test_cv_bench_3d_is_accuracy(tiny_benchmarks: Path):
    questions = load_cv_bench_3d(tiny_benchmarks / "cv_bench")
    scores = score_cv_bench_3d(answered(("b", questions[0].truth), ("(B)", questions[1].truth)))
    assert scores == {"cv_bench_3d": 50, "cv_bench_3d_omni3d": 50}
