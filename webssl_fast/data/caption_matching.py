"""Which entries of a metadata list a caption contains: the substring matching of MetaCLIP (arXiv 2309.16671, 3.2).

An entry counts where it stands in the caption between spaces, as written (case matters). For that, a space is put at
both ends of the caption and around each of , . ; : ? ! ` in it, and tabs and line ends become spaces
(github.com/facebookresearch/MetaCLIP, metaclip/substr_matching.py at 17aac1f). All entries are looked for at once by
Aho and Corasick's automaton (CACM 1975), of the package ahocorasick-rs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from webssl_fast.errors import UserError

_MARKS = ",.;:?!`"
_SPACED = str.maketrans({**{mark: f" {mark} " for mark in _MARKS}, **dict.fromkeys("\t\n\r", " ")})
_TOUCHED_MARK = re.compile(f"[^ ][{_MARKS}]|[{_MARKS}][^ ]")


def spaced(text: str) -> str:
    return f" {text} ".translate(_SPACED)


def read_metadata(path: str | Path) -> list[str]:
    """The entries of a text file with one a line, or of a .json file with a list of them, as MetaCLIP publishes its
    own. Raises UserError where it is neither, or holds nothing, an entry twice, or one of several lines; OSError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        entries = json.loads(text) if str(path).endswith(".json") else text.split("\n")
    except ValueError as error:  # of JSON and of UTF-8
        raise UserError(f"metadata {str(path)!r} cannot be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"metadata {str(path)!r} must hold a list of strings, got a {type(entries).__name__}")
    entries = [entry for entry in (entry.strip() for entry in entries) if entry]
    if not entries:
        raise UserError(f"metadata {str(path)!r} holds no entry: it needs one in each line")
    seen: set[str] = set()
    for entry in entries:
        if entry in seen:
            raise UserError(f"metadata {str(path)!r} holds {entry!r} twice: remove one, else it would count twice")
        if set(entry) & set("\t\n\r"):
            raise UserError(f"metadata {str(path)!r} holds {entry!r}: an entry has neither tabs nor line ends")
        seen.add(entry)
    return entries


def unmatchable(entries: Sequence[str]) -> list[str]:
    """Entries that no caption can contain, since there are spaces between letters and marks there."""
    return [entry for entry in entries if _TOUCHED_MARK.search(entry)]


class EntryMatcher:
    def __init__(self, entries: Sequence[str]):
        """Raises UserError where the package is missing."""
        try:
            from ahocorasick_rs import AhoCorasick, MatchKind
        except ImportError as error:
            raise UserError("captions are matched by ahocorasick-rs: pip install 'webssl_fast[subsets]'") from error
        self._automaton = AhoCorasick(
            [f" {entry} " for entry in entries], matchkind=MatchKind.Standard, store_patterns=False
        )

    def __call__(self, caption: str) -> list[int]:
        """Ascending places, in the list, of the entries that the caption contains, each once."""
        matches = self._automaton.find_matches_as_indexes(spaced(caption), overlapping=True)
        return sorted({match[0] for match in matches})
