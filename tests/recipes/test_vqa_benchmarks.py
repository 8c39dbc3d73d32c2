from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from tests.evals.vqa.tiny_benchmarks import NUM_QUESTIONS, constant, truthful, write_tiny_benchmarks
from webssl_fast.config.vqa_benchmarks import BenchmarkName, VqaBenchmarksConfig
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.question import Question
from webssl_fast.recipes.vqa_benchmarks import check_data, run_benchmarks, score_benchmarks
from webssl_fast.vqa_categories import BENCHMARKS, CATEGORIES

# By hand, from the rows of tiny_benchmarks.py, where every answer is "A".
ALWAYS_A = {
    "mme": 0.0,
    "mmbench": 0.0,  # no group has all of its rotations right
    "seed": 100 / 3,
    "gqa": 0.0,
    "scienceqa": 100 / 3,
    "mmmu": 25.0,
    "mathvista": 0.0,
    "ai2d": 100 / 3,
    "chartqa": 0.0,
    "ocrbench": 0.0,
    "textvqa": 0.0,
    "docvqa": 0.0,
    "mmvp": 0.0,  # one of each pair
    "realworldqa": 100 / 3,
    "cv_bench_2d": 75.0,  # ADE20K 50, COCO 100; not two of three
    "cv_bench_3d": 50.0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_benchmarks(tmp_path_factory.mktemp("tiny_benchmarks"))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(root: Path, **settings) -> VqaBenchmarksConfig:
    return VqaBenchmarksConfig.model_validate({"root": str(root), "allow_subset": True, **settings})


def test_names_are_those_of_the_categories():
    assert get_args(BenchmarkName) == BENCHMARKS


def test_the_truth_scores_100(root: Path, tmp_path: Path):
    result = run_benchmarks(truthful, config(root), tmp_path, "truth")
    percent = {name: result.scores[name] for name in BENCHMARKS if name != "mme"}
    assert percent == pytest.approx(dict.fromkeys(percent, 100.0))
    assert (result.scores["mme_perception"], result.scores["mme_cognition"]) == (2000, 800)
    assert result.scores["mme"] == result.scores["mme_total"] == 2800
    assert result.scores["general"] == pytest.approx((3 * 100 + 140) / 4)
    assert result.scores["average"] == pytest.approx((110 + 3 * 100) / 4)
    assert result.scores["average_with_mme_perception"] == pytest.approx(100.0)
    assert list(result.scores)[:22] == ["average", *CATEGORIES, "average_with_mme_perception", *BENCHMARKS]
    assert result.name == "vqa"
    assert result.data["questions"] == sum(NUM_QUESTIONS.values())
    assert result.data["complete"] is False and "mme 28/2374" in str(result.data["incomplete"])


def test_with_perception_in_the_average(root: Path, tmp_path: Path):
    result = run_benchmarks(truthful, config(root, mme_in_average="perception"), tmp_path, "truth")
    assert result.scores["mme"] == 2000 and result.scores["average"] == pytest.approx(100)
    assert result.scores["average_with_mme_total"] == pytest.approx(102.5)
    assert result.data["mme_in_average"] == "perception"


def test_a_constant_answer_scores_as_counted_by_hand(root: Path, tmp_path: Path):
    result = run_benchmarks(constant("A"), config(root), tmp_path, "always A")
    assert {name: result.scores[name] for name in BENCHMARKS} == pytest.approx(ALWAYS_A)
    assert result.scores["mmvp_questions"] == 50 and result.scores["mmbench_rows"] == pytest.approx(100 / 3)


def test_yes_is_right_in_half_of_mme(root: Path, tmp_path: Path):
    result = run_benchmarks(constant("Yes."), config(root, names=["mme"]), tmp_path, "always yes")
    assert result.scores["mme_perception"] == 500  # half of each category's 100 for accuracy, nothing for pairs
    assert result.scores["mme_existence"] == 50
    assert "average" not in result.scores and "general" not in result.scores
    assert result.data["benchmarks"] == 1


def test_every_image_opens(root: Path, tmp_path: Path):
    def looking(questions: Sequence[Question]) -> Iterator[str]:
        for question in questions:
            assert question.image is not None
            image = question.image()
            assert image.mode == "RGB" and image.size == (160, 96)
            yield ""

    run_benchmarks(looking, config(root), tmp_path, "looker")


def test_a_killed_run_goes_on_where_it_was(root: Path, tmp_path: Path):
    asked: list[str] = []

    def dies(questions: Sequence[Question]) -> Iterator[str]:
        for question, answer in zip(questions, truthful(questions), strict=True):
            if len(asked) == 31:
                raise KeyboardInterrupt
            asked.append(question.id)
            yield answer

    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(dies, config(root), tmp_path, "truth")
    again: list[str] = []

    def counts(questions: Sequence[Question]) -> Iterator[str]:
        again.extend(question.id for question in questions)
        return truthful(questions)

    result = run_benchmarks(counts, config(root), tmp_path, "truth")
    assert len(asked) + len(again) == sum(NUM_QUESTIONS.values())
    assert result == run_benchmarks(constant("never asked"), config(root), tmp_path, "truth")
    whole = run_benchmarks(truthful, config(root), tmp_path / "whole", "truth")
    assert result == whole


def test_scores_from_disk_alone(root: Path, tmp_path: Path):
    result = run_benchmarks(constant("A"), config(root), tmp_path, "always A")
    nowhere = config(tmp_path / "no data")
    assert score_benchmarks(nowhere, tmp_path) == result


def test_scoring_asks_for_all_answers(root: Path, tmp_path: Path):
    run_benchmarks(truthful, config(root, names=["mme"], limit=4), tmp_path, "truth")
    with pytest.raises(UserError, match=r"mme.jsonl has 4 answers to 28 questions.*limit=4"):
        score_benchmarks(config(root, names=["mme"]), tmp_path)
    result = score_benchmarks(config(root, names=["mme"], limit=4), tmp_path)
    assert result.scores["mme_perception"] == 400
    with pytest.raises(UserError, match=r"no answers at .*gqa.jsonl"):
        score_benchmarks(config(root, names=["gqa"]), tmp_path)


def test_damaged_truths_are_said(root: Path, tmp_path: Path):
    run_benchmarks(truthful, config(root, names=["mme"]), tmp_path, "truth")
    path = tmp_path / "eval/vqa/mme.jsonl"
    path.write_text(path.read_text().replace('"category"', '"catgory"'))
    with pytest.raises(UserError, match=r"mme.jsonl has truths that are not mme's \(KeyError\('category'\)\)"):
        score_benchmarks(config(root, names=["mme"]), tmp_path)


def test_a_limit_grows_without_asking_twice(root: Path, tmp_path: Path):
    run_benchmarks(truthful, config(root, names=["ai2d"], limit=1), tmp_path, "truth")
    asked: list[str] = []

    def counts(questions: Sequence[Question]) -> Iterator[str]:
        asked.extend(question.id for question in questions)
        return truthful(questions)

    result = run_benchmarks(counts, config(root, names=["ai2d"]), tmp_path, "truth")
    assert asked == ["1", "2"] and result.scores["ai2d"] == 100
    assert result.data["incomplete"] == "ai2d 3/3088"


def test_answers_of_two_models_do_not_mix(root: Path, tmp_path: Path):
    run_benchmarks(truthful, config(root, names=["ai2d"]), tmp_path, "one")
    with pytest.raises(UserError, match=r"ai2d.jsonl holds answers of model 'one', this run is of 'two'. Set another"):
        run_benchmarks(truthful, config(root, names=["ai2d"]), tmp_path, "two")
    run_benchmarks(truthful, config(root, names=["gqa"]), tmp_path, "two")
    with pytest.raises(UserError, match="answers of 2 models"):
        score_benchmarks(config(root, names=["gqa", "ai2d"]), tmp_path)


def test_a_subset_must_be_allowed(root: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"benchmarks.root: 28 questions in .*mme.*2,374 in mme's test"):
        run_benchmarks(truthful, config(root, names=["mme"], allow_subset=False), tmp_path, "truth")


def test_data_can_be_checked_beforehand(root: Path, tmp_path: Path):
    check_data(config(root))
    with pytest.raises(UserError, match="no data for 16 of 16 benchmarks"):
        check_data(config(tmp_path))


def test_missing_data_are_named_at_once_with_the_way_out(root: Path, tmp_path: Path):
    with pytest.raises(UserError) as error:
        run_benchmarks(truthful, config(tmp_path / "empty", paths={"mme": str(root / "mme")}), tmp_path, "truth")
    text = str(error.value)
    assert "no data for 15 of 16 benchmarks" in text
    command = f"hf download MMVP/MMVP --repo-type dataset --local-dir {tmp_path}/empty/mmvp"
    assert command in text and "--include 'MMVP Images/*.jpg'" in text
    assert text.count("hf download") == 15
    assert "benchmarks.names=[mme]" in text
    assert not (tmp_path / "eval").exists()


def test_docvqa_test_is_written_for_its_server(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settings = {"docvqa_split": "test", "names": ["docvqa"]}
    result = run_benchmarks(constant(" 1/8/93\n"), config(root, **settings), tmp_path, "truth")
    assert "docvqa" not in result.scores
    submission = json.loads((tmp_path / "eval/vqa/docvqa_submission.json").read_text())
    assert submission == [{"questionId": 101, "answer": "1/8/93"}, {"questionId": 102, "answer": "1/8/93"}]
    assert "rrc.cvc.uab.es" in caplog.text
    reported = score_benchmarks(config(root, docvqa_test_score=29.0, **settings), tmp_path)
    assert reported.scores["docvqa"] == 29.0
    with pytest.raises(ValidationError, match="docvqa_split=test"):
        config(root, docvqa_test_score=29.0)
    with pytest.raises(UserError, match="answers the split test, benchmarks asks for validation"):
        score_benchmarks(config(root, names=["docvqa"]), tmp_path)


@pytest.mark.parametrize(
    ("answers", "message"),
    [(["a"], "gave None for question 2 of 3"), (["a"] * 4, "more answers than the 3"), ([1, 2, 3], "gave 1 for")],
)
def test_an_answerer_must_give_one_text_a_question(root: Path, tmp_path: Path, answers: list, message: str):
    with pytest.raises(ValueError, match=message):
        run_benchmarks(lambda questions: answers, config(root, names=["gqa"]), tmp_path, "wrong")
