"""A scaling study on disk: what `webssl study` writes, and how far its points are.

study.json     the manifest: every point, where its files lie, and which results it is to leave
plan.csv       what each point will take
launch.sh      starts everything; *.sbatch for Slurm
configs/       of each point's run and evaluations, with every setting
points/        <point>.sh: its commands, each skipped where its result is there
runs/<point>/  output_dir of the point's run; of each evaluation a folder in it

All paths in the manifest are relative to the study's directory, which may therefore be moved.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from webssl_fast.errors import UserError

MANIFEST = "study.json"
State = Literal["not started", "running", "trained", "evaluated"]


class StudyEvaluation(BaseModel):
    """`command`: webssl's that runs it; `results`: the files that it leaves."""

    model_config = ConfigDict(frozen=True)

    name: str
    config: str
    results: tuple[str, ...]
    command: Literal["eval", "vqa"] = "eval"


class StudyPoint(BaseModel):
    """`method`: the study's name for it; `objective`: the config's method.name; `parameters`: of the encoder."""

    model_config = ConfigDict(frozen=True)

    name: str
    method: str
    objective: str
    size: str
    preset: str
    parameters: int
    image_size_px: int
    samples_seen: float
    subset: str
    num_steps: int
    global_batch_size: int
    config: str
    run_dir: str
    evaluations: tuple[StudyEvaluation, ...]


class StudyManifest(BaseModel):
    """`files`: all that `webssl study` wrote, relative to the study."""

    model_config = ConfigDict(frozen=True)

    name: str
    points: tuple[StudyPoint, ...]
    files: tuple[str, ...]


def is_study(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_study(directory: Path) -> StudyManifest:
    """Raises UserError where there is none, or its manifest cannot be read."""
    if not is_study(directory):
        raise UserError(f"{directory} is no study: it has no {MANIFEST}. `webssl study CONFIG` writes one")
    try:
        return StudyManifest.model_validate(json.loads((directory / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(
            f"{directory / MANIFEST} cannot be read ({error}); remove it and call `webssl study CONFIG` again"
        ) from None


def final_checkpoint(point: StudyPoint) -> str:
    """Relative to the study; where it is, the run is done."""
    return f"{point.run_dir}/checkpoints/step_{point.num_steps:08d}"


def has_begun(directory: Path, point: StudyPoint) -> bool:
    return (directory / point.run_dir).exists()


def state_of(directory: Path, point: StudyPoint) -> tuple[State, str]:
    """And a few words on it. A run that has begun and is not done counts as running: whether a process still works on
    it cannot be told from files, but its last sign of life can."""
    if not has_begun(directory, point):
        return "not started", ""
    if not (directory / final_checkpoint(point)).exists():
        return "running", _progress(directory / point.run_dir, point.num_steps)
    done = [e for e in point.evaluations if all((directory / result).is_file() for result in e.results)]
    if point.evaluations and len(done) == len(point.evaluations):
        return "evaluated", ""
    missing = [e.name for e in point.evaluations if e not in done]
    return "trained", f"not yet: {', '.join(missing)}" if missing else "the study has no evaluations"


def _progress(run_dir: Path, num_steps: int) -> str:
    log = run_dir / "metrics.jsonl"
    if not log.is_file():
        return "nothing was logged yet"
    step = 0
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                step = max(step, int(json.loads(line)["step"]))
            except (ValueError, KeyError, TypeError):  # a line that is being written
                continue
    when = datetime.fromtimestamp(log.stat().st_mtime, timezone.utc)
    return f"step {step:,} of {num_steps:,}, last logged {when:%Y-%m-%d %H:%M} UTC"
