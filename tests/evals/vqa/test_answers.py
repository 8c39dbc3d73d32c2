from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answers import AnswerFile, Header, check_ids, read_answers
from webssl_fast.evals.vqa.question import Question

QUESTIONS = [Question(str(i), f"What is {i}?", None, truth={"answer": str(i)}) for i in range(4)]
HEADER = Header("gqa", "testdev", "model a", "0123", len(QUESTIONS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the answers to the first two questions."""
    with AnswerFile(tmp_path / "vqa/gqa.jsonl", HEADER, QUESTIONS) as file:
        file.append(QUESTIONS[0], "zero")
        file.append(QUESTIONS[1], "one\n\ud83d 🦉 \x00")
    return tmp_path / "vqa/gqa.jsonl"


def test_answers_come_back_as_they_were(path: Path):
    header, answers = read_answers(path)
    assert header == HEADER
    assert [(each.id, each.answer) for each in answers] == [("0", "zero"), ("1", "one\n\ud83d 🦉 \x00")]
    assert answers[1].prompt == "What is 1?" and answers[1].truth == {"answer": "1"}


def test_each_answer_is_there_at_once(tmp_path: Path):
    with AnswerFile(tmp_path / "gqa.jsonl", HEADER, QUESTIONS) as file:
        for number, question in enumerate(QUESTIONS, 1):
            file.append(question, "x")
            assert len(read_answers(tmp_path / "gqa.jsonl")[1]) == number


@pytest.mark.parametrize("lost", range(1, 90, 8))
def test_a_torn_last_line_is_asked_again(path: Path, lost: int):
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    path.write_bytes(content[: max(len(content) - lost, last)])
    assert [each.id for each in read_answers(path)[1]] == ["0"]
    with AnswerFile(path, HEADER, QUESTIONS) as file:
        assert list(file.answered) == ["0"]
        file.append(QUESTIONS[1], "again")
    assert [each.answer for each in read_answers(path)[1]] == ["zero", "again"]


def test_a_torn_header_is_written_again(tmp_path: Path):
    path = tmp_path / "gqa.jsonl"
    path.write_bytes(b'{"benchmark": "g')
    with pytest.raises(UserError, match="is empty: let a model answer first"):
        read_answers(path)
    with AnswerFile(path, HEADER, QUESTIONS) as file:
        file.append(QUESTIONS[0], "zero")
    assert read_answers(path)[0] == HEADER


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "model b", r"holds answers of model 'model a', this run is of 'model b'. Set another output_dir"),
        ("data", "4567", r"holds answers of data '0123', this run is of '4567'"),
        ("split", "test", r"holds answers of split 'testdev'"),
    ],
)
def test_another_identity_is_refused(path: Path, field: str, value: str, message: str):
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        AnswerFile(path, replace(HEADER, **{field: value}), QUESTIONS)
    assert path.read_bytes() == before


def test_unknown_ids_are_refused(path: Path):
    with pytest.raises(UserError, match="answers 1 questions that are not in the data, '0' first"):
        AnswerFile(path, HEADER, QUESTIONS[1:])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\xfe{", r"line 3 is damaged \(UnicodeDecodeError"),
        (b'{"id": "2", "prompt"', r"line 3 is damaged \(JSONDecodeError"),
        (b'{"id": "2", "prompt": "?", "truth": {}}', r"line 3 is damaged \(KeyError: 'answer'"),
        (b'{"id": 2, "prompt": "?", "answer": "x", "truth": {}}', r"line 3 is damaged \(TypeError"),
        (b"[1, 2]", r"line 3 is damaged \(TypeError"),
        (b"", r"line 3 is damaged"),
        (b'{"id": "0", "prompt": "?", "answer": "x", "truth": {}}', r"line 3 answers question '0', as line 2 does"),
    ],
)
def test_damage_is_named_by_its_line(path: Path, line: bytes, message: str):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    for read in (read_answers, lambda path: AnswerFile(path, HEADER, QUESTIONS)):
        with pytest.raises(UserError, match=message):
            read(path)


@pytest.mark.parametrize("first", [b"hello", b"[]", b'{"id": "0"}', b"null"])
def test_other_files_are_refused(tmp_path: Path, first: bytes):
    (tmp_path / "x.jsonl").write_bytes(first + b"\n")
    with pytest.raises(UserError, match="is no file of answers: its first line is"):
        read_answers(tmp_path / "x.jsonl")


def test_another_format_is_refused(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text(json.dumps(asdict(replace(HEADER, format=9))) + "\n")
    with pytest.raises(UserError, match="is of format 9, this version reads 1"):
        read_answers(tmp_path / "x.jsonl")


def test_a_missing_file_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no answers at .*x.jsonl: let a model answer first"):
        read_answers(tmp_path / "x.jsonl")


def test_equal_ids_are_refused():
    with pytest.raises(UserError, match="here: the question id '1' stands twice"):
        check_ids([*QUESTIONS, QUESTIONS[1]], "here")
