"""Answers on disk: JSON lines, written as they come, from which scores can be taken again without model or data.

The first line says of which benchmark, data and model they are; each further line is one answer. A process that is
killed may leave its last line torn: that question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.question import Answered, Question

FORMAT = 1


@dataclass(frozen=True)
class Header:
    """data           `data_identity` of the questions; a model's answers to others do not belong in this file
    num_questions  in the data, of which a run may have asked fewer
    """

    benchmark: str
    split: str
    model: str
    data: str
    num_questions: int
    format: int = FORMAT


def data_identity(questions: Sequence[Question]) -> str:
    """SHA-256 of everything about the questions but their images, wherever they lie on disk."""
    digest = hashlib.sha256()
    for each in questions:
        row = [each.id, each.prompt, each.max_new_tokens, each.truth]
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def check_ids(questions: Sequence[Question], where: str) -> None:
    """Raises UserError where two questions have one id."""
    seen: set[str] = set()
    for each in questions:
        if each.id in seen:
            raise UserError(f"{where}: the question id {each.id!r} stands twice; fetch the data again")
        seen.add(each.id)


def read_answers(path: Path) -> tuple[Header, list[Answered]]:
    """The answers of a file, in the order in which they were given.

    Raises UserError that names the line: it is missing, no file of answers, damaged, or answers a question twice.
    """
    if not path.is_file():
        raise UserError(f"there are no answers at {path}: let a model answer first")
    header, answers, _ = _read(path)
    if header is None:
        raise UserError(f"{path} is empty: let a model answer first")
    return header, answers


class AnswerFile:
    """Answers to go on with: those that are there, and a place for more."""

    def __init__(self, path: Path, header: Header, questions: Sequence[Question]):
        """Opens or creates the file. questions: all of the data.

        Raises UserError as `read_answers` does, and where the file is of another model or other data.
        """
        self._path = path
        found, answers, num_bytes = _read(path) if path.exists() else (None, [], 0)
        if found is not None:
            _check_same(path, found, header)
            _check_known(path, answers, questions)
        self.answered = {each.id: each for each in answers}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")
        self._file.truncate(num_bytes)
        if found is None:
            self._write(asdict(header))

    def append(self, question: Question, answer: str) -> None:
        """Writes and flushes one answer."""
        each = Answered(question.id, question.prompt, answer, question.truth)
        self._write(asdict(each))
        self.answered[each.id] = each

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """What was written is on the disk after it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: Path) -> tuple[Header | None, list[Answered], int]:
    """Header (None where not even that is whole), answers, and the length in bytes of the whole lines."""
    content = path.read_bytes()
    num_bytes = content.rfind(b"\n") + 1  # a torn last line has no end
    lines = content[:num_bytes].split(b"\n")[:-1]
    if not lines:
        return None, [], 0
    header = _header(path, lines[0])
    answers: list[Answered] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            row = json.loads(line)
            answer = Answered(row["id"], row["prompt"], row["answer"], row["truth"])
            if not (isinstance(answer.id, str) and isinstance(answer.answer, str) and isinstance(answer.truth, dict)):
                raise TypeError("id, answer or truth is of a wrong kind")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number} is damaged ({type(error).__name__}: {error}). Remove that line, and the same "
                "run asks its question again"
            ) from error
        if answer.id in line_of:
            raise UserError(
                f"{path}, line {number} answers question {answer.id!r}, as line {line_of[answer.id]} does; did two "
                "processes write this file? Remove one of the lines, or the file"
            )
        line_of[answer.id] = number
        answers.append(answer)
    return header, answers, num_bytes


def _header(path: Path, line: bytes) -> Header:
    try:
        header = Header(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no file of answers: its first line is {line[:80]!r}") from error
    if header.format != FORMAT:
        raise UserError(f"{path} is of format {header.format}, this version reads {FORMAT}; answer again, elsewhere")
    return header


def _check_same(path: Path, found: Header, wanted: Header) -> None:
    for key, value in asdict(wanted).items():
        there = getattr(found, key)
        if there != value:
            raise UserError(
                f"{path} holds answers of {key} {there!r}, this run is of {value!r}. Set another output_dir, or remove "
                "the file to answer again"
            )


def _check_known(path: Path, answers: Sequence[Answered], questions: Sequence[Question]) -> None:
    known = {each.id for each in questions}
    unknown = [each.id for each in answers if each.id not in known]
    if unknown:
        raise UserError(f"{path} answers {len(unknown)} questions that are not in the data, {unknown[0]!r} first")
