"""What a VQA benchmark asks and what it gets back: the objects between readers, models, answer files and scorers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image


@dataclass(frozen=True)
class Question:
    """One question about one image.

    id              unique in its benchmark, and the same at every reading of the same data
    prompt          everything that follows the image, the instruction at its end included
    image           opens the image (RGB) when it is called; None where the question has none
    max_new_tokens  an answer is generated greedily, up to so many tokens
    truth           JSON: all that the benchmark's scorer needs beside the answer; empty where the truth is not public
    """

    id: str
    prompt: str
    image: Callable[[], PIL.Image.Image] | None
    max_new_tokens: int = 512
    truth: Mapping[str, Any] = field(default_factory=dict)


# One answer a question, in the order of the questions; it may yield them as they come.
Answerer = Callable[[Sequence[Question]], Iterable[str]]


@dataclass(frozen=True)
class Answered:
    """A question with a model's answer, as it stands in an answer file and goes to a scorer."""

    id: str
    prompt: str
    answer: str
    truth: Mapping[str, Any]


@dataclass(frozen=True)
class HubFiles:
    """Where a benchmark's data lie: paths or glob patterns of files of a data set on the Hugging Face hub."""

    hub_id: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One of the benchmarks of vqa_categories.BENCHMARKS, under the protocol of Cambrian-1 (arXiv 2406.16860).

    name           there
    folder         of its data, below the folder of all benchmarks' data
    split          the part of the data set that is asked
    published      its data on the hub, the protocol's first, then copies of the same layout
    num_questions  of the whole benchmark: scores of fewer do not compare with published ones
    load           the questions of the data in a folder; images are opened when asked for.
                   Raises UserError, which names the file, what was found and what is expected.
    score          scores in percent (MME: points) of answered questions, at least one: the benchmark's own under
                   `name`, details under `name` + "_..."; pure. Empty where the truth is not public.
    """

    name: str
    folder: str
    split: str
    published: tuple[HubFiles, ...]
    num_questions: int
    load: Callable[[Path], Sequence[Question]]
    score: Callable[[Sequence[Answered]], dict[str, float]]
