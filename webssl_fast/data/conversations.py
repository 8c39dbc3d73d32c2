"""Conversations about images in JSON lines, as LLaVA and Cambrian-1 publish them, indexed once.

    {"id": "...", "image": "coco/train2017/0.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat ..."},
                                                                     {"from": "gpt", "value": "A ..."}, ...]}

The index, a mapped file, holds where each line lies, how long its texts are and the name of its image, so that a record
is one read whatever its place, and order and exclusions need no record at all.

Dimensions: S records (lines that are not blank).
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from webssl_fast.data.column_file import Column, map_columns, write_columns
from webssl_fast.data.index import Location, StringTable
from webssl_fast.errors import UserError
from webssl_fast.models.chat import IMAGE, Turn

_KIND = "conversation index"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class BadRecord(ValueError):
    """A record that cannot be trained on, and why."""


@dataclass(frozen=True)
class Conversation:
    """turns: the assistant's every second one and the last. With an image, IMAGE and a line break begin the first text
    that the record puts it into (the first of the user, where it says nowhere)."""

    turns: tuple[Turn, ...]
    image: str | None


def parse_record(line: bytes) -> Conversation:
    """Raises BadRecord."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadRecord(f"is a {type(record).__name__}, not an object")
    image = _image_name(record)
    messages = record.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise BadRecord("has no conversations")
    turns = [_turn(message) for message in messages]
    spoken = turns[1:] if turns[0].role == "system" else turns
    expected = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or [turn.role for turn in spoken] != expected:
        raise BadRecord(f"its turns are {', '.join(turn.role for turn in turns)}; expected user and assistant in turn")
    marked = [i for i, turn in enumerate(turns) if IMAGE in turn.text]
    num_marks = sum(turn.text.count(IMAGE) for turn in turns)
    if image is None:
        if marked:
            raise BadRecord(f"says {IMAGE}, but names no image")
        return Conversation(tuple(turns), None)
    if num_marks > 1:
        raise BadRecord(f"says {IMAGE} {num_marks} times, but has one image")
    place = marked[0] if marked else len(turns) - len(spoken)
    if turns[place].role != "user":
        raise BadRecord(f"says {IMAGE} in a turn of the {turns[place].role}")
    text = turns[place].text.replace(IMAGE, "").strip()
    turns[place] = Turn("user", f"{IMAGE}\n{text}")
    return Conversation(tuple(turns), image)


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise BadRecord("has a turn that is not an object with a text as its value")
    role = _ROLES.get(str(message.get("from")))
    if role is None:
        raise BadRecord(f"has a turn from {message.get('from')!r}; known are {', '.join(_ROLES)}")
    return Turn(role, message["value"])  # type: ignore[arg-type]


def _image_name(record: dict[str, Any]) -> str | None:
    image = record.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            raise BadRecord(f"has {len(image)} images; one is supported")
        image = image[0] if image else None
    if image is None or image == "":
        return None
    if not isinstance(image, str):
        raise BadRecord(f"its image is a {type(image).__name__}, not a name")
    if not image.isprintable():  # lone surrogates among others, which no file system takes
        raise BadRecord(f"its image {image!r} is not a name")
    if os.path.isabs(image) or ".." in image.split("/"):
        raise BadRecord(f"its image {image!r} lies outside of the images' folder")
    return image


@dataclass(frozen=True)
class ConversationIndex:
    """path: of the JSON lines; `lengths`: characters of a record's texts, 0 where they cannot be read."""

    path: str
    offsets: np.ndarray  # int64 [S]
    sizes: np.ndarray  # uint32 [S]
    lengths: np.ndarray  # uint32 [S]
    image_names: StringTable  # [S], empty: no image

    @classmethod
    def open(cls, path: str, index_path: str = "") -> ConversationIndex:
        """The index of a file, made where there is none, or it is of another state of the file.

        index_path  empty: beside the file, `<path>.index`
        Raises UserError where there is no such file or no records in it, or the index cannot be written.
        """
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            raise UserError(f"no file {path!r}; a stage's data.conversations must be JSON lines of conversations")
        index = Path(index_path or f"{path}.index").expanduser()
        if not index.is_file() or map_columns(index, _KIND)[0]["identity"] != _identity(path):
            _write_index(path, index)
        _, columns = map_columns(index, _KIND, at_random=True)
        names = StringTable(columns["image_names"], columns["image_name_starts"])
        return cls(path, columns["offsets"], columns["sizes"], columns["lengths"], names)

    def __len__(self) -> int:
        return len(self.offsets)

    def image_names_sha256(self) -> str:
        """Over the names of all records' images, in order."""
        digest = hashlib.sha256(self.image_names.data.tobytes())
        digest.update(self.image_names.starts.tobytes())
        return digest.hexdigest()

    @property
    def has_image(self) -> np.ndarray:
        """bool [S]."""
        return np.diff(self.image_names.starts) > 0

    def locate(self, sample_id: int) -> Location:
        return Location(self.path, int(self.offsets[sample_id]), int(self.sizes[sample_id]))

    def name(self, sample_id: int) -> str:
        return f"{os.path.basename(self.path)}, record {sample_id}"

    def kept(self, excluded_prefixes: Sequence[str], excluded_names: Collection[str] = ()) -> np.ndarray:
        """int64: the records without those whose image is named so, or with such a beginning."""
        keep = np.ones(len(self), bool)
        if excluded_prefixes or excluded_names:
            prefixes = tuple(excluded_prefixes)
            for i in np.flatnonzero(self.has_image).tolist():
                name = self.image_names[i]
                keep[i] = not name.startswith(prefixes) and name not in excluded_names
        return np.flatnonzero(keep)


def _identity(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _write_index(path: str, index: Path) -> None:
    identity = _identity(path)
    offsets, sizes, lengths = array("q"), array("L"), array("L")
    names: list[str] = []
    with open(path, "rb") as file, tqdm(total=identity[0], unit="B", unit_scale=True, desc=f"index of {path}") as bar:
        offset = 0
        for line in file:
            if line.strip():
                length, name = _described(line)
                offsets.append(offset)
                sizes.append(len(line))
                lengths.append(length)
                names.append(name)
            offset += len(line)
            bar.update(len(line))
    if not offsets:
        raise UserError(f"{path} holds no records; expected a conversation in JSON on each line")
    table = StringTable.from_list(names)
    columns: dict[str, np.ndarray] = {
        "offsets": np.array(offsets, np.int64),
        "sizes": np.array(sizes, np.uint32),
        "lengths": np.array(lengths, np.uint32),
        "image_names": table.data,
        "image_name_starts": table.starts,
    }
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        described = {name: Column.of(column) for name, column in columns.items()}
        write_columns(index, {"kind": _KIND, "identity": identity, "num_samples": len(offsets)}, described)
    except OSError as error:
        raise UserError(f"cannot write the index {index} ({error}); set data.index to a place that can") from error


def _described(line: bytes) -> tuple[int, str]:
    """Characters and image of a record; 0 and none where it is a bad one, which is said when it is read."""
    try:
        conversation = parse_record(line)
    except BadRecord:
        return 0, ""
    return sum(len(turn.text) for turn in conversation.turns), conversation.image or ""
