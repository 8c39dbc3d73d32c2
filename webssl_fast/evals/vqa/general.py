"""MME, MMBench, SEED-Bench's images and GQA under the Cambrian protocol: what is asked, and how answers are scored."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import LETTER_ONLY, SHORT_ANSWER, lettered, option_letter, percent_right
from webssl_fast.evals.vqa.question import Answered, Benchmark, HubFiles, Question
from webssl_fast.evals.vqa.snapshot import Row, find_files, read_rows

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def is_same_word(answer: str, truth: str) -> bool:
    """Whether they are equal but for case, and full stops at the answer's end."""
    return answer.strip().lower().rstrip(".") == truth.lower()


# ---------------------------------------------------------------- MME


def load_mme(folder: Path) -> list[Question]:
    (files,) = find_files(folder, MME.published)
    rows = read_rows(files, ("question_id", "question", "answer", "category"), "image")
    unknown = {row["category"] for row in rows} - {*PERCEPTION, *COGNITION}
    if unknown:
        raise UserError(f"{folder}: unknown categories {sorted(unknown)}; MME has {', '.join(PERCEPTION + COGNITION)}")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']}\n{SHORT_ANSWER}",
            image=row.image,
            max_new_tokens=32,
            truth={"answer": row["answer"], "category": row["category"], "pair": row["question_id"]},
        )
        for row in rows
    ]


def score_mme(answered: Sequence[Answered]) -> dict[str, float]:
    """Points. A category has 200: its accuracy in percent, and acc+, the percentage of image pairs with both questions
    right. The ten of perception make 2000, the four of cognition 800; `mme` is `mme_total`, the sum of both.

    Of a subset, a pair with one question alone counts in the accuracy only, and a missing category has no points.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    pairs: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for each in answered:
        category = each.truth["category"]
        right[category].append(is_same_word(each.answer, each.truth["answer"]))
        pairs[category][each.truth["pair"]].append(right[category][-1])
    points = {
        category: percent_right(flags)
        + percent_right([all(pair) for pair in pairs[category].values() if len(pair) > 1])
        for category, flags in right.items()
    }
    perception, cognition = (sum(points.get(name, 0.0) for name in names) for names in (PERCEPTION, COGNITION))
    return {
        "mme": perception + cognition,
        "mme_total": perception + cognition,
        "mme_perception": perception,
        "mme_cognition": cognition,
        **{f"mme_{category.lower()}": value for category, value in points.items()},
    }


MME = Benchmark(
    name="mme",
    folder="mme",
    split="test",
    published=(
        HubFiles("lmms-lab/MME", ("data/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/MME", ("data/test-*.parquet",)),
    ),
    num_questions=2374,
    load=load_mme,
    score=score_mme,
)


# ---------------------------------------------------------------- MMBench


def load_mmbench(folder: Path) -> list[Question]:
    (files,) = find_files(folder, MMBENCH.published)
    columns = ("index", "question", "hint", "A", "B", "C", "D", "answer", "source")
    return [_mmbench_question(row) for row in read_rows(files, columns, "image")]


def _mmbench_question(row: Row) -> Question:
    hint = f"{row['hint']}\n" if _is_there(row["hint"]) else ""
    options = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD" if _is_there(row[letter]))
    image = hashlib.sha256(row.read_image() if row.num_images else b"").hexdigest()
    group = hashlib.sha256(json.dumps([row["question"], image, row["source"]]).encode()).hexdigest()[:16]
    return Question(
        id=str(row["index"]),
        prompt=f"{hint}{row['question']} Options:{options}\n{LETTER_ONLY}",
        image=row.image,
        truth={"answer": row["answer"], "group": group},
    )


def _is_there(text: str | None) -> bool:
    return text not in (None, "nan")  # as pandas writes an empty cell


def score_mmbench(answered: Sequence[Answered]) -> dict[str, float]:
    """`mmbench`: circular accuracy. A question is asked with its options in every rotation, and is right where all of
    them are; the rows of one group (question, image, source) are one question. `mmbench_rows`: of the rows apart.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for each in answered:
        groups[each.truth["group"]].append(option_letter(each.answer) == each.truth["answer"].lower())
    return {
        "mmbench": percent_right([all(flags) for flags in groups.values()]),
        "mmbench_rows": percent_right([flag for flags in groups.values() for flag in flags]),
    }


MMBENCH = Benchmark(
    name="mmbench",
    folder="mmbench",
    split="dev",
    published=(
        HubFiles("lmms-lab/MMBench_EN", ("data/dev-*.parquet",)),
        HubFiles("lmms-lab-encoder/MMBench", ("en/dev-*.parquet",)),
    ),
    num_questions=4329,
    load=load_mmbench,
    score=score_mmbench,
)


# ---------------------------------------------------------------- SEED-Bench, image part


def load_seed(folder: Path) -> list[Question]:
    """Only the rows of one image: the others are frames of videos."""
    (files,) = find_files(folder, SEED.published)
    rows = read_rows(files, ("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer"), "image")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']} Options:{lettered([row[f'choice_{c}'] for c in 'abcd'])}\n{LETTER_ONLY}",
            image=row.image,
            truth={"answer": row["answer"]},
        )
        for row in rows
        if row.num_images == 1
    ]


def score_seed(answered: Sequence[Answered]) -> dict[str, float]:
    """Accuracy over all questions, whatever their type."""
    return {"seed": percent_right([option_letter(a.answer, ".") == a.truth["answer"].lower() for a in answered])}


SEED = Benchmark(
    name="seed",
    folder="seed",
    split="test",
    published=(
        HubFiles("lmms-lab/SEED-Bench", ("data/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/SEED-Bench", ("data/test-*.parquet",)),
    ),
    num_questions=14233,
    load=load_seed,
    score=score_seed,
)


# ---------------------------------------------------------------- GQA


def load_gqa(folder: Path) -> list[Question]:
    question_files, image_files = find_files(folder, GQA.published)
    images = {row["id"]: row for row in read_rows(image_files, ("id",), "image")}
    rows = read_rows(question_files, ("imageId", "question", "answer"))
    missing = [row["imageId"] for row in rows if row["imageId"] not in images]
    if missing:
        raise UserError(f"{folder}: {len(missing)} questions ask of images that are not there, {missing[0]!r} first")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']}\n{SHORT_ANSWER}",
            image=images[row["imageId"]].image,
            max_new_tokens=128,
            truth={"answer": row["answer"]},
        )
        for row in rows
    ]


def score_gqa(answered: Sequence[Answered]) -> dict[str, float]:
    return {"gqa": percent_right([is_same_word(each.answer, each.truth["answer"]) for each in answered])}


_GQA_PATTERNS = ("testdev_balanced_instructions/testdev-*.parquet", "testdev_balanced_images/testdev-*.parquet")

GQA = Benchmark(
    name="gqa",
    folder="gqa",
    split="testdev_balanced",
    published=(HubFiles("lmms-lab/GQA", _GQA_PATTERNS), HubFiles("lmms-lab-encoder/GQA", _GQA_PATTERNS)),
    num_questions=12578,
    load=load_gqa,
    score=score_gqa,
)
