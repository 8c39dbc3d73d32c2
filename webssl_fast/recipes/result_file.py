"""What an evaluation leaves in output_dir/eval, and prints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from webssl_fast.records import EvalResult

PRINTED_SCORES = 12  # of an evaluation; the others are in its file


def write_result(
    result: EvalResult,
    output_dir: Path,
    *,
    encoder: Mapping[str, str],
    settings: Mapping[str, Any],
    image_size_px: int,
    seed: int,
    precision: str,
    world_size: int,
    seconds: float,
    untrained: EvalResult | None = None,
) -> Path:
    """Writes `output_dir/eval/<name>.json`, whole or not at all, and returns it.

    encoder   its name, the source that it was loaded from, and the sha256 of what it computes
    settings  of the evaluation
    """
    content = {
        "evaluation": result.name,
        "encoder": dict(encoder),
        "scores": result.scores,
        **({} if untrained is None else {"untrained_scores": untrained.scores}),
        "data": dict(result.data),
        "config": dict(settings),
        "image_size_px": image_size_px,
        "seed": seed,
        "precision": precision,
        "ranks": world_size,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }
    path = output_dir / "eval" / f"{result.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(path)
    return path


def result_table(result: EvalResult, untrained: EvalResult | None, encoder_name: str, path: Path) -> str:
    columns = [encoder_name, *(["untrained"] if untrained is not None else [])]
    widths = [max(len(column) + 2, 12) for column in columns]
    data = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in result.data.items())
    lines = [
        f"{result.name} ({data})",
        " " * 30 + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)),
    ]
    for score in list(result.scores)[:PRINTED_SCORES]:
        values = [each.scores[score] for each in (result, untrained) if each is not None]
        lines.append(f"{score:30}" + "".join(f"{v:>{w}.4f}" for v, w in zip(values, widths, strict=True)))
    more = len(result.scores) - PRINTED_SCORES
    return "\n".join([*lines, f"{f'and {more} more in ' if more > 0 else ''}{path}"])
