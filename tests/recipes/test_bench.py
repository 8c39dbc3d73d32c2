from pathlib import Path

import pytest

from webssl_fast.errors import UserError
from webssl_fast.ops.evidence import kernel_ops
from webssl_fast.recipes.bench import available_benchmarks, bench


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ops = tmp_path / "benchmarks" / "ops"
    ops.mkdir(parents=True)
    for folder in (ops.parent, ops):
        (folder / "__init__.py").touch()
    for name, status in (("works", 0), ("fails", 3)):
        source = f"import sys\nprint('{name}', *sys.argv[1:], flush=True)\nsys.exit({status})\n"
        (ops / f"bench_{name}.py").write_text(source)
    return tmp_path


def test_every_kernel_has_a_benchmark():
    assert set(kernel_ops()) <= set(available_benchmarks())


def test_hands_on_the_options_that_are_set(root: Path, capfd: pytest.CaptureFixture[str]):
    bench("works", root, device="cpu", threads=None, repeats=3)
    assert capfd.readouterr().out == "works --device cpu --repeats 3\n"


def test_a_failure_does_not_keep_the_others_from_running(root: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="benchmark of fails failed"):
        bench(None, root)
    assert capfd.readouterr().out == "fails\nworks\n"


def test_rejects_an_unknown_op(root: Path):
    with pytest.raises(UserError, match="no benchmark of an op 'work'; there are fails, works"):
        bench("work", root)
