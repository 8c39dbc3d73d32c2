"""Studies as `webssl study` leaves them, with results that are made up."""

import json
from pathlib import Path

from webssl_fast.report.study_files import MANIFEST, StudyEvaluation, StudyManifest, StudyPoint
from webssl_fast.vqa_categories import BENCHMARKS

SIZES = {"1b": 1_000_000_000, "2b": 2_000_000_000, "4b": 4_000_000_000}


def point(
    size: str = "1b",
    subset: str = "full",
    method: str = "webdino",
    objective: str = "dinov2",
    billions: int = 2,
) -> StudyPoint:
    name = f"{method}_{size}_{billions}b_samples" + ("" if subset == "full" else f"_{subset}")
    vqa = StudyEvaluation(name="vqa", config="vqa.yaml", results=(f"runs/{name}/vqa/eval/vqa.json",))
    return StudyPoint(
        name=name,
        method=method,
        objective=objective,
        size=size,
        preset=f"vit_{size}_patch14",
        parameters=SIZES[size],
        image_size_px=224,
        samples_seen=billions * 1e9,
        subset=subset,
        num_steps=10,
        global_batch_size=8,
        config=f"configs/{name}.yaml",
        run_dir=f"runs/{name}",
        evaluations=(vqa,),
    )


def write_study(directory: Path, *points: StudyPoint) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    manifest = StudyManifest(name=directory.name, points=points, files=())
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    return directory


def write_vqa(directory: Path, point: StudyPoint, percent: float, **changes: float) -> Path:
    """Every benchmark at `percent`, so that every mean is."""
    scores = {name: percent * (20 if name == "mme" else 1) for name in BENCHMARKS} | changes
    path = directory / point.evaluations[0].results[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"evaluation": "vqa", "scores": scores}))
    return path
