"""A saved index: it says what a scan says, whatever happened while it was written, and opens at once at any size."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulated_index import write_simulated_index
from tests.data.image_files import write_folder, write_tar
from tests.interruptions import interrupted_after
from webssl_fast.data import index_parts
from webssl_fast.data.column_file import VERSION, map_columns
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.order import sample_ids
from webssl_fast.data.read import SampleReader
from webssl_fast.errors import UserError


def write_shards(folder: Path, num_shards: int, num_samples: int, labels: bool = False, start: int = 0) -> str:
    for shard in range(start, start + num_shards):
        members = {}
        for i in range(num_samples + shard % 3):
            members[f"{shard:03d}/{i}.jpg"] = bytes([shard, i % 256]) * (50 + 3 * i)
            members[f"{shard:03d}/{i}.txt"] = f"caption {shard} {i}".encode()
            if labels:
                members[f"{shard:03d}/{i}.cls"] = str(i % 7).encode()
        write_tar(folder / f"{shard:03d}.tar", members)
    return f"{folder}/*.tar"


def same(a: Index, b: Index) -> None:
    assert len(a) == len(b) and a.class_names == b.class_names and a.kind == b.kind
    ids = np.arange(len(a))
    assert a.label(ids).tolist() == b.label(ids).tolist()
    for i in range(len(a)):
        assert (a.name(i), a.locate(i), a.locate_member(i, "txt")) == (
            b.name(i),
            b.locate(i),
            b.locate_member(i, "txt"),
        )


@pytest.mark.parametrize("labels", [False, True])
def test_shards_as_a_scan_finds_them_in_few_bytes(tmp_path, labels):
    source = write_shards(tmp_path, 5, 200, labels)
    report = build_index(source, tmp_path / "i")
    saved = Index.open(str(tmp_path / "i"))
    same(saved, Index.open(source))
    reader = SampleReader()
    assert reader.read(saved.locate_member(203, "txt")) == b"caption 1 3"
    per_sample = ((tmp_path / "i").stat().st_size - 4096) / len(saved)
    assert per_sample <= (16 if labels else 12)
    assert report.num_samples == 1004 and not report.problems and not (tmp_path / "i.parts").exists()


def test_folders_and_their_classes(tmp_path):
    root = write_folder(tmp_path / "images", {f"{'ab'[i % 2]}/{i}.jpg": b"x" * i for i in range(30)})
    build_index(str(root), tmp_path / "i")
    saved = Index.open(str(tmp_path / "i"))
    same(saved, Index.open(str(root)))
    assert sorted(saved.sizes.tolist()) == list(range(30))
    same(Index.open(str(tmp_path / "i"), ["b", "c", "a"]), Index.open(str(root), ["b", "c", "a"]))
    with pytest.raises(UserError, match="'a'.*none of the 1"):
        Index.open(str(tmp_path / "i"), ["b"])
    with pytest.raises(UserError, match="keys of shards.*is a folder"):
        build_index(str(root), tmp_path / "j", find_duplicates=True)


def test_parquet_files(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    for file in range(2):
        rows = {"image": [b"x" * (file + i) for i in range(3)], "label": [0, 1, file], "text": ["a", "b", "c"]}
        parquet.write_table(table(rows), tmp_path / f"{file}.parquet")
    build_index(f"{tmp_path}/*.parquet", tmp_path / "i")
    same(Index.open(str(tmp_path / "i")), Index.open(f"{tmp_path}/*.parquet"))


@pytest.mark.parametrize("store", ["file", "memory"])
def test_shards_of_other_stores(tmp_path, store):
    fsspec = pytest.importorskip("fsspec")
    source = write_shards(tmp_path, 3, 20, labels=True)
    for path in tmp_path.glob("*.tar"):
        fsspec.filesystem("memory").pipe(f"/indexed/{path.name}", path.read_bytes())
    remote = f"file://{tmp_path}/*.tar" if store == "file" else "memory://indexed/*.tar"
    build_index(remote, tmp_path / "i")
    saved, local, reader = Index.open(str(tmp_path / "i")), Index.open(source), SampleReader()
    for i in range(len(local)):
        assert saved.name(i) == local.name(i) and saved.label(np.array([i])) == local.label(np.array([i]))
        assert reader.read(saved.locate(i)) == reader.read(local.locate(i))
        assert reader.read(saved.locate_member(i, "txt")) == reader.read(local.locate_member(i, "txt"))


def test_the_index_itself_can_be_moved_and_evaluations_check_its_labels(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    build_index(Path(write_shards(tmp_path, 2, 9, labels=True)).name, tmp_path / "i")
    os.rename(tmp_path / "i", tmp_path / "elsewhere" / "i")
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved = Index.open("i")
    assert SampleReader().read(saved.locate(0)) == bytes([0, 0]) * 50
    with pytest.raises(UserError, match="label 6.*3 classes"):
        Index.open("i", class_names=["a", "b", "c"])


# ---------------------------------------------------------------- dirty shards


def test_truncated_shards_give_what_is_whole_and_are_named(tmp_path):
    source = write_shards(tmp_path, 3, 40)
    whole = (tmp_path / "001.tar").read_bytes()
    full = [name for i in range(41) for name in [f"001/{i}"]]
    for cut in (300, 512, 700, 20_000, 33_333, len(whole) - 10_240):
        (tmp_path / "001.tar").write_bytes(whole[:cut])
        for path in tmp_path.glob("i*"):
            path.unlink()
        report = build_index(source, tmp_path / "i")
        saved = Index.open(str(tmp_path / "i"))
        names = [saved.name(i) for i in range(len(saved))]
        kept = [name for name in names if name.startswith("001/")]
        assert kept == full[: len(kept)] and len(names) - len(kept) == 40 + 42
        (problem,) = saved.problems
        assert problem.kind == "damaged" and "001.tar" in problem.message and "damaged" in report.describe()
        reader = SampleReader()
        assert all(reader.read(saved.locate(i)) for i in range(len(saved)))
        assert len(kept) == (0 if cut < 1024 else len(kept)) and (cut < 20_000 or len(kept) > 5)


def test_keys_twice_within_and_across_shards_are_named(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.jpg": b"1", "b.jpg": b"2", "a.png": b"3"})
    write_tar(tmp_path / "1.tar", {"c.jpg": b"4", "b.jpg": b"5", "d.txt": b""})
    report = build_index(f"{tmp_path}/*.tar", tmp_path / "i", find_duplicates=True)
    assert [problem.kind for problem in report.problems] == ["duplicate"]
    assert "0.tar" in report.problems[0].message and "'a'" in report.problems[0].message
    lines = [json.loads(line) for line in (tmp_path / "i.duplicates.jsonl").read_text().splitlines()]
    assert {line["key"]: line["sample_ids"] for line in lines} == {"a": [0, 2], "b": [1, 4]}
    assert report.num_duplicates == 2 and report.num_without_image == 1
    again = build_index(f"{tmp_path}/*.tar", tmp_path / "i", find_duplicates=True)
    assert again.num_duplicates == 2
    (tmp_path / "i.duplicates.jsonl").unlink()
    with pytest.raises(UserError, match="without --find-duplicates"):
        build_index(f"{tmp_path}/*.tar", tmp_path / "i", find_duplicates=True)


def test_shards_that_cannot_be_read_are_tried_again_or_left_out(tmp_path):
    write_shards(tmp_path, 3, 5)
    os.rename(tmp_path / "001.tar", tmp_path / "away")
    (tmp_path / "001.tar").symlink_to(tmp_path / "nowhere")
    source = f"{tmp_path}/*.tar"
    with pytest.raises(UserError, match="1 of 3 files cannot be read.*\n.*001.tar"):
        build_index(source, tmp_path / "i")
    assert len(list((tmp_path / "i.parts").glob("*.part"))) == 2
    report = build_index(source, tmp_path / "i", skip_unreadable=True)
    assert report.num_samples == 5 + 7 and [p.kind for p in report.problems] == ["unreadable"]
    (tmp_path / "i").unlink()
    os.rename(tmp_path / "away", tmp_path / "001.tar")
    assert build_index(source, tmp_path / "i").num_samples == 5 + 6 + 7


def test_bad_labels_and_compressed_shards_are_problems(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.jpg": b"1", "a.cls": b"cat", "b.jpg": b"2", "b.cls": b"3"})
    (tmp_path / "1.tar").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    report = build_index(f"{tmp_path}/*.tar", tmp_path / "i")
    assert [p.kind for p in report.problems] == ["label", "compressed"]
    assert Index.open(str(tmp_path / "i")).labels.tolist() == [-1, 3]


# ---------------------------------------------------------------- interruptions


def index_command(source: str, output: Path, workers: int) -> list[str]:
    options = ["-o", str(output), "--workers", str(workers), "--find-duplicates"]
    return [sys.executable, "-m", "webssl_fast", "data", "index", source, *options]


def kill_until_done(source: str, output: Path, num_kills: int, seed: int) -> int:
    """Starts the command again after each kill at a random instant; how many kills struck."""
    draws = random.Random(seed)
    struck = 0
    for _ in range(num_kills):
        process = subprocess.Popen(index_command(source, output, 2), start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(draws.uniform(0.25, 1.0))
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            whole_group = draws.random() < 0.5  # else the workers outlive their parent for an instant
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            struck += 1
    assert subprocess.run(index_command(source, output, 2), stderr=subprocess.DEVNULL).returncode == 0
    return struck


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_the_result_is_the_same_byte_for_byte(tmp_path, num_kills):
    source = write_shards(tmp_path, 60 if num_kills > 2 else 30, 250)
    (tmp_path / "007.tar").write_bytes((tmp_path / "007.tar").read_bytes()[:100_000])
    build_index(source, tmp_path / "undisturbed", find_duplicates=True)
    struck = kill_until_done(source, tmp_path / "killed", num_kills, seed=num_kills)
    assert struck >= 1
    for suffix in ("", ".duplicates.jsonl"):
        assert (tmp_path / f"killed{suffix}").read_bytes() == (tmp_path / f"undisturbed{suffix}").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("killed*")) == ["killed", "killed.duplicates.jsonl"]


@pytest.mark.parametrize("fail_at", range(0, 14))
def test_stopped_after_any_file_operation_the_result_is_the_same(tmp_path, monkeypatch, fail_at):
    """Every rename and removal is a place to be killed at: exactly, where the test above is random."""
    source = write_shards(tmp_path, 3, 4)
    build_index(source, tmp_path / "undisturbed", find_duplicates=True)
    interrupted_after(fail_at, lambda: build_index(source, tmp_path / "i", find_duplicates=True), monkeypatch)
    build_index(source, tmp_path / "i", find_duplicates=True)
    assert (tmp_path / "i").read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert not (tmp_path / "i.parts").exists()


def test_a_killed_worker_is_said_and_a_second_process_refused(tmp_path):
    source = write_shards(tmp_path, 12, 400)
    process = subprocess.Popen(index_command(source, tmp_path / "i", 2), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "i.parts").glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="another process is writing"):
        build_index(source, tmp_path / "i")
    workers = [int(child) for child in children_of(process.pid)]
    assert len(workers) >= 2
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT)
    assert "a worker process was killed" in process.communicate(timeout=30)[1] and process.returncode == 1
    assert build_index(source, tmp_path / "i").num_samples == 12 * 400 + 12


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_what_is_done_is_not_read_again(tmp_path, monkeypatch):
    source = write_shards(tmp_path, 4, 5)
    scanned = []

    def scan(path, storage):
        scanned.append(Path(path).name)
        if len(scanned) == 3:
            raise KeyboardInterrupt
        return real(path, storage)

    real = index_parts.scan_shard
    monkeypatch.setattr(index_parts, "scan_shard", scan)
    with pytest.raises(KeyboardInterrupt):
        build_index(source, tmp_path / "i")
    build_index(source, tmp_path / "i")
    assert scanned == ["000.tar", "001.tar", "002.tar", "002.tar", "003.tar"]
    build_index(source, tmp_path / "i")
    assert len(scanned) == 5, "a finished index is left as it is"


def test_other_sources_do_not_mix(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = write_shards(tmp_path / "a", 2, 3), write_shards(tmp_path / "b", 2, 3)
    build_index(a, tmp_path / "i")
    with pytest.raises(UserError, match="other files"):
        build_index(b, tmp_path / "i")
    (tmp_path / "j.parts").mkdir()
    (tmp_path / "j.parts" / "listing").write_text("another")
    with pytest.raises(UserError, match="unfinished index of other files"):
        build_index(b, tmp_path / "j")


# ---------------------------------------------------------------- the file


def test_truncated_and_foreign_files_are_refused(tmp_path):
    build_index(write_shards(tmp_path, 2, 50), tmp_path / "i")
    whole = (tmp_path / "i").read_bytes()
    bad = tmp_path / "bad"
    for cut in (9, 17, 200, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="truncated or damaged|is no index"):
            Index.open(str(bad))
    bad.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="truncated or damaged"):
        Index.open(str(bad))
    bad.write_bytes(whole[:8] + (VERSION + 1).to_bytes(4, "little") + whole[12:])
    with pytest.raises(UserError, match=f"version {VERSION + 1}"):
        Index.open(str(bad))
    bad.write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match="must be a folder"):
        Index.open(str(bad))
    with pytest.raises(UserError, match="not a subset"):
        map_columns(tmp_path / "i", "subset")


MEASURED = """
import json, resource, sys, time
import numpy as np
from webssl_fast.data.index import Index
from webssl_fast.data.order import sample_ids
def rss_kib(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
before = rss_kib()
begin = time.perf_counter()
index = Index.open(sys.argv[1])
opened = time.perf_counter() - begin
ids = sample_ids(0, len(index), np.arange(100_000) + 3 * len(index))
locations = [index.locate(i) for i in ids[:2000].tolist()]
print(json.dumps({"open_s": opened, "mib": (rss_kib() - before) / 1024, "n": len(index),
                  "last": index.locate(len(index) - 1).path, "paths": len({l.path for l in locations})}))
"""


def test_more_than_two_billion_samples_open_at_once_and_take_no_memory(tmp_path):
    num_samples = 2**31 + 12_345
    write_simulated_index(tmp_path / "i", num_samples, 100_000)
    printed = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "i")], capture_output=True, text=True, check=True
    )
    measured = json.loads(printed.stdout)
    assert measured["n"] == num_samples and measured["last"] == "s3://bucket/099999.tar" and measured["paths"] > 1900
    assert measured["open_s"] < 1
    # Only the pages that were looked at: three for each of 2000 samples, and the table of the shards.
    assert measured["mib"] < 60
    begin = time.perf_counter()
    ids = sample_ids(0, num_samples, np.arange(3072))
    assert time.perf_counter() - begin < 1 and ids.max() > 2**30
