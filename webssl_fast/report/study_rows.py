"""Our own rows of a scaling study: the result files that its points have left so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from webssl_fast.report.result_files import Result, read_results
from webssl_fast.report.study_files import StudyManifest, StudyPoint
from webssl_fast.report.vqa_rows import VqaRow
from webssl_fast.vqa_categories import BENCHMARKS

PAPER_NAMES = {"dinov2": "Web-DINO", "mae": "Web-MAE", "clip": "CLIP"}
VQA_FILE = "vqa.json"
ROUNDING = 0.01


def own_vqa_rows(directory: Path, study: StudyManifest, notes: list[str]) -> list[VqaRow]:
    """A row a point whose VQA is done; a file that cannot be read is told of in `notes`, and left out."""
    names = _method_names(study)
    rows = []
    for point in study.points:
        for path in _vqa_files(directory / point.run_dir):
            place = path.relative_to(directory).as_posix()
            try:
                scores = _vqa_scores(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                notes.append(f"{place} is left out: it cannot be read as a result of VQA ({error}).")
                continue
            row = VqaRow(
                model=point.name,
                method=names[point.method],
                size=point.size,
                parameters=point.parameters,
                samples_seen=point.samples_seen,
                resolution_px=point.image_size_px,
                data="own",
                filter=point.subset,
                scores={name: value for name, value in scores.items() if name in BENCHMARKS},
                source=place,
            )
            rows.append(row)
            notes += _disagreements(place, scores, row)
    return rows


def own_results(directory: Path, study: StudyManifest, notes: list[str]) -> list[Result]:
    """What `webssl eval` left of every point, in its run and in the folders of its evaluations."""
    found = []
    for point in study.points:
        for folder in (directory / point.run_dir, *_evaluation_folders(directory, point)):
            found += read_results(folder, notes)
    return found


def _evaluation_folders(directory: Path, point: StudyPoint) -> Iterator[Path]:
    results = [result for evaluation in point.evaluations for result in evaluation.results]
    for folder in dict.fromkeys((directory / result).parent.parent for result in results):
        if not (folder / "eval" / VQA_FILE).exists():
            yield folder


def _vqa_files(run_dir: Path) -> list[Path]:
    return [path for path in (run_dir / "vqa" / "eval" / VQA_FILE, run_dir / "eval" / VQA_FILE) if path.is_file()][:1]


def _vqa_scores(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    scores = {str(name): float(value) for name, value in content["scores"].items()}
    if not any(name in BENCHMARKS for name in scores):
        raise ValueError(f"it has no score of a benchmark; there are {', '.join(BENCHMARKS)}")
    return scores


def _disagreements(place: str, scores: dict[str, float], row: VqaRow) -> list[str]:
    """Means that the file says and that do not come out of its benchmarks."""
    return [
        f"{place} says {name} {scores[name]:.2f}, and its benchmarks give {mean:.2f}; the latter is shown."
        for name, mean in row.means.items()
        if name in scores and abs(scores[name] - mean) > ROUNDING
    ]


def _method_names(study: StudyManifest) -> dict[str, str]:
    """The paper's name where one method of the study has that objective, else the study's own."""
    objectives = {point.method: point.objective for point in study.points}
    counts = Counter(objectives.values())
    return {m: PAPER_NAMES.get(o, m) if counts[o] == 1 else m for m, o in objectives.items()}
