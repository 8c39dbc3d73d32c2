"""`webssl data`, as it is typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import encode, picture, write_tar
from webssl_fast.cli import main
from webssl_fast.data.index import Index
from webssl_fast.data.subset import Subset
from webssl_fast.recipes.prepare_data import size_histogram

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke" / "dinov2.yaml"
NO_EVALUATION = ["eval.knn.train_source=", "eval.knn.test_source="]


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for shard in range(2):
        members = {f"{shard}-{i}.jpg": encode(picture(40, 60, seed=i)) for i in range(30)}
        write_tar(tmp_path / f"{shard}.tar", members | {f"{shard}-bad.jpg": b"no image"})
    assert main(["data", "index", "*.tar", "-o", "web.index", "--workers", "1"]) == 0
    return tmp_path


def ids_of(path) -> list[int]:
    subset = Subset(path)
    return subset.select(np.arange(len(subset))).tolist()


def test_inspect_counts_and_shows_pictures(web, capsys):
    assert main(["data", "inspect", "web.index", "--pictures", "62"]) == 0
    printed = capsys.readouterr().out
    assert "62 samples in 2 files (tar)" in printed and "problems: none" in printed
    assert "from      8 B                2" in printed and "1-bad: not an image" in printed
    assert "2 of 62 samples cannot be shown" in printed
    sheet = np.asarray(Image.open("web.index.png"))
    assert sheet.shape == (8 * 128, 8 * 128, 3) and sheet[:128, :128].std() > 10


def test_subsets_by_operations_in_their_order(web, capsys):
    pytest.importorskip("pyroaring")
    (web / "ids.txt").write_text("3\n1\n40\n7\n")
    assert main(["data", "subset", "web.index", "--ids", "ids.txt", "-o", "a.subset"]) == 0
    assert ids_of("a.subset") == [1, 3, 7, 40] and "4 of 62 samples" in capsys.readouterr().out
    assert main(["data", "subset", "web.index", "--share", "0.5", "--seed", "3", "-o", "half.subset"]) == 0
    half = ids_of("half.subset")
    assert 15 < len(half) < 47
    assert main(["data", "subset", "web.index", "--not", "half.subset", "--or", "a.subset", "-o", "b.subset"]) == 0
    assert ids_of("b.subset") == sorted((set(range(62)) - set(half)) | {1, 3, 7, 40})
    assert main(["data", "subset", "web.index", "--or", "a.subset", "--not", "half.subset", "-o", "c.subset"]) == 0
    assert ids_of("c.subset") == sorted(set(range(62)) - set(half))
    assert main(["data", "subset", "a.subset", "--and", "half.subset", "--or", "c.subset", "-o", "d.subset"]) == 0
    assert ids_of("d.subset") == sorted({1, 3, 7, 40} & set(half) | set(range(62)) - set(half))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["subset", "0.tar", "-o", "x"], "no saved index"),
        (["subset", "web.index", "--share", "half", "-o", "x"], "--share takes a number"),
        (["subset", "web.index", "--ids", "none.txt", "-o", "x"], "none.txt"),
        (["subset", "web.index", "--and", "0.tar", "-o", "x"], "is no index or subset"),
        (["subset", "web.index", "--share", "0", "-o", "x"], "nothing is left"),
        (["index", "none-*.tar", "-o", "x"], "matches no file"),
        (["inspect", "none"], "does not exist"),
    ],
)
def test_errors_are_said_without_a_traceback(web, capsys, arguments, message):
    pytest.importorskip("pyroaring")
    assert main(["data", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_histogram_of_sizes():
    sizes = np.array([0, 1, 2, 3, 4, 1023, 1024, 2**32 - 1], np.uint32)
    counts = dict(size_histogram(sizes))
    assert counts[0] == 1 and counts[1] == 1 and counts[2] == 2 and counts[4] == 1
    assert counts[512] == 1 and counts[1024] == 1 and counts[2**31] == 1 and sum(counts.values()) == 8


def test_index_of_the_command_opens(web):
    assert len(Index.open("web.index")) == 62


def test_a_run_on_a_subset_counts_its_epochs_and_what_reading_met(web):
    pytest.importorskip("pyroaring")
    (web / "ids.txt").write_text("\n".join(map(str, range(0, 40, 2))))
    assert main(["data", "subset", "web.index", "--ids", "ids.txt", "-o", "even.subset"]) == 0
    settings = ["data.source=web.index", "data.subset=even.subset", "output_dir=run", "train.num_steps=5"]
    batches = ["train.global_batch_size=8", "train.micro_batch_size=8", "train.log_every=5"]
    assert main(["train", str(SMOKE), *settings, *batches, "eval.every=null", *NO_EVALUATION]) == 0
    line = json.loads((web / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["epoch"] == 2.0 and line["read_retries"] == line["unreadable_samples"] == 0


def test_balanced_by_captions(web, capsys):
    pytest.importorskip("pyroaring")
    pytest.importorskip("ahocorasick_rs")
    members = {f"{i}.jpg": encode(picture(40, 60, seed=i)) for i in range(8)}
    captions = {f"{i}.txt": (b"a red dog, running" if i % 2 else b"an okapi") for i in range(7)}
    write_tar(web / "captioned.tar", dict(sorted({**members, **captions}.items())))
    (web / "metadata.json").write_text('["dog", "red dog", "okapi", "St. Ives", "gnu"]')
    curate = ["data", "curate", "captioned.index", "--metadata", "metadata.json", "--cap", "4", "-o", "b.subset"]
    assert main(curate) == 1 and "is no index" in capsys.readouterr().err
    assert main(["data", "index", "captioned.tar", "-o", "captioned.index", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main([*curate, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "8 samples, of which 1 have no caption" in printed and "7 kept (100.00% of the captions)" in printed
    assert ids_of("b.subset") == list(range(7))
    assert "dog\t3\t3\nred dog\t3\t3\nokapi\t4\t4\nSt. Ives\t0\t0\n" in (web / "b.subset.entries.tsv").read_text()
    assert main([*curate[:-4], "--cap", "4", "-o", "c.subset", "--ray-address", "auto"]) == 1
    assert "--ray-address auto goes with --executor ray" in capsys.readouterr().err
