"""A model's answers to the 16 VQA benchmarks, and their scores; of answers on disk, the scores alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from webssl_fast.config.vqa_benchmarks import VqaBenchmarksConfig
from webssl_fast.data.complete_sets import check_complete
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answers import AnswerFile, Header, check_ids, data_identity, read_answers
from webssl_fast.evals.vqa.benchmarks import benchmark_of, find_data
from webssl_fast.evals.vqa.ocr_and_chart import docvqa_submission
from webssl_fast.evals.vqa.question import Answered, Answerer, Benchmark, Question
from webssl_fast.records import EvalResult
from webssl_fast.vqa_categories import BENCHMARKS, average, category_means

logger = logging.getLogger(__name__)

SECTION = "benchmarks"  # of the config, as messages name it


@dataclass(frozen=True)
class _Judged:
    benchmark: Benchmark
    scores: dict[str, float]
    num_answers: int

    @property
    def is_whole(self) -> bool:
        return self.num_answers == self.benchmark.num_questions


def run_benchmarks(
    answerer: Answerer, config: VqaBenchmarksConfig, output_dir: Path, model_identity: str
) -> EvalResult:
    """Has the questions of all wanted benchmarks answered, and scores them.

    model_identity  names the model beyond doubt, e.g. by a hash of its weights; answers of another are not mixed in

    Every answer is in `output_dir/eval/vqa/<benchmark>.jsonl` as soon as it is given: the same call asks only for those
    that are missing there. All data are found and read before the first question is asked.

    Raises UserError: data are missing, not whole or not in their layout; a file of answers is damaged or another
    model's.
    """
    loaded = _load_all(config)
    judged = []
    while loaded:
        benchmark, questions = loaded.pop(0)  # so that its images do not stay in memory
        header = Header(benchmark.name, benchmark.split, model_identity, data_identity(questions), len(questions))
        with AnswerFile(_path(output_dir, benchmark.name), header, questions) as file:
            asked = questions[: config.limit]
            _answer(answerer, asked, file, benchmark.name)
            answers = [file.answered[each.id] for each in asked]
        judged.append(_judge(benchmark, answers, output_dir, config))
    return _result(judged, config)


def check_data(config: VqaBenchmarksConfig) -> None:
    """Finds and reads the data of all wanted benchmarks, for whoever trains before asking. Raises UserError for what is
    missing, not whole or not in its layout."""
    _load_all(config)


def score_benchmarks(config: VqaBenchmarksConfig, output_dir: Path) -> EvalResult:
    """Scores the answers that `run_benchmarks` left in `output_dir`, without a model and without data.

    Raises UserError: answers are missing or damaged, or belong to another model than those of the other benchmarks.
    """
    judged, models = [], {}
    for benchmark in _wanted(config):
        path = _path(output_dir, benchmark.name)
        header, answers = read_answers(path)
        models[header.model] = path
        if header.split != benchmark.split:
            raise UserError(f"{path} answers the split {header.split}, {SECTION} asks for {benchmark.split}")
        num_expected = min(config.limit or header.num_questions, header.num_questions)
        if len(answers) < num_expected:
            raise UserError(
                f"{path} has {len(answers)} answers to {header.num_questions} questions. Run the same config without "
                f"--score-only to have the others answered, or set {SECTION}.limit={len(answers)}"
            )
        _check_complete(benchmark, str(path), header.num_questions, config)
        judged.append(_judge(benchmark, answers[:num_expected], output_dir, config))
    if len(models) > 1:
        of = "; ".join(f"{path.name} is of {model}" for model, path in models.items())
        raise UserError(f"{output_dir} holds answers of {len(models)} models: {of}. Keep each model's in a folder")
    return _result(judged, config)


def _wanted(config: VqaBenchmarksConfig) -> list[Benchmark]:
    names = [name for name in BENCHMARKS if name in (config.names or BENCHMARKS)]
    return [benchmark_of(name, config.docvqa_split) for name in names]


def _find_all(wanted: Sequence[Benchmark], config: VqaBenchmarksConfig) -> list[Path]:
    """The folder of each benchmark's data. Raises one UserError for all that are missing."""
    found, missing = {}, []
    for benchmark in wanted:
        try:
            found[benchmark.name] = find_data(benchmark, _folder(benchmark, config), download=config.download)
        except UserError as error:
            missing.append(f"  {error}\n")
    if missing:
        fewer = f", or run those that are there with {SECTION}.names=[{','.join(found)}]" if found else ""
        raise UserError(
            f"no data for {len(missing)} of {len(wanted)} benchmarks:\n{''.join(missing)}"
            f"Then set {SECTION}.root to the folder above theirs (or {SECTION}.paths.<benchmark> to one); or set "
            f"{SECTION}.download=true{fewer}"
        )
    return list(found.values())


def _folder(benchmark: Benchmark, config: VqaBenchmarksConfig) -> Path | None:
    for name, folder in config.paths.items():
        if name == benchmark.name:
            return Path(folder)
    return Path(config.root) / benchmark.folder if config.root else None


def _path(output_dir: Path, name: str) -> Path:
    return output_dir / "eval" / "vqa" / f"{name}.jsonl"


def _load_all(config: VqaBenchmarksConfig) -> list[tuple[Benchmark, Sequence[Question]]]:
    wanted = _wanted(config)
    folders = _find_all(wanted, config)
    return [(each, _load(each, folder, config)) for each, folder in zip(wanted, folders, strict=True)]


def _load(benchmark: Benchmark, folder: Path, config: VqaBenchmarksConfig) -> Sequence[Question]:
    questions = benchmark.load(folder)
    if not questions:
        raise UserError(f"{benchmark.name}: there is no question in {folder}")
    check_ids(questions, f"{benchmark.name}, {folder}")
    _check_complete(benchmark, str(folder), len(questions), config)
    logger.info("%s: %d questions in %s", benchmark.name, len(questions), folder)
    return questions


def _check_complete(benchmark: Benchmark, where: str, num_found: int, config: VqaBenchmarksConfig) -> None:
    check_complete(
        SECTION,
        f"{benchmark.name}'s {benchmark.split}",
        f"{num_found:,} questions in {where}",
        num_found,
        benchmark.num_questions,
        benchmark.name,
        allow_subset=config.allow_subset,
        setting=f"paths.{benchmark.name}" if benchmark.name in config.paths else "root",
    )


def _answer(answerer: Answerer, asked: Sequence[Question], file: AnswerFile, name: str) -> None:
    """Has what is missing in `file` answered and written."""
    missing = [each for each in asked if each.id not in file.answered]
    if not missing:
        return
    with tqdm(desc=name, total=len(asked), initial=len(asked) - len(missing), unit="question") as progress:
        for question, answer in _in_step(missing, answerer, name):
            file.append(question, answer)
            progress.update()


def _in_step(questions: Sequence[Question], answerer: Answerer, name: str) -> Iterator[tuple[Question, str]]:
    """Raises ValueError where the answerer does not give one text a question."""
    answers = iter(answerer(questions))
    for number, question in enumerate(questions):
        answer = next(answers, None)
        if not isinstance(answer, str):
            raise ValueError(f"{name}: the answerer gave {answer!r} for question {number + 1} of {len(questions)}")
        yield question, answer
    if next(answers, None) is not None:
        raise ValueError(f"{name}: the answerer gave more answers than the {len(questions)} questions it was asked")


def _judge(benchmark: Benchmark, answers: Sequence[Answered], output_dir: Path, config: VqaBenchmarksConfig) -> _Judged:
    path = _path(output_dir, benchmark.name)
    if not answers:
        raise UserError(f"{path} has no answer to score")
    try:
        scores = benchmark.score(answers)
    except (KeyError, TypeError, AttributeError) as error:  # scorers take any answer, but no other truths
        raise UserError(f"{path} has truths that are not {benchmark.name}'s ({error!r}); remove it") from error
    if benchmark.name == "docvqa" and config.docvqa_split == "test":
        submission = path.with_name("docvqa_submission.json")
        submission.write_text(json.dumps(docvqa_submission(answers)))
        if config.docvqa_test_score is not None:
            scores = {"docvqa": config.docvqa_test_score}
        else:
            logger.warning(
                "docvqa: rrc.cvc.uab.es alone judges its test split. Submit %s there, set %s.docvqa_test_score to what "
                "it reports, and score again",
                submission,
                SECTION,
            )
    if benchmark.name in scores:
        logger.info("%s: %.2f over %d questions", benchmark.name, scores[benchmark.name], len(answers))
    return _Judged(benchmark, scores, len(answers))


def _result(judged: Sequence[_Judged], config: VqaBenchmarksConfig) -> EvalResult:
    """Scores: the average and the categories whose benchmarks are all there, the benchmarks, then their details."""
    scores = {key: value for each in judged for key, value in each.scores.items()}
    if "mme" in scores:
        scores["mme"] = scores[f"mme_{config.mme_in_average}"]
    benchmarks = {name: scores[name] for name in BENCHMARKS if name in scores}
    averages = category_means(benchmarks)
    if (whole := average(benchmarks)) is not None:
        other = "perception" if config.mme_in_average == "total" else "total"
        with_other = average(benchmarks | {"mme": scores[f"mme_{other}"]})
        assert with_other is not None
        averages = {"average": whole, **averages, f"average_with_mme_{other}": with_other}

    incomplete = [f"{e.benchmark.name} {e.num_answers}/{e.benchmark.num_questions}" for e in judged if not e.is_whole]
    data: dict[str, str | int | bool] = {
        "questions": sum(each.num_answers for each in judged),
        "benchmarks": len(benchmarks),
        "complete": not incomplete and len(benchmarks) == len(BENCHMARKS),
        "mme_in_average": config.mme_in_average,
        "docvqa_split": config.docvqa_split,
    }
    if incomplete:
        data["incomplete"] = ", ".join(incomplete)
        logger.warning("vqa: scores do not compare with published ones, not all questions: %s", data["incomplete"])
    return EvalResult("vqa", averages | benchmarks | {k: v for k, v in scores.items() if k not in benchmarks}, data)
