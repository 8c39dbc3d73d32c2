"""ChartQA, OCRBench, TextVQA and DocVQA under the Cambrian protocol: what is asked, and how answers are scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import SHORT_ANSWER, is_within_5_percent, number, percent_right
from webssl_fast.evals.vqa.question import Answered, Benchmark, HubFiles, Question
from webssl_fast.evals.vqa.snapshot import find_files, read_rows
from webssl_fast.evals.vqa.vqa_accuracy import vqa_accuracy

CHARTQA_INSTRUCTION = "Answer the question using a single number or phrase."
DIRECT_ANSWER = "Give the short answer directly."


# ---------------------------------------------------------------- ChartQA


def load_chartqa(folder: Path) -> list[Question]:
    (files,) = find_files(folder, CHARTQA.published)
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']}\n{CHARTQA_INSTRUCTION}",
            image=row.image,
            max_new_tokens=128,
            truth={"answer": row["answer"], "type": row["type"]},
        )
        for row in read_rows(files, ("type", "question", "answer"), "image")
    ]


def is_right_in_chartqa(answer: str, truth: str) -> bool:
    """Of two numbers, whether the answer is within 5% of the truth; of texts, whether they are equal in lower case.

    "12%" is a text: it equals "12%" alone, neither "12" nor "0.12".
    """
    answer, truth = answer.lower().strip(), truth.lower()
    answered_number, true_number = number(answer), number(truth)
    if answered_number is None or true_number is None:
        return answer == truth
    return is_within_5_percent(answered_number, of=true_number)


def score_chartqa(answered: Sequence[Answered]) -> dict[str, float]:
    """`chartqa` over all questions; beside it, over each type (human, augmented)."""
    flags: dict[str, list[bool]] = defaultdict(list)
    for each in answered:
        right = is_right_in_chartqa(each.answer, each.truth["answer"])
        for name in ("chartqa", f"chartqa_{each.truth['type'].removesuffix('_test')}"):
            flags[name].append(right)
    return {name: percent_right(values) for name, values in flags.items()}


CHARTQA = Benchmark(
    name="chartqa",
    folder="chartqa",
    split="test",
    published=(
        HubFiles("lmms-lab/ChartQA", ("data/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/ChartQA", ("data/test-*.parquet",)),
    ),
    num_questions=2500,
    load=load_chartqa,
    score=score_chartqa,
)


# ---------------------------------------------------------------- OCRBench


HANDWRITTEN_FORMULAS = "Handwritten Mathematical Expression Recognition"


def load_ocrbench(folder: Path) -> list[Question]:
    (files,) = find_files(folder, OCRBENCH.published)
    rows = read_rows(files, ("dataset", "question", "question_type", "answer"), "image")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']}\n{DIRECT_ANSWER}",
            image=row.image,
            truth={"answers": _listed(row["answer"]), "type": row["question_type"]},
        )
        for row in rows
    ]


def _listed(answers: str | list[str] | None) -> list[str]:
    return [answers] if isinstance(answers, str) else list(answers or [])


def is_right_in_ocrbench(answer: str, truths: Sequence[str], question_type: str) -> bool:
    """Whether a truth stands anywhere in the answer: in lower case, or, of a handwritten formula, as it is written but
    for spaces. A truth without a character counts for nothing."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if question_type == HANDWRITTEN_FORMULAS else text.lower()

    answer = plain(answer)
    return any(truth in answer for truth in map(plain, truths) if truth)


def score_ocrbench(answered: Sequence[Answered]) -> dict[str, float]:
    """`ocrbench`: correct answers in percent (the benchmark itself counts them, of 1000); and of each type."""
    flags: dict[str, list[bool]] = defaultdict(list)
    for each in answered:
        right = is_right_in_ocrbench(each.answer, each.truth["answers"], each.truth["type"])
        for name in ("ocrbench", f"ocrbench_{each.truth['type'].lower().replace(' ', '_')}"):
            flags[name].append(right)
    return {name: percent_right(values) for name, values in flags.items()}


OCRBENCH = Benchmark(
    name="ocrbench",
    folder="ocrbench",
    split="test",
    published=(HubFiles("echo840/OCRBench", ("data/test-*.parquet",)),),
    num_questions=1000,
    load=load_ocrbench,
    score=score_ocrbench,
)


# ---------------------------------------------------------------- TextVQA


def load_textvqa(folder: Path) -> list[Question]:
    """The prompt names the words that a text recogniser found, right answers often among them: so does the protocol,
    and its figures rest on it."""
    (files,) = find_files(folder, TEXTVQA.published)
    rows = read_rows(files, ("question_id", "question", "ocr_tokens", "answers"), "image")
    return [
        Question(
            id=str(row["question_id"]),
            prompt=f"{row['question']}\n{_reference_tokens(row['ocr_tokens'] or [])}\n{SHORT_ANSWER}",
            image=row.image,
            truth={"answers": _listed(row["answers"])},
        )
        for row in rows
    ]


def _reference_tokens(tokens: Sequence[str]) -> str:
    return "Reference OCR tokens:" + (f" {', '.join(tokens)}" if tokens else "")


def score_textvqa(answered: Sequence[Answered]) -> dict[str, float]:
    accuracies = [vqa_accuracy(each.answer, each.truth["answers"]) for each in answered]
    return {"textvqa": 100 * sum(accuracies) / len(accuracies)}


TEXTVQA = Benchmark(
    name="textvqa",
    folder="textvqa",
    split="validation",
    published=(
        HubFiles("lmms-lab/textvqa", ("data/validation-*.parquet",)),
        HubFiles("lmms-lab-encoder/textvqa", ("data/validation-*.parquet",)),
    ),
    num_questions=5000,
    load=load_textvqa,
    score=score_textvqa,
)


# ---------------------------------------------------------------- DocVQA


def load_docvqa(folder: Path) -> list[Question]:
    return _load_docvqa(folder, DOCVQA)


def load_docvqa_test(folder: Path) -> list[Question]:
    return _load_docvqa(folder, DOCVQA_TEST)


def _load_docvqa(folder: Path, benchmark: Benchmark) -> list[Question]:
    (files,) = find_files(folder, benchmark.published)
    has_truth = benchmark.split == "validation"
    rows = read_rows(files, ("questionId", "question", *(("answers",) if has_truth else ())), "image")
    return [
        Question(
            id=str(row["questionId"]),
            prompt=f"{row['question']}\n{DIRECT_ANSWER}",
            image=row.image,
            max_new_tokens=128,
            truth={"answers": _listed(row["answers"])} if has_truth else {},
        )
        for row in rows
    ]


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question, in [0, 1] (Biten et al., arXiv 1905.13648).

    The best over the truths of 1 - distance / the longer one's length, in lower case; below 0.5 it is 0. An empty
    answer equals an empty truth.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise UserError("scoring DocVQA needs rapidfuzz: pip install 'webssl_fast[vqa]'") from error

    def similarity(truth: str) -> float:
        # With the cutoff, an answer of any length is dismissed without being compared.
        return Levenshtein.normalized_similarity(answer.lower().strip(), truth.lower().strip(), score_cutoff=0.5)

    return max(map(similarity, truths), default=0.0)


def score_docvqa(answered: Sequence[Answered]) -> dict[str, float]:
    similarities = [anls(each.answer, each.truth["answers"]) for each in answered]
    return {"docvqa": 100 * sum(similarities) / len(similarities)}


def docvqa_submission(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """What the benchmark's server takes, as one JSON file: [{"questionId": 1, "answer": "text"}, ...]."""
    return [{"questionId": int(each.id), "answer": each.answer.strip()} for each in answered]


def _docvqa(split: str, num_questions: int, load: Any, score: Any) -> Benchmark:
    patterns = (f"DocVQA/{split}-*.parquet",)
    published = (HubFiles("lmms-lab/DocVQA", patterns), HubFiles("lmms-lab-encoder/DocVQA", patterns))
    return Benchmark("docvqa", "docvqa", split, published, num_questions, load, score)


DOCVQA = _docvqa("validation", 5349, load_docvqa, score_docvqa)
# Its answers are not public: the server judges (docs/vqa_benchmarks.md).
DOCVQA_TEST = _docvqa("test", 5188, load_docvqa_test, lambda answered: {})
