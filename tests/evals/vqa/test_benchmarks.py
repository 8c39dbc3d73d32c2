from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.evals.vqa.tiny_benchmarks import NUM_QUESTIONS, write_gqa
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.answers import check_ids, data_identity
from webssl_fast.evals.vqa.benchmarks import BENCHMARKS, benchmark_of, download_command, find_data
from webssl_fast.vqa_categories import BENCHMARKS as NAMES


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_there_are_the_16():
    assert tuple(BENCHMARKS) == NAMES
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    assert benchmark_of("docvqa", "test").split == "test" and benchmark_of("docvqa").split == "validation"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_published_layout_is_read(tiny_benchmarks: Path, name: str):
    benchmark = BENCHMARKS[name]
    questions = benchmark.load(find_data(benchmark, tiny_benchmarks / benchmark.folder))
    assert len(questions) == NUM_QUESTIONS[name]
    check_ids(questions, name)
    assert all(each.prompt.strip() == each.prompt or name == "mmmu" for each in questions)
    assert data_identity(questions) == data_identity(benchmark.load(tiny_benchmarks / benchmark.folder))


def test_identity_is_of_prompts_and_truths_not_of_places(tiny_benchmarks: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_benchmarks / "ai2d", tmp_path / "elsewhere")
    questions = BENCHMARKS["ai2d"].load(copy)
    assert data_identity(questions) == data_identity(BENCHMARKS["ai2d"].load(tiny_benchmarks / "ai2d"))
    assert data_identity(questions[:2]) != data_identity(questions)


def test_download_commands_are_shell():
    words = shlex.split(download_command(BENCHMARKS["mmvp"], Path("my data/mmvp")))
    assert words[:3] == ["hf", "download", "MMVP/MMVP"]
    assert words[words.index("--local-dir") + 1] == "my data/mmvp"
    assert words[-1] == "MMVP Images/*.jpg"


def test_data_in_the_hub_s_cache_are_found(hub_cache: Path, tmp_path: Path):
    write_gqa(tmp_path)
    repository = hub_cache / "datasets--lmms-lab-encoder--GQA"  # the moved id
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "gqa").rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert find_data(BENCHMARKS["gqa"], None).resolve() == snapshot.resolve()
    assert find_data(BENCHMARKS["gqa"], tmp_path / "nowhere").resolve() == snapshot.resolve()
    next(snapshot.glob("testdev_balanced_images/*")).unlink()
    with pytest.raises(UserError, match="no data set in the hub's cache"):
        find_data(BENCHMARKS["gqa"], None)


def test_missing_data_say_what_to_fetch_and_where_to(hub_cache: Path, tmp_path: Path):
    with pytest.raises(UserError) as error:
        find_data(BENCHMARKS["mme"], tmp_path / "mme")
    assert str(error.value) == (
        f"mme: there is no folder {tmp_path / 'mme'}, and none of its data sets is in the hub's cache. To fetch it: "
        f"hf download lmms-lab/MME --repo-type dataset --local-dir {tmp_path / 'mme'} --include 'data/test-*.parquet'"
    )
    with pytest.raises(UserError, match="mme: no data set in the hub's cache. To fetch it: hf .* vqa_data/mme"):
        find_data(BENCHMARKS["mme"], None)


def test_a_folder_with_other_files_is_not_passed_over(hub_cache: Path, tmp_path: Path):
    (tmp_path / "README.md").touch()
    with pytest.raises(UserError, match=r"mme: .* holds README.md; expected are data/test-\*.parquet as in lmms"):
        find_data(BENCHMARKS["mme"], tmp_path)


def test_a_download_that_fails_says_so(hub_cache: Path):
    with pytest.raises(UserError, match="lmms-lab/MME cannot be downloaded"):
        find_data(BENCHMARKS["mme"], None, download=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_document_names_data_and_numbers(name: str):
    benchmark = BENCHMARKS[name]
    text = (Path(__file__).parents[3] / "docs" / "vqa_benchmarks.md").read_text()
    data, protocol = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
    cells = [cell.strip() for cell in data.strip("|").split("|")]
    assert cells[1:3] == [f"`{benchmark.folder}`", f"`{benchmark.published[0].hub_id}`"]
    assert cells[3].startswith(benchmark.split) and cells[4].startswith(f"{benchmark.num_questions:,}")
    tokens = re.findall(r"(\d+) tokens", protocol)
    assert tokens == {"mme": ["32"], "gqa": ["128"], "chartqa": ["128"], "docvqa": ["128"]}.get(name, [])
