"""`webssl study`: the configs of a grid, its scripts, and what a second call does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from webssl_fast.cli import main
from webssl_fast.config.load import load_config, load_config_of
from webssl_fast.config.study import StudyConfig
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.errors import ConfigError
from webssl_fast.recipes.study import point_name
from webssl_fast.report.study_files import final_checkpoint, read_study

ROOT = Path(__file__).parent.parent.parent
SCALING, SMOKE = ROOT / "configs/study/scaling_webssl.yaml", ROOT / "configs/study/smoke.yaml"


def files_of(study: Path) -> dict[str, bytes]:
    return {path.relative_to(study).as_posix(): path.read_bytes() for path in study.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scaling(tmp_path_factory) -> Path:
    study = tmp_path_factory.mktemp("scaling") / "study"
    assert main(["study", str(SCALING), f"output_dir={study}"]) == 0
    return study


def test_the_grid_of_the_paper(scaling):
    points = {point.name: point for point in read_study(scaling).points}
    assert len(points) == 5 + 5 + 4 + 3 + 4
    for name, point in points.items():
        config = load_config(scaling / point.config)
        assert config.output_dir == str(scaling / "runs" / name)
        seen = config.train.num_steps * config.train.global_batch_size
        assert abs(seen - point.samples_seen) < config.train.global_batch_size
        assert config.data.subset == ("" if point.subset == "full" else f"shards/mc2b_{point.subset}.subset")
    assert points["webdino_7b_2b_samples"].parameters == 6_450_170_880


@pytest.mark.parametrize(
    ("point", "pretraining"),
    [
        ("webdino_1b_2b_samples", "webdino_1b_mc2b"),
        ("webdino_7b_8b_samples", "webdino_7b_mc2b_8b_samples"),
        ("webmae_3b_2b_samples", "webmae_3b_mc2b"),
        ("clip_5b_2b_samples", "clip_5b_mc2b"),
    ],
)
def test_points_are_the_configs_of_the_paper(scaling, point, pretraining):
    ours = load_config(scaling / f"configs/{point}.yaml")
    theirs = load_config(ROOT / f"configs/pretrain/{pretraining}.yaml")
    assert ours.model_copy(update={"output_dir": "", "data": theirs.data}) == theirs.model_copy(
        update={"output_dir": ""}
    )


def test_evaluations_judge_the_point_s_run(scaling):
    point = read_study(scaling).points[0]
    for evaluation in point.evaluations:
        if evaluation.command == "vqa":
            encoder = load_config_of(VqaConfig, scaling / evaluation.config).encoder
        else:
            encoder = load_config(scaling / evaluation.config).eval.checkpoint
        assert encoder == str(scaling / point.run_dir)
        assert evaluation.results[0].startswith(f"{point.run_dir}/{evaluation.name}/eval/")
    by_name = {e.name: e.results for e in point.evaluations}
    assert by_name["nyud_lin4"] == (f"{point.run_dir}/nyud_lin4/eval/depth.json",)
    assert by_name["vqa"] == (f"{point.run_dir}/vqa/eval/vqa.json",)


def test_the_plan_knows_gpu_hours_where_there_is_a_plan(scaling):
    lines = [line.split(",") for line in (scaling / "plan.csv").read_text().splitlines()]
    plan = {line[0]: dict(zip(lines[0], line, strict=False)) for line in lines[1:]}
    assert int(plan["webdino_1b_2b_samples"]["gpu_hours"]) > 1000
    assert plan["webdino_7b_2b_samples"]["gpus"] == "256"
    assert len(plan) == 21


def test_scripts_for_slurm(scaling):
    scripts = {path.name: path.read_text() for path in scaling.glob("*.sbatch")}
    assert set(scripts) == {"8_nodes.sbatch", "16_nodes.sbatch", "32_nodes.sbatch"}
    assert "#SBATCH --array=0-4\n#SBATCH --nodes=8\n" in scripts["8_nodes.sbatch"]  # 1B: three methods, two subsets
    assert (scaling / "launch.sh").read_text().count("sbatch ") == 3
    for script in [*scaling.glob("*.sbatch"), *scaling.glob("points/*.sh"), scaling / "launch.sh"]:
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_job_that_is_warned_goes_back_and_one_that_is_done_does_not(scaling, tmp_path):
    """Slurm's commands are stood in for by scripts that write down what they are called with."""
    for name, text in {
        "srun": f'echo srun "$@" >> {tmp_path}/calls; [ -z "$WARN" ] || kill -USR1 $PPID; sleep 0.3',
        "scancel": f'echo scancel "$@" >> {tmp_path}/calls',
        "scontrol": f'[ "$1" = show ] && echo n1 || echo scontrol "$@" >> {tmp_path}/calls',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "4", "SLURM_NNODES": "8", "SLURM_JOB_NODELIST": "n"}
    environment = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0"}
    script = ["bash", str(scaling / "8_nodes.sbatch")]
    assert subprocess.run(script, env=environment | {"WARN": ""}).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 8 and " train " in calls[0] and all(" eval " in call for call in calls[1:7])
    assert " vqa " in calls[7]
    (tmp_path / "calls").unlink()
    subprocess.run(script, env=environment | {"WARN": "1"})
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split(" ")[0] for call in calls] == ["srun", "scancel", "scontrol"]
    assert calls[-1] == "scontrol requeue 42"


# ---------------------------------------------------------------- a second call


def write_smoke(study: Path, *overrides: str) -> int:
    return main(["study", str(SMOKE), f"output_dir={study}", *overrides])


def test_a_second_call_changes_nothing(tmp_path, capsys):
    assert write_smoke(tmp_path / "s") == 0
    before = files_of(tmp_path / "s")
    capsys.readouterr()
    assert write_smoke(tmp_path / "s") == 0
    assert "nothing changed" in capsys.readouterr().out and files_of(tmp_path / "s") == before


def test_new_points_are_added_and_begun_ones_stay(tmp_path, capsys):
    study = tmp_path / "s"
    write_smoke(study, "exclude=['*_64_samples']")
    (study / "runs/webdino_nano_32_samples").mkdir(parents=True)
    assert write_smoke(study) == 0
    assert "new: webdino_nano_64_samples" in capsys.readouterr().out
    before = files_of(study)
    assert write_smoke(study, "settings={seed: 3}") == 1
    said = capsys.readouterr().err
    assert "webdino_nano_32_samples.yaml: seed: 0 -> 3" in said and "webmae" not in said
    assert write_smoke(study, "exclude=['webdino_nano_*']") == 1
    assert "its point is no longer in the study" in capsys.readouterr().err
    assert files_of(study) == before, "what is refused leaves everything as it was"
    assert write_smoke(study, "exclude=['webmae_*']") == 0
    assert "removed: configs/webmae_nano_32_samples.yaml" in capsys.readouterr().out
    assert not (study / "points/webmae_nano_32_samples.sh").exists()


def test_status(tmp_path, capsys):
    study = tmp_path / "s"
    write_smoke(study)
    first, second, third, *_ = read_study(study).points
    (study / first.run_dir).mkdir(parents=True)
    (study / first.run_dir / "metrics.jsonl").write_text('{"step": 3}\n{"st')
    for point in (second, third):
        (study / final_checkpoint(point)).mkdir(parents=True)
    result = study / third.evaluations[0].results[0]
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    capsys.readouterr()
    assert main(["study", "status", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "running" in lines[0] and "step 3 of 4, last logged" in lines[0]
    assert "trained" in lines[1] and "not yet: knn" in lines[1]
    assert lines[2].endswith("evaluated")
    assert lines[-1] == "1 running, 1 trained, 1 evaluated, 2 not started"


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grids=[{methods: [dino], sizes: [nano], samples_seen: [32]}]", r"grids name methods \['dino'\]; there are"),
        ("grids=[{methods: [webdino], sizes: [nano], samples_seen: [32], subsets: [light]}]", "grids name subsets"),
        ("grids=[{methods: [webdino], sizes: [nano], sample_seen: [32]}]", "did you mean grids.0.samples_seen"),
        ("launch.kind=slurm", "launch: kind slurm needs gpus_per_node"),
        ("evaluations={vqa: {config: x}}", "must not be named vqa"),
    ],
)
def test_mistakes_are_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config_of(StudyConfig, SMOKE, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "grids=[{methods: [webdino], sizes: [huge], samples_seen: [32]}]",
            "point webdino_huge_32_samples: .*huge",
        ),
        ("grids=[{methods: [webdino], sizes: [nano], samples_seen: [8]}]", "the run would end on its way up"),
        ("settings={train: {num_step: 3}}", "did you mean train.num_steps"),
        ("vqa=nowhere.yaml", "no config file .*nowhere.yaml"),
        ("exclude=['*']", "leaves no point"),
    ],
)
def test_points_that_cannot_run_are_refused(tmp_path, capsys, override, message):
    assert write_smoke(tmp_path / "s", override) == 1
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "s").exists()


def test_names():
    assert point_name("webdino", "7b", 8e9, "full") == "webdino_7b_8b_samples"
    assert point_name("clip", "1b", 1.5e9, "light") == "clip_1b_1.5b_samples_light"


def test_published_rows_are_printed(capsys):
    assert main(["study", "published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model,average_reported,average_recomputed,") and len(lines) == 38


@pytest.mark.nightly
def test_a_study_runs(photos, tmp_path):
    """From the config to trained and evaluated points by its own script, and nothing is done twice."""
    study = tmp_path / "s"
    data = [
        f"settings.data.source={photos}/train",
        f"evaluations.knn.settings.eval.knn={{train_source: {photos}/train, test_source: {photos}/test}}",
        "grids=[{methods: [webmae], sizes: [nano], samples_seen: [32]}]",
    ]
    assert write_smoke(study, *data) == 0
    bin_dir = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for expected in (1, 0):
        launch = ["bash", str(study / "launch.sh")]
        done = subprocess.run(launch, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("eval/knn.json") == expected
    assert json.loads((study / read_study(study).points[0].evaluations[0].results[0]).read_text())["scores"]
