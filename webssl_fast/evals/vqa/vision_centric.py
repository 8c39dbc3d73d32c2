"""MMVP, RealWorldQA and CV-Bench (2D, 3D) under the Cambrian protocol: what is asked, and how answers are scored."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import PIL.Image

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import (
    LETTER_ONLY,
    after_announcement,
    lettered,
    option_letter,
    option_text,
    percent_right,
)
from webssl_fast.evals.vqa.question import Answered, Benchmark, HubFiles, Question
from webssl_fast.evals.vqa.snapshot import find_files, read_rows

# ---------------------------------------------------------------- MMVP


MMVP_COLUMNS = ["Index", "Question", "Options", "Correct Answer"]
_OPTION = re.compile(r"\([a-z]\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL)


def load_mmvp(folder: Path) -> list[Question]:
    ((table,), images) = find_files(folder, MMVP.published)
    with open(table, newline="", encoding="utf-8-sig") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if header[1:] != MMVP_COLUMNS[1:]:  # the published first one is misspelt, "lndex"
        raise UserError(f"{table} has the columns {header}, expected are {MMVP_COLUMNS}")
    return [_mmvp_question(row, table, images[0].parent) for row in rows if row]


def _mmvp_question(row: list[str], table: Path, images: Path) -> Question:
    try:
        index, question, written, answer = row
        options = _OPTION.findall(written)
        letter = answer.strip().strip("()").lower()
        text = options["abcd".index(letter)]
        pair = (int(index) - 1) // 2
    except (ValueError, IndexError) as error:
        raise UserError(f"{table}: expected are rows such as 1, question, '(a) x (b) y', (a); got {row}") from error
    image = images / f"{index}.jpg"
    if not image.is_file():
        raise UserError(f"{table}: question {index} asks of {image}, which is not there")
    return Question(
        id=index,
        prompt=f"{question} Options:{lettered(options)}\n{LETTER_ONLY}",
        image=partial(_open, image),
        truth={"answer": letter, "text": text, "pair": pair},
    )


def _open(path: Path) -> PIL.Image.Image:
    try:
        return PIL.Image.open(path).convert("RGB")
    except (OSError, PIL.UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch the data again") from error


def score_mmvp(answered: Sequence[Answered]) -> dict[str, float]:
    """`mmvp`: pairs of questions with both right, by letter or by the option's text; `mmvp_questions`: of them apart.

    Of a subset, a question without the other of its pair counts for nothing.
    """
    pairs: dict[int, list[bool]] = defaultdict(list)
    for each in answered:
        truths = (each.truth["answer"], each.truth["text"].lower())
        pairs[each.truth["pair"]].append(option_text(each.answer) in truths)
    return {
        "mmvp": percent_right([all(pair) for pair in pairs.values() if len(pair) == 2]),
        "mmvp_questions": percent_right([flag for pair in pairs.values() for flag in pair]),
    }


MMVP = Benchmark(
    name="mmvp",
    folder="mmvp",
    split="all",
    published=(HubFiles("MMVP/MMVP", ("Questions.csv", "MMVP Images/*.jpg")),),
    num_questions=300,
    load=load_mmvp,
    score=score_mmvp,
)


# ---------------------------------------------------------------- RealWorldQA


def load_realworldqa(folder: Path) -> list[Question]:
    """Its questions carry their instruction themselves."""
    (files,) = find_files(folder, REALWORLDQA.published)
    rows = read_rows(files, ("question", "answer"), "image")
    return [Question(str(row.number), row["question"], row.image, truth={"answer": row["answer"]}) for row in rows]


def score_realworldqa(answered: Sequence[Answered]) -> dict[str, float]:
    """The first word of the announced answer against the truth; an answer without a word is wrong (the protocol's code
    fails on it)."""

    def first_word(text: str) -> str:
        words = after_announcement(text).rstrip(".").split()
        return words[0] if words else ""

    flags = [first_word(each.answer) == each.truth["answer"].lower() for each in answered]
    return {"realworldqa": percent_right(flags)}


REALWORLDQA = Benchmark(
    name="realworldqa",
    folder="realworldqa",
    split="test",
    published=(
        HubFiles("lmms-lab/RealWorldQA", ("data/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/RealWorldQA", ("data/test-*.parquet",)),
    ),
    num_questions=765,
    load=load_realworldqa,
    score=score_realworldqa,
)


# ---------------------------------------------------------------- CV-Bench


def load_cv_bench_2d(folder: Path) -> list[Question]:
    return _load_cv_bench(folder, CV_BENCH_2D)


def load_cv_bench_3d(folder: Path) -> list[Question]:
    return _load_cv_bench(folder, CV_BENCH_3D)


def _load_cv_bench(folder: Path, benchmark: Benchmark) -> list[Question]:
    (files,) = find_files(folder, benchmark.published)
    rows = read_rows(files, ("idx", "source", "prompt", "answer"), "image")
    return [
        Question(
            id=str(row["idx"]),
            prompt=f"{row['prompt']}\n{LETTER_ONLY}",
            image=row.image,
            truth={"answer": row["answer"].strip("()"), "source": row["source"]},
        )
        for row in rows
    ]


def score_cv_bench_2d(answered: Sequence[Answered]) -> dict[str, float]:
    """The mean of the accuracies on ADE20K and on COCO, whatever their numbers of questions."""
    return _score_cv_bench("cv_bench_2d", answered, trailing=".")


def score_cv_bench_3d(answered: Sequence[Answered]) -> dict[str, float]:
    """Accuracy; all images are of Omni3D."""
    return _score_cv_bench("cv_bench_3d", answered, trailing=".:,")


def _score_cv_bench(name: str, answered: Sequence[Answered], trailing: str) -> dict[str, float]:
    flags: dict[str, list[bool]] = defaultdict(list)
    for each in answered:
        right = option_letter(each.answer, trailing) == each.truth["answer"].lower()
        flags[f"{name}_{each.truth['source'].lower()}"].append(right)
    accuracies = {source: percent_right(values) for source, values in flags.items()}
    return {name: sum(accuracies.values()) / len(accuracies), **accuracies}


CV_BENCH_2D = Benchmark(
    name="cv_bench_2d",
    folder="cv_bench",
    split="test_2d",
    published=(HubFiles("nyu-visionx/CV-Bench", ("test_2d.parquet",)),),
    num_questions=1438,
    load=load_cv_bench_2d,
    score=score_cv_bench_2d,
)
CV_BENCH_3D = Benchmark(
    name="cv_bench_3d",
    folder="cv_bench",
    split="test_3d",
    published=(HubFiles("nyu-visionx/CV-Bench", ("test_3d.parquet",)),),
    num_questions=1200,
    load=load_cv_bench_3d,
    score=score_cv_bench_3d,
)
