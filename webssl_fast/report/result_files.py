"""Reads the result files that `webssl eval` leaves: `<output_dir>/eval/<evaluation>.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

# Without a score of such an end a file has nothing to show in the table of its evaluation.
MAIN_SCORES = {
    "linear_probe": "best_on_val/val_top1",
    "logistic_regression": "best_on_val/val_top1",
    "segmentation": "miou",
    "depth": "rmse",
    "alignment": "/alignment",
}
SHORT_HASH = 8


class JudgedEncoder(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    sha256: str

    @property
    def identity(self) -> str:
        return self.sha256 or f"{self.source} {self.name}"

    @property
    def short_hash(self) -> str:
        return self.sha256[:SHORT_HASH]


class Result(BaseModel):
    """One evaluation of one encoder; `file` names where it was read, from the run's directory on."""

    model_config = ConfigDict(frozen=True)

    evaluation: str
    encoder: JudgedEncoder
    scores: dict[str, float]
    untrained_scores: dict[str, float] = {}
    data: dict[str, Any]
    config: dict[str, Any]
    image_size_px: int
    seed: int
    precision: str
    ranks: int
    seconds: float
    date: str
    torch: str
    file: str = ""

    @property
    def is_subset(self) -> bool:
        """Whether the file says that the data was not the whole set; where there is no such set, it says nothing."""
        return self.data.get("complete") is False

    @property
    def data_name(self) -> str:
        """The last two parts of the place of the data that decided the score."""
        sources = [self.config.get(key) for key in ("test_source", "val_source", "source", "train_source")]
        decisive = next((source for source in sources if source and isinstance(source, str)), "")
        return "/".join(decisive.rstrip("/").split("/")[-2:])

    @property
    def data_sizes(self) -> str:
        """E.g. "20,210 train images, 2,000 test images"."""
        sizes = [(k, v) for k, v in self.data.items() if isinstance(v, int) and not isinstance(v, bool)]
        return ", ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in sizes)


def read_results(directory: Path, notes: list[str]) -> list[Result]:
    """The results of a run, by evaluation; a file that cannot be read is told of in `notes`, and left out."""
    results = []
    for path in sorted((directory / "eval").glob("*.json")):
        file = f"{directory.resolve().name}/eval/{path.name}"
        try:
            results.append(_read(path, file))
        except (OSError, ValueError) as error:
            notes.append(f"{file} is left out: {_reason(error)}.")
    return results


def _read(path: Path, file: str) -> Result:
    result = Result.model_validate(json.loads(path.read_text(encoding="utf-8"))).model_copy(update={"file": file})
    wanted = MAIN_SCORES.get(result.evaluation, "")
    if not any(name.endswith(wanted) for name in result.scores):
        raise ValueError(f"it lacks a score {wanted or 'of any name'}")
    return result


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        missing = [_place(fault) for fault in error.errors() if fault["type"] == "missing"]
        wrong = [f"{_place(fault)}: {fault['msg'].lower()}" for fault in error.errors() if fault["type"] != "missing"]
        return "; ".join(([f"it lacks {', '.join(missing)}"] if missing else []) + wrong[:3])
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON, or was cut short ({error})"
    return str(error)


def _place(fault: Any) -> str:
    return ".".join(map(str, fault["loc"])) or "the whole"
