"""What every judge is.

Dimensions: B images, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Scores = dict[str, Any]  # by column; None: this image has no such score


@dataclass(frozen=True)
class Unjudged:
    """What stands in the place of the scores of an image that could not be judged."""

    reason: str


class Judge(Protocol):
    batch_size: int  # images that it wants at once

    def prepare(self, images: Sequence[np.ndarray]) -> Any:
        """From RGB images, uint8 [H, W, 3] each, to what `judge` takes; on any thread, while others are judged."""
        ...

    def judge(self, prepared: Any) -> list[Scores | Unjudged]:
        """Raw scores of each of these images. One bad image does not spoil the others."""
        ...


@dataclass(frozen=True)
class JudgeKind:
    """A sort of judge. Its functions can be pickled, and take the part of the config that is named `judge`.

    check    what the scores depend on beside the config (versions of packages); UserError where something is missing
    load     a judge, in the process where it works
    columns  the raw scores' names (not light or heavy, which are the answers) and Arrow types
    answers  from raw scores (arrays [B] by column; NaN or 0 where there are none) and the config's thresholds: bool [B]
             for light, bool [B] for heavy
    heavy    in words, what heavy means with this judge
    """

    check: Callable[[Any], dict[str, str]]
    load: Callable[[Any], Judge]
    columns: Callable[[Any], Mapping[str, str]]
    answers: Callable[[Mapping[str, np.ndarray], Any], tuple[np.ndarray, np.ndarray]]
    heavy: str
