"""Every command that the documents name exists and parses, and the whole command line runs end to end."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from webssl_fast.cli import build_parser
from webssl_fast.config.fields import Config
from webssl_fast.config.filter import FilterConfig
from webssl_fast.config.load import load_config, load_config_of
from webssl_fast.config.schema import RunConfig
from webssl_fast.config.study import StudyConfig
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.errors import ConfigError
from webssl_fast.ops.evidence import kernel_ops

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
# What a config holds, where it is no run of pre-training: by its command, which its folder is named after.
ROOTS: dict[str, type[Config]] = {"filter": FilterConfig, "study": StudyConfig, "vqa": VqaConfig}
PROGRAMS = ("webssl", "make", "python", "torchrun")


def commands_of(path: Path) -> list[str]:
    """Lines that start one of our programs: in a document's shell blocks and inline code, in a config's header."""
    text = path.read_text()
    if path.suffix == ".yaml":
        lines = [line[1:] for line in text.splitlines() if line.startswith("#")]
    else:
        blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    commands = [re.split(r"\s#|\s{3,}", line.strip().removeprefix("$ "))[0] for line in lines]
    return [command for command in commands if command.split(" ")[0] in PROGRAMS and " " in command]


def check_webssl(arguments: list[str]) -> None:
    if len(arguments) == 1 + (arguments[0] == "data"):  # a command spoken of, not run
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args([*arguments, "--help"])
        return
    parsed = build_parser().parse_args(arguments)
    if parsed.command == "study" and parsed.target not in ("status", "published"):
        load_config_of(StudyConfig, ROOT / parsed.target, parsed.rest)
    if hasattr(parsed, "config"):
        load_config_of(ROOTS.get(parsed.command, RunConfig), ROOT / parsed.config, parsed.overrides)


def check_module(arguments: list[str]) -> None:
    module, *rest = arguments[arguments.index("-m") + 1 :]
    if module == "webssl_fast":
        return check_webssl(rest)
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"no module {module}"
    if module.startswith(("benchmarks.", "webssl_fast.")):
        source = Path(spec.origin).read_text()
        if "argument_parser(" in source:  # the options that op benchmarks share
            source += (ROOT / "benchmarks" / "harness.py").read_text()
        unknown = [word for word in rest if word.startswith("--") and f'"{word.split("=")[0]}"' not in source]
        assert not unknown, f"{module} knows no {unknown}"


def check_make(arguments: list[str]) -> None:
    made = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def all_commands() -> list[tuple[str, str]]:
    pairs = [(p.relative_to(ROOT).as_posix(), command) for p in (*DOCUMENTS, *CONFIGS) for command in commands_of(p)]
    return list(dict.fromkeys(pairs))


@pytest.mark.parametrize(("document", "command"), all_commands())
def test_documented_command_exists(document: str, command: str):
    program, *arguments = shlex.split(command)
    if program == "make":
        check_make(arguments)
    elif program == "webssl":
        check_webssl(arguments)
    elif "-m" in arguments:
        check_module(arguments)


def bases() -> set[Path]:
    return {c.parent / found[1] for c in CONFIGS if (found := re.search(r"^base: *(\S+)", c.read_text(), re.MULTILINE))}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_config_loads_and_opens_with_its_command(config: Path):
    load_config_of(ROOTS.get(config.parent.name, RunConfig), config)
    name = config.relative_to(ROOT).as_posix()
    assert config in bases() or any(name in command for command in commands_of(config)), (
        f"{name} must open with the command that runs it"
    )


def test_a_command_that_does_not_exist_is_found():
    with pytest.raises(SystemExit, match="2"):
        check_webssl(["trian", "configs/smoke/dinov2.yaml"])
    with pytest.raises(ConfigError, match="num_steps"):
        check_webssl(["train", "configs/smoke/dinov2.yaml", "train.num_step=1"])
    with pytest.raises(AssertionError, match="No rule"):
        check_make(["no-such-target"])
    with pytest.raises(AssertionError, match="knows no"):
        check_module(["-m", "benchmarks.bench_step", "--no-such-option"])


# ---------------------------------------------------------------- smoke runs


@pytest.fixture(scope="module")
def labelled_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in colour: train/<class>/ with 8 images each, test/<class>/ with 4."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, color in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(color) + rng.normal(0, 30, (80, 90, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.jpg")
    return folder


def webssl(*arguments: str) -> str:
    """Runs the command line as a person would; returns what it printed."""
    command = [sys.executable, "-m", "webssl_fast", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("method", ["dinov2", "mae", "ijepa"])
def test_train_evaluate_report(labelled_images: Path, tmp_path: Path, method: str):
    run = tmp_path / "run"
    overrides = [
        f"output_dir={run}",
        f"data.source={labelled_images}/train",
        f"eval.knn.train_source={labelled_images}/train",
        f"eval.knn.test_source={labelled_images}/test",
        "eval.every=4",
    ]
    webssl("train", f"configs/smoke/{method}.yaml", *overrides)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in logged) == 4
    assert load_config(run / "config.yaml").train.num_steps == 4
    webssl("eval", f"configs/smoke/{method}.yaml", *overrides)
    assert json.loads((run / "eval/knn.json").read_text())["encoder"]["name"] == "run/step_00000004"
    webssl("report", str(run))
    page = (run / "report.html").read_text()
    assert "<html" in page and "run/eval/knn.json" in page and "is left out" not in page
    assert "<html" in page and "What the patches see" in page
    assert ("What is filled in" in page) == (method == "mae")


def test_info_names_every_kernel():
    printed = webssl("info")
    assert "torch" in printed
    for op in kernel_ops():
        assert op in printed


def bench_step(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.bench_step", *arguments, "--batch", "2", "--repeats", "1"]
    command += ["--precision", "fp32", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_benchmark_runs():
    line = bench_step("--preset", "vit_nano_patch14", "--prototypes", "64")
    assert line["ms_per_step"] > 0 and line["peak_rss_mb"] > 0 and line["baseline_ms_per_step"] > 0
    assert line["largest_difference"]["relative"] < 1e-3
