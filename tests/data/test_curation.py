"""MetaCLIP's curation: equal to the paper's formulas, and the same bytes however the work was done or interrupted."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import write_tar
from tests.data.test_caption_matching import brute_force
from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data import curation
from webssl_fast.data.curation import curate
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.subset import Subset, of_ids, sampled
from webssl_fast.errors import UserError

pytest.importorskip("pyroaring")
pytest.importorskip("ahocorasick_rs")

WORDS = ["dog", "cat", "tree", "house", "red", "old", "New York", "St Ives", "paddle boat", "okapi"]
ENTRIES = [*WORDS, "unicorn", "red house"]


def caption(draws: random.Random) -> str:
    """Few words of very unequal frequency, some captions without any, and some samples without a caption."""
    number = draws.randrange(12)
    if number < 2:
        return "" if number else "nothing known"
    words = [WORDS[min(int(draws.expovariate(0.6)), len(WORDS) - 1)] for _ in range(draws.randint(1, 4))]
    return draws.choice(["{}", "a photo of {}.", "{}!", "THE {}"]).format(" ".join(words))


def captioned_index(folder: Path, num_shards: int, num_samples: int) -> tuple[Index, list[str]]:
    draws = random.Random(0)
    captions = []
    for shard in range(num_shards):
        members = {}
        for i in range(num_samples + shard % 2):
            captions.append(caption(draws))
            members[f"{i}.jpg"] = b"x" * (10 + i)
            if captions[-1]:
                members[f"{i}.txt"] = captions[-1].encode()
        write_tar(folder / f"{shard:03d}.tar", members)
    build_index(f"{folder}/*.tar", folder / "index")
    return Index.open(str(folder / "index")), captions


def metadata(folder: Path, entries: list[str] = ENTRIES) -> Path:
    (folder / "metadata.txt").write_text("\n".join(entries))
    return folder / "metadata.txt"


def ids_of(path: Path) -> list[int]:
    subset = Subset(path)
    return subset.select(np.arange(len(subset))).tolist()


def table_of(path: Path) -> dict[str, tuple[int, int]]:
    lines = Path(f"{path}.entries.tsv").read_text().splitlines()[1:]
    return {entry: (int(before), int(after)) for entry, before, after in (line.split("\t") for line in lines)}


# ---------------------------------------------------------------- the formulas


def mixed(x: int) -> int:
    """splitmix64's finaliser, in whole numbers."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
    return x ^ x >> 31


def draw_of(seed: int, sample_id: int) -> float:
    golden, share_stream = 0x9E3779B97F4A7C15, 4
    seed_of_stream = mixed((mixed(seed) + golden) % 2**64)
    key = mixed(mixed(seed_of_stream) ^ share_stream << 32)
    return (mixed((mixed(sample_id) + key) % 2**64) >> 11) / 2**53


def probabilities(captions: list[str], cap: int) -> list[float]:
    """Of each caption to be kept: 1 - prod over its entries of (1 - min(1, cap / count of the entry))."""
    matches = [brute_force(ENTRIES, text) for text in captions]
    counts = [sum(entry in of_caption for of_caption in matches) for entry in range(len(ENTRIES))]
    return [1 - float(np.prod([1 - min(1, cap / counts[entry]) for entry in of_caption])) for of_caption in matches]


@pytest.mark.parametrize(("cap", "seed"), [(1, 0), (20, 0), (20, 7), (10**9, 0)])
def test_equals_the_formula(tmp_path, cap, seed):
    index, captions = captioned_index(tmp_path, 4, 120)
    report = curate(index, metadata(tmp_path), tmp_path / "s", cap=cap, seed=seed)
    expected = [i for i, p in enumerate(probabilities(captions, cap)) if draw_of(seed, i) < p]
    assert ids_of(tmp_path / "s") == expected
    matches = [brute_force(ENTRIES, text) for text in captions]
    counted = {
        entry: (sum(number in m for m in matches), sum(number in matches[i] for i in expected))
        for number, entry in enumerate(ENTRIES)
    }
    assert table_of(tmp_path / "s") == counted and counted["unicorn"] == (0, 0) and counted["dog"][0] > 100
    assert (report.num_samples, report.num_kept) == (len(captions), len(expected))
    assert report.num_without_caption == captions.count("") > 10
    assert report.num_matched == sum(map(bool, matches)) < len(captions) - captions.count("")
    assert not (tmp_path / "s.parts").exists()


def test_kept_counts_are_as_expected(tmp_path):
    """Over 20 seeds the number kept lies within 4 standard deviations of its expectation, in all and for each entry."""
    index, captions = captioned_index(tmp_path, 2, 400)
    cap, num_seeds = 25, 20
    p_B = np.array(probabilities(captions, cap))
    kept_NB = np.zeros((num_seeds, len(captions)), bool)
    for seed in range(num_seeds):
        curate(index, metadata(tmp_path), tmp_path / "s", cap=cap, seed=seed)
        kept_NB[seed, ids_of(tmp_path / "s")] = True
    matches = [brute_force(ENTRIES, text) for text in captions]
    groups = [np.array([number in m for m in matches]) for number in range(len(ENTRIES))]
    for group_B in [p_B > 0, *(group for group in groups if group.any())]:
        expected, deviation = num_seeds * p_B[group_B].sum(), np.sqrt(num_seeds * (p_B * (1 - p_B))[group_B].sum())
        assert abs(kept_NB[:, group_B].sum() - expected) <= 4 * deviation + 1e-9
    assert not kept_NB[:, p_B == 0].any() and kept_NB[:, p_B == 1].all() and 0 < (p_B == 1).sum() < len(p_B)
    # Captions of the commonest entry alone: about the cap's share of them is left.
    alone_B = np.array([m == [0] for m in matches])
    share = cap / sum(0 in m for m in matches)
    assert abs(kept_NB[:, alone_B].mean() - share) < 4 * np.sqrt(share / (num_seeds * alone_B.sum()))


def test_a_smaller_cap_keeps_a_part_and_a_share_of_it_is_drawn_anew(tmp_path):
    index, _ = captioned_index(tmp_path, 2, 300)
    kept = {}
    for cap in (5, 10, 40):
        curate(index, metadata(tmp_path), tmp_path / "s", cap=cap, seed=3)
        kept[cap] = set(ids_of(tmp_path / "s"))
    assert kept[5] < kept[10] < kept[40]
    half = sampled(of_ids(np.array(sorted(kept[10]))), 0.5, seed=3)
    assert abs(len(half) - len(kept[10]) / 2) < 4 * np.sqrt(len(kept[10])) / 2


# ---------------------------------------------------------------- workers and interruptions


def files_of(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), Path(f"{output}.entries.tsv").read_bytes()


def test_workers_do_not_matter(tmp_path):
    index, _ = captioned_index(tmp_path, 6, 50)
    curate(index, metadata(tmp_path), tmp_path / "one", cap=9)
    curate(index, metadata(tmp_path), tmp_path / "three", cap=9, executor=ExecutorConfig(num_workers=3))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_the_result_is_the_same_byte_for_byte(tmp_path, num_kills):
    index, _ = captioned_index(tmp_path, 20 if num_kills == 2 else 60, 200)
    curate(index, metadata(tmp_path), tmp_path / "undisturbed", cap=50, seed=1)
    command = [sys.executable, "-m", "webssl_fast", "data", "curate", str(tmp_path / "index"), "--cap", "50"]
    command += ["--metadata", str(metadata(tmp_path)), "-o", str(tmp_path / "s"), "--seed", "1", "--workers", "2"]
    draws = random.Random(num_kills)
    struck = 0
    for _ in range(num_kills):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(draws.uniform(0.4, 1.1))
        except subprocess.TimeoutExpired:
            (os.killpg if draws.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            struck += 1
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0 and struck >= 1
    assert files_of(tmp_path / "s") == files_of(tmp_path / "undisturbed")
    assert not (tmp_path / "s.parts").exists()


def test_what_is_matched_is_not_read_again(tmp_path, monkeypatch):
    index, _ = captioned_index(tmp_path, 3, 10)
    scanned = []

    def scan(index, first, end):
        scanned.append(first)
        if len(scanned) == 2:
            raise KeyboardInterrupt
        return real(index, first, end)

    real = curation.scan_captions
    monkeypatch.setattr(curation, "scan_captions", scan)
    with pytest.raises(KeyboardInterrupt):
        curate(index, metadata(tmp_path), tmp_path / "s", cap=2)
    with pytest.raises(UserError, match="another index or other metadata"):
        curate(index, metadata(tmp_path, ENTRIES[1:]), tmp_path / "s", cap=2)
    curate(index, metadata(tmp_path), tmp_path / "s", cap=2)
    assert scanned == [0, 10, 10, 21]


# ---------------------------------------------------------------- errors


def test_shards_that_cannot_be_read_are_tried_again(tmp_path):
    index, _ = captioned_index(tmp_path, 3, 10)
    os.rename(tmp_path / "001.tar", tmp_path / "away")
    with pytest.raises(UserError, match="1 of 3 shards cannot be read:\n.*001.tar"):
        curate(index, metadata(tmp_path), tmp_path / "s", cap=2)
    assert len(list((tmp_path / "s.parts").glob("*.part"))) == 2 and not (tmp_path / "s").exists()
    os.rename(tmp_path / "away", tmp_path / "001.tar")
    curate(index, metadata(tmp_path), tmp_path / "s", cap=2)
    assert len(ids_of(tmp_path / "s")) > 0


def test_nothing_to_keep_and_bad_caps(tmp_path):
    index, _ = captioned_index(tmp_path, 2, 10)
    with pytest.raises(UserError, match="no caption of .* matches any of the 1 entries"):
        curate(index, metadata(tmp_path, ["gryphon"]), tmp_path / "s", cap=2)
    with pytest.raises(UserError, match="at least 1, got 0"):
        curate(index, metadata(tmp_path), tmp_path / "s", cap=0)


def test_the_report_shows_head_and_tail(tmp_path):
    index, _ = captioned_index(tmp_path, 2, 300)
    report = curate(index, metadata(tmp_path), tmp_path / "s", cap=20)
    text = report.describe()
    head = report.counts_before_E > 20
    share = report.counts_after_E[head].sum() / report.counts_after_E.sum()
    assert share < report.counts_before_E[head].sum() / report.counts_before_E.sum()
    assert f"{head.sum()} with more than 20 (the head)" in text and f"{share:.2%}" in text
    assert "12 entries: 1 without a caption" in text
