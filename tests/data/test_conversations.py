"""Conversations in JSON lines: what a record means, what is refused, and the index that is made once."""

from __future__ import annotations

import json
import os

import pytest

from webssl_fast.data.conversations import BadRecord, ConversationIndex, parse_record
from webssl_fast.errors import UserError


def record(image="a.png", *texts, **more) -> bytes:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts or ("<image>\nq", "a"))]
    return json.dumps({"id": "0", "image": image, "conversations": turns, **more}).encode()


def texts(line: bytes) -> list[str]:
    return [turn.text for turn in parse_record(line).turns]


def test_an_image_begins_the_text_that_names_it():
    assert texts(record("a.png", "<image>\nWhat?", "A cat.")) == ["<image>\nWhat?", "A cat."]
    assert texts(record("a.png", "What is <image>", "A cat.")) == ["<image>\nWhat is", "A cat."]
    assert texts(record("a.png", "Hi", "Hi", "See <image>?", "Yes"))[2] == "<image>\nSee ?"


def test_an_image_that_no_text_names_begins_the_first():
    assert texts(record("a.png", "What?", "A cat.")) == ["<image>\nWhat?", "A cat."]
    system = {"from": "system", "value": "Be brief."}
    turns = [system, {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    line = json.dumps({"image": ["a.png"], "conversations": turns}).encode()
    assert texts(line) == ["Be brief.", "<image>\nWhat?", "A cat."] and parse_record(line).image == "a.png"


@pytest.mark.parametrize("image", [None, "", []])
def test_text_alone(image):
    found = parse_record(record(image, "What?", "That."))
    assert found.image is None and [turn.role for turn in found.turns] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is a list"),
        (b"{}", "has no conversations"),
        (b'{"conversations": "x"}', "has no conversations"),
        (b'{"conversations": [{"from": "human"}]}', "not an object with a text"),
        (b'{"conversations": [{"from": "bot", "value": "x"}]}', "from 'bot'"),
        (record(None, "q"), "expected user and assistant"),
        (record(None, "q", "a", "q"), "expected user and assistant"),
        (record(["a.png", "b.png"]), "has 2 images"),
        (record({"path": "a"}), "is a dict"),
        (record("../a.png"), "outside"),
        (record("/etc/a.png"), "outside"),
        (record("a\ud800.png"), "is not a name"),
        (record("a.png", "<image><image>q", "a"), "says <image> 2 times"),
        (record("a.png", "q", "an <image>"), "in a turn of the assistant"),
        (record(None, "<image>q", "a"), "names no image"),
    ],
)
def test_rejects_what_cannot_be_trained_on(line, reason):
    with pytest.raises(BadRecord, match=reason):
        parse_record(line)


def test_every_line_is_found_again(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = [record("x/a.png"), b"{broken", record(None, "q", "a"), record("laion/ä.png", "q", "a" * 50)]
    path.write_bytes(b"\n\n".join(lines))  # blank lines, and none at the end
    index = ConversationIndex.open(str(path))
    assert len(index) == 4
    for i, line in enumerate(lines):
        _, offset, size, _ = index.locate(i)
        assert path.read_bytes()[offset : offset + size].strip() == line
    assert index.has_image.tolist() == [True, False, False, True]
    assert index.lengths[1] == 0 and index.lengths[3] > 50
    assert index.kept(["laion/"]).tolist() == [0, 1, 2]
    assert index.kept([], {"x/a.png"}).tolist() == [1, 2, 3]
    assert index.kept([]).tolist() == [0, 1, 2, 3]


def test_an_index_is_made_once_for_each_state_of_the_file(tmp_path):
    path, kept = tmp_path / "c.jsonl", tmp_path / "elsewhere" / "c.index"
    path.write_bytes(record() + b"\n")
    ConversationIndex.open(str(path), str(kept))
    made = os.stat(kept).st_mtime_ns
    ConversationIndex.open(str(path), str(kept))
    assert os.stat(kept).st_mtime_ns == made
    with open(path, "ab") as file:
        file.write(record() + b"\n")
    assert len(ConversationIndex.open(str(path), str(kept))) == 2


def test_rejects_a_file_that_is_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match="no file.*JSON lines"):
        ConversationIndex.open(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="holds no records"):
        ConversationIndex.open(str(tmp_path / "empty.jsonl"))
