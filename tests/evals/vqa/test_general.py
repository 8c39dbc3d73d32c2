from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.evals.vqa.answered import answered
from tests.evals.vqa.tiny_benchmarks import write_gqa, write_mmbench, write_mme
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import LETTER_ONLY, SHORT_ANSWER
from webssl_fast.evals.vqa.general import (
    load_gqa,
    load_mmbench,
    load_mme,
    load_seed,
    score_gqa,
    score_mmbench,
    score_mme,
    score_seed,
)


def mme(category: str, pair: str, answer: str, truth: str):
    return answer, {"answer": truth, "category": category, "pair": pair}


def test_mme_counts_accuracy_and_pairs():
    scores = score_mme(
        answered(
            mme("count", "1", "Yes", "Yes"), mme("count", "1", "no.", "No"),  # a pair
            mme("count", "2", "Yes", "Yes"), mme("count", "2", "Yes", "No"),  # half of one
            mme("OCR", "1", "yes", "No"), mme("OCR", "1", "Yes, it is", "Yes"),  # neither
            mme("code_reasoning", "1", "No", "No"), mme("code_reasoning", "1", "YES", "Yes"),
        )
    )  # fmt: skip
    assert scores["mme_count"] == 100 * (3 / 4 + 1 / 2)
    assert scores["mme_ocr"] == 0
    assert scores["mme_perception"] == 125 and scores["mme_cognition"] == 200
    assert scores["mme"] == scores["mme_total"] == 325


def test_mme_pairs_need_not_stand_together_nor_be_whole():
    rows = [mme("count", "1", "Yes", "Yes"), mme("count", "2", "Yes", "Yes"), mme("count", "1", "No", "No")]
    assert score_mme(answered(*rows))["mme_count"] == 100 + 100  # of the one pair that is there
    assert score_mme(answered(rows[0]))["mme_count"] == 100


def test_mme_prompt(tiny_benchmarks: Path):
    question = load_mme(tiny_benchmarks / "mme")[0]
    assert question.prompt == f"Is there a circle in this image?\n{SHORT_ANSWER}"
    assert question.max_new_tokens == 32
    assert question.truth == {"answer": "Yes", "category": "existence", "pair": "existence/1.png"}


def test_mme_rejects_unknown_categories(tmp_path: Path):
    write_mme(tmp_path)
    path = tmp_path / "mme/data/test-00000-of-00002-a.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("category")
    pq.write_table(table.set_column(column, "category", [["smell"] * len(table)]), path)
    with pytest.raises(UserError, match=r"unknown categories \['smell'\]; MME has existence"):
        load_mme(tmp_path / "mme")


def test_mmbench_is_circular():
    rows = [("A", {"answer": "A", "group": "1"}), ("(B)", {"answer": "B", "group": "1"}),
            ("c", {"answer": "C", "group": "2"}), ("B", {"answer": "D", "group": "2"}),
            ("D. it is", {"answer": "D", "group": "3"})]  # fmt: skip
    scores = score_mmbench(answered(*rows))
    assert scores == {"mmbench": pytest.approx(200 / 3), "mmbench_rows": 80}


def test_mmbench_prompts_and_groups(tiny_benchmarks: Path):
    questions = load_mmbench(tiny_benchmarks / "mmbench")
    assert questions[0].prompt == (
        f"Which word is written? Options:\nA. lamp\nB. bread\nC. river\nD. cloud\n{LETTER_ONLY}"
    )
    assert questions[4].prompt == f"Look at the sky.\nIs it day? Options:\nA. day\nB. night\n{LETTER_ONLY}"
    assert [each.truth["answer"] for each in questions] == ["A", "D", "C", "B", "A", "B"]
    groups = [each.truth["group"] for each in questions]
    assert len(set(groups[:4])) == len(set(groups[4:])) == 1 and groups[0] != groups[4]
    assert questions[1].id == "1000007"


def test_mmbench_also_in_its_later_place(tmp_path: Path):
    write_mmbench(tmp_path)
    (tmp_path / "mmbench/data").rename(tmp_path / "mmbench/en")
    assert len(load_mmbench(tmp_path / "mmbench")) == 6


def test_seed_leaves_videos_out(tiny_benchmarks: Path):
    questions = load_seed(tiny_benchmarks / "seed")
    assert [each.id for each in questions] == ["0", "2", "3"]
    assert questions[1].prompt == f"What is shown in 2? Options:\nA. a2\nB. b2\nC. c2\nD. d2\n{LETTER_ONLY}"
    assert score_seed(answered(("(C).", questions[1].truth), ("A", questions[2].truth))) == {"seed": 50}


def test_gqa_is_exact_but_for_case_and_a_full_stop():
    rows = [("Yes.", {"answer": "yes"}), (" table\n", {"answer": "Table"}), ("a table", {"answer": "table"})]
    assert score_gqa(answered(*rows)) == {"gqa": pytest.approx(200 / 3)}


def test_gqa_joins_questions_and_images(tiny_benchmarks: Path):
    questions = load_gqa(tiny_benchmarks / "gqa")
    assert questions[0].prompt == f"Is the cup red?\n{SHORT_ANSWER}" and questions[0].max_new_tokens == 128
    first, second, third = (each.image().tobytes() for each in questions)
    assert first == third != second


def test_gqa_rejects_questions_without_their_image(tmp_path: Path):
    write_gqa(tmp_path)
    path = tmp_path / "gqa/testdev_balanced_images/testdev-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    with pytest.raises(UserError, match=r"2 questions ask of images that are not there, 'n1' first"):
        load_gqa(tmp_path / "gqa")
