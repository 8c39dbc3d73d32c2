"""The rules of docs/design.md, as far as a machine can hold them.

An exemption stands in a table here with its reason. The tables may only shrink: an exemption that is no longer needed
fails its test.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from webssl_fast.config import filter as filter_schema
from webssl_fast.config import schema, study, vqa
from webssl_fast.methods import METHODS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "webssl_fast"
MAX_LINES = 400

# Who may import whom: only what stands further down; packages of one level do not know each other.
LEVELS = {
    "__main__": 8,
    "cli": 7,
    "cli_data": 6,
    "cli_parsers": 5,
    "recipes": 5,
    "engine": 4,
    "methods": 4,
    "data": 4,
    "evals": 4,
    "report": 4,
    "plan": 4,
    "models": 3,
    "judges": 3,
    "ops": 2,
    "_C": 1,
    "parquet_rows": 1,
    "config": 0,
    "records": 0,
    "schedules": 0,
    "draws": 0,
    "gpus": 0,
    "rounding": 0,
    "shards": 0,
    "vqa_categories": 0,
    "errors": 0,
}
EXEMPT_IMPORTS = {
    ("engine", "methods.base"): "the protocol that the engine drives a method through, for type checkers only",
    ("config", "errors"): "a ConfigError is an error that the command line shows without a traceback",
    ("ops", "records"): "multi_crop takes a records.CropRecipe",
}

EXEMPT_CONTRACT = {
    "csrc/attention/attention_cpu.cpp": "on a CPU the op is torch's scaled_dot_product_attention",
    "tests/ops/test_multi_crop.py: gradients_match_reference": "augmentation has no gradient",
    "tests/ops/test_sinkhorn_knopp.py: gradients_match_reference": "targets have no gradient",
    "webssl_fast/ops/multi_crop.py: register_autograd": "augmentation has no gradient",
    "webssl_fast/ops/sinkhorn_knopp.py: register_autograd": "targets have no gradient",
    "tests/ops/test_attention.py: opcheck": "its operator is of the kernels, in test_attention_kernels.py",
}
TEST_NAMES = (
    "matches_reference",
    "gradients_match_reference",
    "opcheck",
    "compiles_fullgraph",
    "rejects_",
    "is_deterministic",
)

CONFIG_MODULES = (schema, filter_schema, study, vqa)  # with a root each, and what they import
SETTINGS = ("schema.py", "evaluation.py", "executor.py", "filter.py", "study.py", "vqa.py", "vqa_benchmarks.py")
EXEMPT_CONFIG_FIELDS: dict[str, str] = {}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files of the repository (in an unpacked archive: of the folder), without what is built or run."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return tuple(path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file())
    return tuple(path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts)


def python_files(folder: Path = PACKAGE) -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and path.is_relative_to(folder)]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- imports


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything of ours that a file imports, wherever in the file: "methods.base", "ops", ..."""
    for node in ast.walk(parse(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}, line {node.lineno}: relative imports hide the arrows"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix("webssl_fast.") for name in names if name.startswith("webssl_fast."))


def component_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def import_arrows() -> Iterator[tuple[Path, str, str]]:
    for path in python_files():
        if path != PACKAGE / "__init__.py":
            for module in imported_modules(path):
                if module.split(".")[0] != component_of(path):
                    yield path, component_of(path), module


def exempted_by(source: str, module: str) -> tuple[str, str] | None:
    return next((key for key in EXEMPT_IMPORTS if key[0] == source and f"{module}.".startswith(f"{key[1]}.")), None)


def test_every_component_has_a_level():
    components = {component_of(path) for path in python_files()} - {"__init__"}
    assert components <= LEVELS.keys(), "give new components a place in LEVELS and in docs/design.md"


def test_imports_run_one_way():
    wrong = [
        f"{relative(path)} imports webssl_fast.{module}"
        for path, source, module in import_arrows()
        if LEVELS[module.split(".")[0]] >= LEVELS[source] and not exempted_by(source, module)
    ]
    assert not wrong, "imports against the arrows (LEVELS):\n" + "\n".join(wrong)


def test_import_exemptions_are_needed():
    used = {exempted_by(source, module) for _, source, module in import_arrows()}
    assert EXEMPT_IMPORTS.keys() <= used


def test_the_extension_has_one_importer():
    importers = {
        relative(path)
        for path in python_files(ROOT)
        if any(module.split(".")[0] == "_C" for module in imported_modules(path))
    }
    assert importers == {"webssl_fast/ops/_library.py"}


def test_the_baseline_imports_nothing_of_ours():
    assert not list(imported_modules(ROOT / "benchmarks" / "plain_dinov2.py"))


# ---------------------------------------------------------------- kernels


def ops() -> list[str]:
    no_ops = {"__init__", "_library", "crop_parameters", "evidence", "flops"}
    modules = {path.stem for path in (PACKAGE / "ops").glob("*.py")} - no_ops
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} - {"core"}
    return sorted(modules | folders)


def missing_of_contract() -> Iterator[str]:
    for op in ops():
        for name in (
            f"webssl_fast/ops/{op}.py",
            f"tests/ops/test_{op}.py",
            f"benchmarks/ops/bench_{op}.py",
            *(f"csrc/{op}/{op}{end}" for end in (".h", "_math.h", "_cpu.cpp", "_cuda.cu")),
        ):
            if not (ROOT / name).is_file():
                yield name
        module, test = f"webssl_fast/ops/{op}.py", f"tests/ops/test_{op}.py"
        if (ROOT / module).is_file():
            functions = {node.name for node in parse(ROOT / module).body if isinstance(node, ast.FunctionDef)}
            yield from (f"{module}: {name}" for name in (op, f"{op}_reference") if name not in functions)
            text = (ROOT / module).read_text()
            yield from (f"{module}: {word}" for word in ("register_fake", "register_autograd") if word not in text)
        if (ROOT / test).is_file():
            tests = [node.name for node in ast.walk(parse(ROOT / test)) if isinstance(node, ast.FunctionDef)]
            yield from (f"{test}: {name}" for name in TEST_NAMES if not any(f"test_{name}" in t for t in tests))


def test_every_op_keeps_the_contract():
    missing = set(missing_of_contract()) - EXEMPT_CONTRACT.keys()
    assert not missing, "docs/adding_an_op.md asks for these:\n" + "\n".join(sorted(missing))


def test_contract_exemptions_are_needed():
    assert EXEMPT_CONTRACT.keys() <= set(missing_of_contract())


def test_kernels_know_no_torch():
    pattern = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|at)/')
    found = [relative(p) for p in tracked_files() if p.is_relative_to(ROOT / "csrc") and pattern.search(p.read_text())]
    assert not found


def test_only_the_bindings_know_python():
    found = [relative(p) for p in tracked_files() if p.is_relative_to(ROOT / "csrc") and "pybind11" in p.read_text()]
    assert found == ["csrc/bindings.cpp"]


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_files(name: str):
    files = [f"webssl_fast/methods/{name}.py", f"tests/golden/{name}.json", f"configs/smoke/{name}.yaml"]
    missing = [path for path in files if not (ROOT / path).is_file()]
    assert not missing, f"docs/adding_a_method.md asks for these: {missing}"


def test_engine_and_data_name_no_method():
    found = [
        f"{relative(path)}, line {node.lineno}: {node.value!r}"
        for component in ("engine", "data")
        for path in python_files(PACKAGE / component)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and node.value in METHODS
    ]
    assert not found, "the protocol (methods/base.py) is all that the engine knows of a method"


# ---------------------------------------------------------------- files and names


def test_files_are_short():
    sources = [p for p in tracked_files() if p.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}]
    long = {relative(p): n for p in sources if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"a file has one responsibility and at most {MAX_LINES} lines: {long}"


def test_file_names_say_something():
    pattern = re.compile(r"(^|_)(utils?|helpers?|misc|common|manager|v2)(_|$)|^(new|legacy|old)_")
    found = [
        relative(path)
        for path in tracked_files()
        if any(pattern.search(part.split(".")[0]) for part in path.relative_to(ROOT).parts)
    ]
    assert not found


def test_a_step_is_not_called_iter():
    pattern = re.compile(r"(^|_)iters?(_|$)")
    found = []
    for path in python_files(ROOT):
        for node in ast.walk(parse(path)):
            stored = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else stored
            if name and pattern.search(name):
                found.append(f"{relative(path)}: {name}")
    assert not found


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.~*-])/(work|root|home|tmp|farm)/\w")
    text_files = [p for p in tracked_files() if p.suffix not in {".png", ".jpg", ".svg"}]
    found = [relative(p) for p in text_files if pattern.search(p.read_text(errors="ignore"))]
    assert not found


# ---------------------------------------------------------------- config


def config_fields() -> Iterator[tuple[str, str]]:
    for model in (model for module in CONFIG_MODULES for model in vars(module).values()):
        if isinstance(model, type) and issubclass(model, schema.Config) and model is not schema.Config:
            yield from ((model.__name__, name) for name in model.model_fields)


@cache
def names_read_in_package() -> frozenset[str]:
    """Attributes that are read and strings that stand in the package outside the schema (a getattr, a keyword)."""
    names = set()
    for path in python_files():
        if path.name in SETTINGS and path.parent == PACKAGE / "config":
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return frozenset(names)


def test_every_setting_is_read():
    unread = {f"{model}.{name}" for model, name in config_fields() if name not in names_read_in_package()}
    assert unread == EXEMPT_CONFIG_FIELDS.keys(), "a setting that nothing reads is a promise that is not kept"


# ---------------------------------------------------------------- claims


GPU = re.compile(r"\b(H100|H200|A100|B200|L40S?|RTX ?\d+|V100|GPUs?)\b")
FIGURE = re.compile(
    r"\d[\d.,]*\s*(ms\b|µs|us\b|img/s|images/s|samples/s|TFLOP|GB/s|TB/s|[x×]\b|times (as )?fast|% ?(MFU|of peak))"
)
GENERATED = re.compile(r"<!-- table: \w+ -->.*?<!-- /table -->", re.DOTALL)


def claims(text: str) -> list[str]:
    return [line for line in GENERATED.sub("", text).splitlines() if GPU.search(line) and FIGURE.search(line)]


@pytest.mark.parametrize("path", [p for p in tracked_files() if p.suffix == ".md"], ids=relative)
def test_gpu_figures_come_from_result_lines(path: Path):
    assert not claims(path.read_text()), "write GPU figures through benchmarks/tables.py, from a result line"


def test_a_typed_in_gpu_figure_is_found():
    assert claims("On an H100 the kernel takes 3.2 ms.")
    assert not claims("<!-- table: x -->\n| H100 | 3.2 ms |\n<!-- /table -->")
