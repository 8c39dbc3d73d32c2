"""A model of `webssl vqa` under lmms-eval, offline, on files in the layout of one of its benchmarks.

lmms-eval brings some 50 packages, torchvision among them, which does not import beside a CPU build of torch: it gets an
environment of its own. WEBSSL_LMMS_EVAL_PYTHON names the Python of one that is there already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.evals.vqa.tiny_benchmarks import NUM_QUESTIONS, write_tiny_benchmarks
from tests.rendered_scenes import write_scenes
from tests.tiny_language import write_tiny_language_model

ROOT = Path(__file__).parents[2]
TASK = """
include: {shipped}
task: local_realworldqa
dataset_path: {data}
dataset_kwargs: {{}}
tag: []
"""

pytestmark = pytest.mark.nightly


def run(*command: str | Path, **environment: str) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT), "LMMS_EVAL_PLUGINS": ""}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **offline, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def lmms_python(tmp_path_factory) -> Path:
    ready = os.environ.get("WEBSSL_LMMS_EVAL_PYTHON")
    if ready:
        return Path(ready)
    bin_dir = tmp_path_factory.mktemp("lmms") / "env/bin"
    venv.create(bin_dir.parent, with_pip=True)
    run(bin_dir / "pip", "install", "-q", "-c", ROOT / "constraints.txt", "lmms-eval==0.7.3", "pydantic", "peft")
    run(bin_dir / "pip", "uninstall", "-q", "-y", "torchvision", "timm")  # transformers does without
    return bin_dir / "python"


def say_that_images_are_images(path: Path) -> None:
    """As `datasets` does in the files that it writes, the published ones."""
    table = pyarrow.parquet.read_table(path)
    features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
    told = json.dumps({"info": {"features": {**features, "image": {"_type": "Image"}}}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": told}), path)


def test_lmms_eval_asks_our_model_by_its_registered_name(lmms_python, tmp_path):
    write_scenes(tmp_path / "data", 24, seed=0)
    write_tiny_language_model(tmp_path / "llm", tied=False, std=0.3)
    write_tiny_benchmarks(tmp_path / "benchmarks")
    (questions,) = (tmp_path / "benchmarks/realworldqa/data").iterdir()
    say_that_images_are_images(questions)
    images, lines = tmp_path / "data/images", tmp_path / "data/conversations.jsonl"
    webssl = (sys.executable, "-m", "webssl_fast")
    run(*webssl, "train", "configs/smoke/mae.yaml", f"data.source={images}", f"output_dir={tmp_path / 'encoder'}")
    run(
        *webssl,
        "vqa",
        "configs/vqa/smoke.yaml",
        f"encoder={tmp_path / 'encoder'}",
        f"language_model.source={tmp_path / 'llm'}",
        "language_model.max_tokens=256",
        *(f"{stage}.data.conversations={lines}" for stage in ("stage1", "stage2")),
        *(f"{stage}.data.images={images}" for stage in ("stage1", "stage2")),
        f"benchmarks.root={tmp_path / 'benchmarks'}",
        "benchmarks.allow_subset=true",
        "benchmarks.names=[realworldqa]",
        f"output_dir={tmp_path / 'vqa'}",
    )

    where = "import lmms_eval.tasks.realworldqa as task; print(list(task.__path__)[0])"
    shipped = Path(run(lmms_python, "-c", where).split()[-1]) / "realworldqa.yaml"
    (tmp_path / "tasks").mkdir()
    task = TASK.format(shipped=shipped, data=questions.parent)
    (tmp_path / "tasks/local_realworldqa.yaml").write_text(task)
    run(
        *(lmms_python, "-m", "lmms_eval", "--model", "webssl_fast", "--model_args", f"run={tmp_path / 'vqa'}"),
        *("--tasks", "local_realworldqa", "--include_path", tmp_path / "tasks", "--batch_size", "2"),
        *("--output_path", tmp_path / "lmms", "--log_samples"),
        HF_HOME=str(tmp_path / "hf"),
    )

    # It ends with status 0 after an error too, but without results.
    (results,) = (tmp_path / "lmms").rglob("*_results.json")
    scores = json.loads(results.read_text())["results"]["local_realworldqa"]
    assert 0 <= scores["exact_match,none"] <= 1
    (samples,) = (tmp_path / "lmms").rglob("*_samples_local_realworldqa.jsonl")
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(theirs) == NUM_QUESTIONS["realworldqa"]
    ours = [json.loads(line) for line in (tmp_path / "vqa/eval/vqa/realworldqa.jsonl").read_text().splitlines()[1:]]
    by_prompt = {line["prompt"]: line["answer"] for line in ours}
    for sample in theirs:
        answer = sample["filtered_resps"][0]
        # The task of lmms-eval stops after 16 tokens, which are letters in this language model; our protocol goes on.
        assert answer and by_prompt[sample["input"]].startswith(answer)
