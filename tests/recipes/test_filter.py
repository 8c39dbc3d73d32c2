"""`webssl filter`: what it leaves follows from source and settings alone, whatever happened while it worked."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import encode, write_folder
from tests.interruptions import interrupted_after
from tests.judges import stand_in
from tests.recipes.filter_run import bytes_of, config_of, write_source
from webssl_fast.config.filter import FilterConfig
from webssl_fast.config.schema import DataConfig
from webssl_fast.data import judged_parts
from webssl_fast.data.index import Index, StringTable
from webssl_fast.data.indexing import build_index
from webssl_fast.data.owned_folder import owned
from webssl_fast.data.subset import Subset, of_ids, write_subset
from webssl_fast.data.training_data import TrainingData
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.recipes import filter as recipe
from webssl_fast.recipes.filter import filter_images

parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pyroaring")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """An index of two shards of twelve samples, two of them damaged."""
    folder = tmp_path_factory.mktemp("source")
    build_index(write_source(folder), folder / "source.index")
    return str(folder / "source.index")


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    filter_images(config_of(source, folder), stand_in.KIND)
    return bytes_of(folder)


def rows_of(folder: Path) -> list[dict]:
    return parquet.read_table(folder / "scores.parquet").to_pylist()


def test_scores_answers_and_subsets_agree(source, tmp_path):
    summary = filter_images(config_of(source, tmp_path / "out"), stand_in.KIND)
    rows = rows_of(tmp_path / "out")
    assert [row["sample_id"] for row in rows] == list(range(24))
    assert [row["name"] for row in rows[:2]] == ["0-000", "0-001"]
    bad = [row for row in rows if row["error"] is not None]
    assert [row["sample_id"] for row in bad] == [5, 11]
    assert all(row["light"] is None and row["heavy"] is None and row["brightness"] is None for row in bad)
    light = [row["sample_id"] for row in rows if row["light"]]
    heavy = [row["sample_id"] for row in rows if row["heavy"]]
    assert light == [r["sample_id"] for r in rows if r["error"] is None and r["brightness"] >= np.float32(0.4)]
    assert 0 < len(heavy) < len(light) < 22
    for name, ids in (("light", light), ("heavy", heavy)):
        subset = Subset.of(tmp_path / "out" / f"{name}.subset", Index.open(source))
        assert subset.select(np.arange(len(subset))).tolist() == ids
    data = TrainingData.open(DataConfig(source=source, subset=str(tmp_path / "out/light.subset")))
    assert len(data) == len(light)
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["num_samples"], summary["num_bad"]) == (24, 2)
    assert summary["light_share"] == len(light) / 22
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "heavy.subset", "judged_by.json", "light.subset", "scores.parquet", "summary.json",
    ]  # fmt: skip


def test_a_source_that_is_no_index_is_indexed_first(tmp_path):
    images = {f"{i}.png": encode(np.full((20, 20, 3), 25 * i, np.uint8), "PNG") for i in range(10)}
    write_folder(tmp_path / "images", images)
    filter_images(config_of(str(tmp_path / "images"), tmp_path / "out"), stand_in.KIND)
    index = Index.open(str(tmp_path / "out/source.index"))
    light = Subset.of(tmp_path / "out/light.subset", index)
    assert [index.name(int(i)) for i in light.select(np.arange(len(light)))] == [f"{i}.png" for i in range(5, 10)]


@pytest.mark.parametrize(
    "changes", [{"executor": {"num_workers": 2}}, {"data": {"num_threads": 0}}, {"data": {"num_threads": 3}}]
)
def test_workers_and_threads_change_nothing(source, undisturbed, tmp_path, changes):
    filter_images(config_of(source, tmp_path, **changes), stand_in.KIND)
    assert bytes_of(tmp_path) == undisturbed


def test_other_thresholds_judge_nothing_anew(source, undisturbed, tmp_path):
    other = config_of(source, tmp_path / "out", judge={"thresholds": {"confidence": 0.6, "heavy_area_share": 0.7}})
    filter_images(other, stand_in.KIND)
    broken = replace(stand_in.KIND, load=None)
    filter_images(config_of(source, tmp_path / "out"), broken)
    assert bytes_of(tmp_path / "out") == undisturbed


def test_row_groups_do_not_show_the_parts(source, undisturbed, tmp_path, monkeypatch):
    from webssl_fast.data import scores

    monkeypatch.setattr(scores, "ROWS_AT_ONCE", 7)
    filter_images(config_of(source, tmp_path), stand_in.KIND)
    file = parquet.ParquetFile(tmp_path / "scores.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [7, 7, 7, 3]
    once = bytes_of(tmp_path)
    filter_images(config_of(source, tmp_path), stand_in.KIND)
    assert bytes_of(tmp_path) == once
    assert once["light.subset"] == undisturbed["light.subset"]


def test_a_subset_alone_is_judged(source, tmp_path):
    write_subset(tmp_path / "some.subset", of_ids(np.array([3, 8, 10, 20, 21, 22])), Index.open(source))
    config = config_of(source, tmp_path / "out", data={"subset": str(tmp_path / "some.subset")})
    assert filter_images(config, stand_in.KIND)["num_samples"] == 6
    assert [row["sample_id"] for row in rows_of(tmp_path / "out")] == [3, 8, 10, 20, 21, 22]
    folder = config_of(str(Path(source).parent / "000.tar"), tmp_path / "new", data={"subset": "some.subset"})
    with pytest.raises(ConfigError, match="data.subset is a subset of an index"):
        filter_images(folder, stand_in.KIND)


# ---------------------------------------------------------------- interruptions


class Stopping:
    """A judge kind whose judge is interrupted at its n-th batch; counts batches."""

    def __init__(self, stop_at: int | None):
        self.stop_at, self.num_batches = stop_at, 0

    def kind(self):
        return replace(stand_in.KIND, load=self.load)

    def load(self, config):
        judge = stand_in.StandIn(config)
        judge_all = judge.judge

        def counted(prepared):
            if self.num_batches == self.stop_at:
                raise KeyboardInterrupt
            self.num_batches += 1
            return judge_all(prepared)

        judge.judge = counted
        return judge


def test_a_restart_judges_what_is_missing(source, undisturbed, tmp_path):
    first, second = Stopping(4), Stopping(None)
    with pytest.raises(KeyboardInterrupt):
        filter_images(config_of(source, tmp_path), first.kind())
    parts = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert parts == ["00000000.parquet", "00000001.parquet"], "two parts of two batches each; the third was begun"
    filter_images(config_of(source, tmp_path), second.kind())
    assert second.num_batches == 7, "of the four parts the first has a bad image for its second batch"
    assert bytes_of(tmp_path) == undisturbed


@pytest.mark.parametrize("fail_at", range(0, 17))
def test_stopped_after_any_file_operation_the_result_is_the_same(source, undisturbed, tmp_path, monkeypatch, fail_at):
    """Every rename and removal is a place to be killed at: exactly, where the test below is random."""
    interrupted_after(fail_at, lambda: filter_images(config_of(source, tmp_path / "out"), stand_in.KIND), monkeypatch)
    filter_images(config_of(source, tmp_path / "out"), stand_in.KIND)
    assert bytes_of(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out/parts").exists() and not list((tmp_path / "out").glob("*.unfinished"))


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_the_result_is_the_same_byte_for_byte(source, undisturbed, tmp_path, num_kills):
    draws = random.Random(num_kills)
    out = tmp_path / "out"
    struck, num_parts = 0, set()
    while struck < num_kills:
        num_workers = 1 if num_kills == 3 else 1 + struck % 2
        process = started(source, out, num_workers, seconds_an_image=0.02)
        assert process.stdout.readline() == b"begins\n"
        wait_for_parts(process, out, draws.randrange(3))
        try:
            process.wait(draws.uniform(0, 0.2))
        except subprocess.TimeoutExpired:
            (os.killpg if draws.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
            struck += 1
        process.wait()
        num_parts.add(len(parts_in(out)))
        if (out / "summary.json").exists():  # it was done: again from the start, over what it left
            (out / "scores.parquet").unlink()
            (out / "summary.json").unlink()
    assert started(source, out, 2 if num_kills > 3 else 1, seconds_an_image=0).wait() == 0
    assert bytes_of(out) == undisturbed
    assert len(num_parts) > 1, "they struck at different states"
    assert {path.name for path in out.iterdir()} == {*undisturbed, "judged_by.json"}


def parts_in(out: Path) -> list[Path]:
    return list((out / "parts").glob("*.parquet"))


def wait_for_parts(process: subprocess.Popen, out: Path, number: int) -> None:
    """Until there are so many parts more, or the process is done."""
    before = len(parts_in(out))
    while process.poll() is None and len(parts_in(out)) < before + number:
        time.sleep(0.005)


def started(source: str, out: Path, num_workers: int, seconds_an_image: float) -> subprocess.Popen:
    environment = {**os.environ, stand_in.SECONDS_AN_IMAGE: str(seconds_an_image)}
    command = [sys.executable, "-m", "tests.recipes.filter_run", source, str(out), str(num_workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


# ---------------------------------------------------------------- what goes wrong


def test_a_second_process_is_refused(source, tmp_path):
    with owned(tmp_path, "output_dir"), pytest.raises(UserError, match="another process is writing.*output_dir"):
        filter_images(config_of(source, tmp_path), stand_in.KIND)


@pytest.mark.parametrize("finished", [False, True])
def test_changed_settings_are_refused_and_named(source, tmp_path, finished):
    if finished:
        filter_images(config_of(source, tmp_path), stand_in.KIND)
    else:
        with pytest.raises(KeyboardInterrupt):
            filter_images(config_of(source, tmp_path), Stopping(3).kind())
    with pytest.raises(UserError, match=r"other settings:\n  judge.max_side_px: 960 -> 500\nSet them back"):
        filter_images(config_of(source, tmp_path, judge={"max_side_px": 500}), stand_in.KIND)
    with pytest.raises(UserError, match="samples_per_part: 4 -> 5"):
        filter_images(config_of(source, tmp_path, samples_per_part=5), stand_in.KIND)
    other = write_source(tmp_path / "other", num_samples=13)
    build_index(other, tmp_path / "other.index")
    with pytest.raises(UserError, match="data.samples: 24 -> 26\n  data.index: "):
        filter_images(config_of(str(tmp_path / "other.index"), tmp_path), stand_in.KIND)


def test_another_source_is_refused(tmp_path):
    a, b = write_source(tmp_path / "a"), write_source(tmp_path / "b", num_shards=3)
    with pytest.raises(KeyboardInterrupt):
        filter_images(config_of(a, tmp_path / "out"), Stopping(3).kind())
    with pytest.raises(UserError, match="other files than .*another output_dir"):
        filter_images(config_of(b, tmp_path / "out"), stand_in.KIND)


def test_settings_of_a_try_that_came_to_nothing_do_not_bind(source, undisturbed, tmp_path):
    def fail(config):
        raise UserError("there is no such model")

    with pytest.raises(UserError, match="no such model"):
        filter_images(config_of(source, tmp_path, judge={"max_side_px": 500}), replace(stand_in.KIND, load=fail))
    filter_images(config_of(source, tmp_path), stand_in.KIND)
    assert bytes_of(tmp_path) == undisturbed


def test_too_many_bad_images_stop_it(source, undisturbed, tmp_path):
    few = {"max_bad_share": 0.05, "min_seen_before_stop": 8}
    with pytest.raises(UserError, match=r"1 of 8 samples \(12.5%\).*column error"):
        filter_images(config_of(source, tmp_path, data=few), stand_in.KIND)
    with pytest.raises(UserError, match="1 of 8 samples"):
        filter_images(config_of(source, tmp_path, data=few), stand_in.KIND)
    filter_images(config_of(source, tmp_path, data={**few, "max_bad_share": 0.5}), stand_in.KIND)
    assert bytes_of(tmp_path) == undisturbed


def test_a_judge_that_fails_on_an_image_says_so(tmp_path):
    shades = {f"{i}.png": encode(np.full((5 if i == 1 else 20, 20, 3), 200, np.uint8), "PNG") for i in range(3)}
    write_folder(tmp_path / "images", shades)
    summary = filter_images(config_of(str(tmp_path / "images"), tmp_path / "out"), stand_in.KIND)
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [None, "too small", None]
    assert (summary["num_bad"], summary["num_light"]) == (1, 2)


def test_what_could_not_be_read_is_tried_again(tmp_path):
    """A shard that is away is no verdict on its images."""
    shards = write_source(tmp_path / "shards")
    build_index(shards, tmp_path / "i")
    filter_images(config_of(str(tmp_path / "i"), tmp_path / "undisturbed"), stand_in.KIND)
    away = tmp_path / "shards/001.tar"
    away.rename(tmp_path / "elsewhere.tar")
    with pytest.raises(UserError, match=r"(?s)of 3 of 6 parts more than .*part 3: 4 of 4 samples"):
        filter_images(config_of(str(tmp_path / "i"), tmp_path / "out"), stand_in.KIND)
    (tmp_path / "elsewhere.tar").rename(away)
    filter_images(config_of(str(tmp_path / "i"), tmp_path / "out"), stand_in.KIND)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")


def test_a_damaged_part_is_named(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        filter_images(config_of(source, tmp_path), Stopping(3).kind())
    (tmp_path / "parts/00000000.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(UserError, match="00000000.parquet' cannot be read .*: remove it"):
        filter_images(config_of(source, tmp_path), stand_in.KIND)


def test_nothing_to_judge_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="data.source is empty"):
        filter_images(FilterConfig(output_dir=str(tmp_path)), stand_in.KIND)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no images"):
        filter_images(config_of(str(tmp_path / "images"), tmp_path / "out"), stand_in.KIND)
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pyarrow: pip install 'webssl_fast\[filter\]'"):
        filter_images(config_of("images", tmp_path), stand_in.KIND)


def test_an_empty_subset_is_written_and_warned_of(source, tmp_path, caplog):
    config = config_of(source, tmp_path, judge={"thresholds": {"confidence": 0.4, "heavy_area_share": 1.0}})
    filter_images(config, stand_in.KIND)
    assert len(Subset(tmp_path / "heavy.subset")) == 0
    assert "heavy.subset is empty" in caplog.text


def test_names_that_are_no_unicode(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))).write_bytes(encode(np.zeros((9, 9, 3), np.uint8), "PNG"))
    filter_images(config_of(str(folder), tmp_path / "out"), stand_in.KIND)
    assert rows_of(tmp_path / "out")[0]["name"] == "\\udcff.png"


def test_the_name_of_a_remote_sample_costs_no_request(source):
    index = Index.open(source)
    assert judged_parts._name(index, 1) == "0-001"
    remote = replace(index, files=StringTable.from_list(["s3://bucket/000.tar", "s3://bucket/001.tar"]))
    assert judged_parts._name(remote, 0) == "000.tar, byte 512"
