"""ScienceQA, MMMU, MathVista and AI2D under the Cambrian protocol: what is asked, and how answers are scored."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Sequence
from pathlib import Path

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answer_text import (
    LETTER_ONLY,
    LETTERS,
    SHORT_ANSWER,
    after_announcement,
    is_within_5_percent,
    lettered,
    number,
    option_letter,
    percent_right,
)
from webssl_fast.evals.vqa.question import Answered, Benchmark, HubFiles, Question
from webssl_fast.evals.vqa.snapshot import Row, find_files, read_rows


def is_same_or_close(answer: str, truth: str) -> bool:
    """Equal in lower case, or numbers that differ by at most 5% of the answer (not of the truth: the protocol's code
    swaps them). A truth of "100" takes an answer of "105.2", but not one of "95.2"."""
    return answer == truth.lower() or is_within_5_percent(number(truth), of=number(answer))


# ---------------------------------------------------------------- ScienceQA


SCIENCEQA_INSTRUCTION = "Please answer directly with only the letter of the correct option and nothing else."


def load_scienceqa(folder: Path) -> list[Question]:
    """Only the rows that have an image."""
    (files,) = find_files(folder, SCIENCEQA.published)
    rows = read_rows(files, ("question", "hint", "choices", "answer"), "image")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['hint'] + ' ' if row['hint'] else ''}{row['question']}{lettered(row['choices'])}\n"
            + SCIENCEQA_INSTRUCTION,
            image=row.image,
            truth={"answer": LETTERS[row["answer"]], "text": row["choices"][row["answer"]]},
        )
        for row in rows
        if row.num_images
    ]


def is_right_in_scienceqa(answer: str, letter: str, text: str) -> bool:
    """Right is the letter, alone or before a full stop, or the option's text but for case and punctuation (an answer of
    punctuation alone is wrong)."""
    answer = after_announcement(answer).rstrip(".")
    plain, plain_text = _without_punctuation(answer), _without_punctuation(text)
    return answer.split(".")[0] == letter.lower() or (plain != "" and plain == plain_text)


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation)).lower().strip()


def score_scienceqa(answered: Sequence[Answered]) -> dict[str, float]:
    flags = [is_right_in_scienceqa(each.answer, each.truth["answer"], each.truth["text"]) for each in answered]
    return {"scienceqa": percent_right(flags)}


SCIENCEQA = Benchmark(
    name="scienceqa",
    folder="scienceqa",
    split="test",
    published=(
        HubFiles("derek-thomas/ScienceQA", ("data/test-*.parquet",)),
        HubFiles("lmms-lab/ScienceQA", ("ScienceQA-IMG/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/ScienceQA", ("ScienceQA-IMG/test-*.parquet",)),
    ),
    num_questions=2017,
    load=load_scienceqa,
    score=score_scienceqa,
)


# ---------------------------------------------------------------- MMMU


def load_mmmu(folder: Path) -> list[Question]:
    """Of a question's images, the first alone is shown. Marks "<image 1>" are taken out of the text.

    Options are read as the Python list that they are written as. The protocol's code takes what stands between single
    quotes, and so loses options that contain an apostrophe.
    """
    (files,) = find_files(folder, MMMU.published)
    rows = read_rows(files, ("id", "question", "options", "question_type", "answer"), "image_1")
    return [_mmmu_question(row, folder) for row in rows]


def _mmmu_question(row: Row, folder: Path) -> Question:
    is_choice = row["question_type"] == "multiple-choice"
    if is_choice:
        try:
            options = [str(option) for option in ast.literal_eval(row["options"])]
        except (SyntaxError, ValueError, TypeError) as error:
            raise UserError(f"{folder}, {row['id']}: options are no list of texts: {row['options']!r}") from error
        asked = f"{row['question']} Options:{lettered(options)}\n{LETTER_ONLY}"
    else:
        asked = f"{row['question']}\n{SHORT_ANSWER}"
    return Question(
        id=row["id"],
        prompt=re.sub(r"<image \d+>", "", asked).strip(),
        image=row.image,
        truth={"answer": row["answer"], "is_choice": is_choice},
    )


def score_mmmu(answered: Sequence[Answered]) -> dict[str, float]:
    """Option letters; of an open question, the announced text or a number."""

    def is_right(each: Answered) -> bool:
        if each.truth["is_choice"]:
            return option_letter(each.answer) == each.truth["answer"].lower()
        return is_same_or_close(after_announcement(each.answer).rstrip("."), each.truth["answer"])

    return {"mmmu": percent_right([is_right(each) for each in answered])}


MMMU = Benchmark(
    name="mmmu",
    folder="mmmu",
    split="validation",
    published=(
        HubFiles("lmms-lab/MMMU", ("data/validation-*.parquet",)),
        HubFiles("lmms-lab-encoder/MMMU", ("data/validation-*.parquet",)),
    ),
    num_questions=900,
    load=load_mmmu,
    score=score_mmmu,
)


# ---------------------------------------------------------------- MathVista


MATHVISTA_CHOICE = "First show your reasoning process and then give the final answer."


def load_mathvista(folder: Path) -> list[Question]:
    (files,) = find_files(folder, MATHVISTA.published)
    rows = read_rows(files, ("query", "question_type", "choices", "answer"), "decoded_image")
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['query']}\n{MATHVISTA_CHOICE if row['question_type'] == 'multi_choice' else SHORT_ANSWER}",
            image=row.image,
            truth={"answer": _mathvista_truth(row, folder)},
        )
        for row in rows
    ]


def _mathvista_truth(row: Row, folder: Path) -> str:
    """The right choice's letter, the last one's where it stands there twice; the answer itself of a free question."""
    if row["question_type"] != "multi_choice":
        return row["answer"]
    letters = {choice: letter for choice, letter in zip(row["choices"], LETTERS, strict=False)}
    if row["answer"] not in letters:
        raise UserError(f"{folder}, row {row.number}: the answer {row['answer']!r} is none of {row['choices']}")
    return letters[row["answer"]]


def score_mathvista(answered: Sequence[Answered]) -> dict[str, float]:
    """The whole answer against letter, text or number: no letter is looked for in a reasoned answer, and no language
    model judges, which is why published figures are as low as they are."""
    flags = [is_same_or_close(each.answer.lower().strip(), each.truth["answer"]) for each in answered]
    return {"mathvista": percent_right(flags)}


MATHVISTA = Benchmark(
    name="mathvista",
    folder="mathvista",
    split="testmini",
    published=(HubFiles("AI4Math/MathVista", ("data/testmini-*.parquet",)),),
    num_questions=1000,
    load=load_mathvista,
    score=score_mathvista,
)


# ---------------------------------------------------------------- AI2D


def load_ai2d(folder: Path) -> list[Question]:
    (files,) = find_files(folder, AI2D.published)
    return [
        Question(
            id=str(row.number),
            prompt=f"{row['question']}{lettered(row['options'])}\n{LETTER_ONLY}",
            image=row.image,
            truth={"answer": str(row["answer"])},
        )
        for row in read_rows(files, ("question", "options", "answer"), "image")
    ]


def score_ai2d(answered: Sequence[Answered]) -> dict[str, float]:
    """Truths are places from 0; "b" and "1" are both right where it is 1."""
    places = {letter: str(place) for place, letter in enumerate("abcd")}
    letters = [option_letter(each.answer) for each in answered]
    flags = [places.get(letter, letter) == each.truth["answer"] for letter, each in zip(letters, answered, strict=True)]
    return {"ai2d": percent_right(flags)}


AI2D = Benchmark(
    name="ai2d",
    folder="ai2d",
    split="test",
    published=(
        HubFiles("lmms-lab/ai2d", ("data/test-*.parquet",)),
        HubFiles("lmms-lab-encoder/ai2d", ("data/test-*.parquet",)),
    ),
    num_questions=3088,
    load=load_ai2d,
    score=score_ai2d,
)
