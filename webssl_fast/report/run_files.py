"""Reads what a run leaves in its directory, also while it is still being written.

config.yaml        the effective configuration; it or eval/ must be there
metrics.jsonl      one JSON object a logged step or evaluation; values may be NaN, the last line may be cut short
bad_samples.jsonl  one JSON object for each sample that could not be decoded: sample_id, name, reason
checkpoints/       step_00001000, ...: one directory a complete checkpoint
eval/              what `webssl eval` leaves (result_files.py, dense_pictures.py)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from webssl_fast.errors import UserError


@dataclass(frozen=True)
class Series:
    """One metric against steps, in order of steps; values may be non-finite."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def finite(self) -> Series:
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Series([s for s, _ in kept], [v for _, v in kept])

    @property
    def over_restarts(self) -> Series:
        """Of a counter that every start of the run begins at 0: what it counted over all of them."""
        finite = self.finite
        total, last, totals = 0.0, 0.0, []
        for value in finite.values:
            total += value - last if value >= last else value
            last = value
            totals.append(total)
        return Series(finite.steps, totals)


@dataclass(frozen=True)
class BadSample:
    sample_id: str
    name: str
    reason: str


@dataclass(frozen=True)
class Run:
    """A run as far as it has come. `notes` says what could not be read."""

    directory: Path
    config: dict[str, Any]
    config_text: str
    series: dict[str, Series]
    bad_samples: list[BadSample]
    checkpoint_steps: list[int]
    notes: list[str] = field(default_factory=list)

    def get(self, key: str) -> Series:
        """The series of a metric, empty where it was never logged."""
        return self.series.get(key, Series([], []))

    def last(self, key: str) -> float | None:
        """The last finite value of a metric, None where there is none."""
        values = self.get(key).finite.values
        return values[-1] if values else None

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration, e.g. "train.num_steps"; `default` where it is absent or null."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def last_step(self) -> int:
        return max((s.steps[-1] for s in self.series.values() if s), default=0)


def read_run(directory: Path | str) -> Run:
    """Reads a run directory, of a training or of evaluations alone. Raises UserError that says what is missing where
    it is none."""
    directory = Path(directory)
    way_out = (
        "A run directory is made by `webssl train CONFIG output_dir=...`, or by `webssl eval`; give its output_dir."
    )
    if not directory.is_dir():
        kind = "is a file, not a directory" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {kind}. {way_out}")
    config_path = directory / "config.yaml"
    if not config_path.is_file() and not (directory / "eval").is_dir():
        raise UserError(f"{directory} is not a run: it has no config.yaml and no eval folder. {way_out}")
    config_text = config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else ""
    notes: list[str] = []
    return Run(
        directory=directory,
        config=_parse_config(config_text, notes),
        config_text=config_text,
        series=_read_series(directory / "metrics.jsonl", notes),
        bad_samples=_read_bad_samples(directory / "bad_samples.jsonl", notes),
        checkpoint_steps=_read_checkpoint_steps(directory / "checkpoints"),
        notes=notes,
    )


def _parse_config(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(f"config.yaml is not valid YAML, so the summary lacks what stands there: {error}")
        return {}
    return config if isinstance(config, dict) else {}


def _read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file. A last line without its newline is one that the run is writing, or was when it
    was killed: it is left out. Other unreadable lines are counted in `notes`."""
    if not path.is_file():
        return
    num_unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            elif line.strip() and line.endswith("\n"):
                num_unreadable += 1
    if num_unreadable:
        verb = "line is" if num_unreadable == 1 else "lines are"
        notes.append(f"{num_unreadable} {verb} not readable in {path.name}, and left out here.")


def _read_series(path: Path, notes: list[str]) -> dict[str, Series]:
    """Every numeric key but `step`. Of two lines that give one key at one step, the later one holds."""
    points: dict[str, dict[int, float]] = {}
    for row in _read_lines(path, notes):
        step = row.get("step")
        if not isinstance(step, int):
            continue
        for key, value in row.items():
            if value is None:  # JSON has no NaN, so writers may say null
                value = math.nan
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(key, {})[step] = float(value)
    return {key: Series(sorted(by_step), [by_step[s] for s in sorted(by_step)]) for key, by_step in points.items()}


def _read_bad_samples(path: Path, notes: list[str]) -> list[BadSample]:
    """In the order of first meeting; two ranks that meet a sample at once may both have listed it."""
    rows = _read_lines(path, notes)
    samples = (BadSample(*(str(row.get(key, "")) for key in ("sample_id", "name", "reason"))) for row in rows)
    return list(dict.fromkeys(samples))


def _read_checkpoint_steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = (re.fullmatch(r"step_(\d+)", entry.name) for entry in directory.iterdir() if entry.is_dir())
    return sorted(int(name[1]) for name in names if name)
