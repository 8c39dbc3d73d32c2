"""Whatever a language model says, each scorer gives a score, and says right only where something right was said."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evals.vqa.tiny_benchmarks import truthful
from webssl_fast.evals.vqa.benchmarks import BENCHMARKS
from webssl_fast.evals.vqa.question import Answered

HOSTILE = {
    "empty": "",
    "spaces": " \t ",
    "newlines": "\n\n\r\n",
    "punctuation alone": "...,,,:::()?!'\"%$#",
    "one full stop": ".",
    "brackets": "((((",
    "an announcement of nothing": "The answer is:",
    "announcements without end": "answer is answer: " * 1000,
    "1 MB of a letter": "a" * 1_000_000,
    "1 MB of digits": "9" * 1_000_000,
    "1 MB of words": "the answer is a dont, " * 50_000,
    "1 MB of punctuation": "?.," * 350_000,
    "nul and control characters": "\x00\x07\x1b[31m",
    "unicode": "答案是乙。 Ünïcödé 🦉 İı ß ﬁ ١٢٣",
    "a lone surrogate": "\ud83d",
    "right to left": "\u202e(א)",
    "several numbers": "between 3 and 4, or 5",
    "percent signs": "%% 12%% 100%",
    "not a number": "nan",
    "infinity": "-inf",
    "a huge number": "1e999",
    "underscores in a number": "1_000",
    "json": '{"answer": ["A"]}',
    "a letter within a sentence": "I would say that it is the letter Z, definitely",
}

# Where the protocol finds something right in them: a first letter that is some question's option; a number in a text.
LUCKY = {
    "1 MB of a letter": ("seed", "ai2d", "mmmu", "cv_bench_2d", "cv_bench_3d"),
    "1 MB of words": ("seed", "ai2d", "mmmu", "cv_bench_2d", "cv_bench_3d", "realworldqa"),
    "several numbers": ("mmmu", "cv_bench_3d"),  # "between"
    "percent signs": ("ocrbench",),
}


def questions_of(root: Path, name: str):
    return BENCHMARKS[name].load(root / BENCHMARKS[name].folder)


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_scorer_has_a_score(tiny_benchmarks: Path, name: str, kind: str):
    rows = [Answered(each.id, each.prompt, HOSTILE[kind], each.truth) for each in questions_of(tiny_benchmarks, name)]
    started = time.monotonic()
    scores = BENCHMARKS[name].score(rows)
    assert time.monotonic() - started < 5
    assert scores[name] == scores[name] and 0 <= scores[name] <= (2800 if name == "mme" else 100)
    assert (scores[name] > 0) == (name in LUCKY.get(kind, ()))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_hostile_answer_costs_its_own_question_alone(tiny_benchmarks: Path, name: str):
    questions = questions_of(tiny_benchmarks, name)
    rows = [Answered(q.id, q.prompt, a, q.truth) for q, a in zip(questions, truthful(questions), strict=True)]
    best = BENCHMARKS[name].score(rows)[name]
    spoilt = BENCHMARKS[name].score([replace(rows[0], answer="\x00"), *rows[1:]])[name]
    assert 0 < spoilt < best


@pytest.mark.parametrize("name", BENCHMARKS)
def test_case_and_space_around_an_answer_do_not_count(tiny_benchmarks: Path, name: str):
    questions = questions_of(tiny_benchmarks, name)
    rows = [
        Answered(q.id, q.prompt, f"\n {a if name == 'ocrbench' else a.upper()} \n", q.truth)
        for q, a in zip(questions, truthful(questions), strict=True)
    ]
    assert BENCHMARKS[name].score(rows)[name] == pytest.approx(2800 if name == "mme" else 100)
