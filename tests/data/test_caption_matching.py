"""The entries found in a caption are those that a search for each of them finds, in real and in hostile texts."""

import re

import numpy as np
import pytest

from tests.recipes.captioned import DESCRIPTIONS
from webssl_fast.data.caption_matching import EntryMatcher, read_metadata, spaced, unmatchable
from webssl_fast.errors import UserError

pytest.importorskip("ahocorasick_rs")

# First lines of numpy's documentation: real sentences with marks, quotes and words of very different frequency.
SENTENCES = [doc.split("\n\n")[0].strip() for value in vars(np).values() if (doc := getattr(value, "__doc__", None))]

HOSTILE = [
    "",
    " ",
    "dog",
    "dogs and cats",
    "DOG dog Dog",
    "hot dog hot dog hot dog",
    "a.b, .* [dog] (dog) dog? ^dog$ \\dog dog|cat",
    "dog\tcat\ndog\r\ncat",
    "dog\0cat dog\0",
    "naïve café – 熊猫 🐕 dog",
    "e\u0301 versus \u00e9",
    "熊猫,dog。cat",
    "dog" * 1000,
    "dog " * 100_000,
    "x" * 1_000_000,
]
ENTRIES = [
    "dog",
    "cat",
    "hot dog",
    "dog hot",
    "hot",
    "a",
    "Dog",
    ".*",
    "[dog]",
    "^dog$",
    "é",
    "e\u0301",
    "café",
    "熊猫",
]
ENTRIES += ["dog cat", "dog|cat", "🐕", ",", ".", "cat .", "St. John", "a.b"]


def brute_force(entries: list[str], caption: str) -> list[int]:
    """MetaCLIP's definition, by one search for each entry."""
    text = re.sub("[\t\n\r]", " ", re.sub(r"([,.;:?!`])", r" \1 ", f" {caption} "))
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


def test_hostile_captions():
    matcher = EntryMatcher(ENTRIES)
    for caption in HOSTILE:
        assert matcher(caption) == brute_force(ENTRIES, caption), caption[:50]


def test_real_sentences():
    sentences = [*SENTENCES, *DESCRIPTIONS.values()]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    pairs = sorted({" ".join(pair) for s in sentences for pair in zip(s.split(), s.split()[1:], strict=False)})
    entries = [*words[::2], *pairs[::5]]
    matcher = EntryMatcher(entries)
    found = [matcher(sentence) for sentence in sentences]
    assert found == [brute_force(entries, sentence) for sentence in sentences]
    assert len(sentences) > 300 and sum(map(len, found)) > 1000


def test_spaces_come_around_marks_and_for_line_ends():
    assert spaced("a dog, or:\ttwo!") == " a dog ,  or :  two !  "
    assert unmatchable(["dog", "St. John", "a.b", ".", "cat .", "c'est", "3:4"]) == ["St. John", "a.b", "3:4"]


def test_metadata_of_lines_and_of_json(tmp_path):
    (tmp_path / "lines.txt").write_text("hot dog\r\n\n  cat \n熊\n", encoding="utf-8")
    (tmp_path / "list.json").write_text('["hot dog", "cat", "", "\\u718a"]')
    assert read_metadata(tmp_path / "lines.txt") == read_metadata(tmp_path / "list.json") == ["hot dog", "cat", "熊"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", b"\n \n", "holds no entry"),
        ("m.txt", b"dog\ncat\ndog \n", "holds 'dog' twice"),
        ("m.txt", b"hot\tdog", "neither tabs nor line ends"),
        ("m.txt", b"\xff\xfe", "cannot be read"),
        ("m.json", b"{", "cannot be read"),
        ("m.json", b'{"dog": 1}', "list of strings, got a dict"),
        ("m.json", b'["dog", 1]', "list of strings"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_metadata(tmp_path / name)
