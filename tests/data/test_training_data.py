"""Sources, weights and subsets as one order; remote shards that fail now and then change nothing of it."""

import json
import resource

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from benchmarks.range_server import Faults, serving
from tests.data.image_files import encode, picture, write_folder, write_tar
from webssl_fast.config.schema import DataConfig, DecodeConfig
from webssl_fast.data import storage
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.order import sample_ids
from webssl_fast.data.pipeline import TrainLoader
from webssl_fast.data.storage import Retries
from webssl_fast.data.subset import of_ids, write_subset
from webssl_fast.data.training_data import SampleOrder, TrainingData
from webssl_fast.errors import UserError
from webssl_fast.records import CropRecipe

RECIPES = [CropRecipe(28, scale=(0.4, 1.0), flip_probability=0.5)]
QUICK = {"decode": DecodeConfig(backend="pillow"), "min_seen_before_stop": 1000}


def loader_of(data, **changes):
    config = changes.pop("config", DataConfig(**QUICK))
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 8, "num_threads": 2} | changes
    return TrainLoader(data, config, RECIPES, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of twenty images: two with an index, one by itself."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        members = {}
        for i in range(20):
            members |= {
                f"{shard}-{i}.jpg": encode(picture(30, 40, seed=20 * shard + i)),
                f"{shard}-{i}.txt": b"caption",
            }
        write_tar(folder / f"{shard}.tar", members)
    build_index(f"{folder}/{{0..1}}.tar", folder / "two.index")
    return folder


@pytest.fixture(scope="module")
def subset_path(shards):
    pytest.importorskip("pyroaring")
    index = Index.open(f"{shards}/two.index")
    write_subset(shards / "some.subset", of_ids(np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])), index)
    return f"{shards}/some.subset"


def test_an_index_trains_as_its_shards_do(shards):
    with loader_of(Index.open(f"{shards}/two.index")) as a, loader_of(Index.open(f"{shards}/{{0..1}}.tar")) as b:
        for step in range(6):
            assert a.batch(step).sample_ids.tolist() == b.batch(step).sample_ids.tolist()
            assert torch.equal(a.batch(step).crops[0], b.batch(step).crops[0])


def test_a_subset_is_run_through_epoch_by_epoch(shards, subset_path):
    data = TrainingData.open(DataConfig(source=f"{shards}/two.index", subset=subset_path))
    ids = set(data.parts[0].subset.select(np.arange(12)).tolist())
    order = SampleOrder(data, seed=3)
    seen = order.sample_ids(np.arange(36)).reshape(3, 12)
    assert all(set(epoch) == ids for epoch in seen.tolist()) and (seen[0] != seen[1]).any()
    assert set(order.replacement_ids(np.arange(12), 1).tolist()) == ids
    assert order.epochs(30) == {"epoch": 2.5}
    with loader_of(data) as loader:
        assert set(loader.batch(0).sample_ids.tolist()) <= ids
    with pytest.raises(UserError, match="12 images, fewer than train.global_batch_size = 16"):
        loader_of(data, global_batch_size=16, micro_batch_size=16)


def test_several_sources_keep_weights_epochs_and_names(shards, subset_path):
    config = DataConfig(
        sources=[
            {"source": f"{shards}/two.index", "weight": 3, "subset": subset_path},
            {"source": f"{shards}/2.tar", "weight": 1},
        ]
    )
    data = TrainingData.open(config)
    assert len(data) == 12 + 20
    order = SampleOrder(data, seed=3)
    ids = order.sample_ids(np.arange(2**16))
    second = ids >= 40  # the first source's index has 40 samples, though its subset has 12
    assert second.sum() == 2**14 and ids.max() == 59
    names = {sample_id: data.name(sample_id) for sample_id in np.unique(ids).tolist()}
    assert names[41] == "2-1" and names[2] == "0-2" and len(names) == 32
    # Each source by itself is a permutation an epoch.
    for mine, size in ((ids[~second], 12), (ids[second], 20)):
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(epochs) == np.sort(epochs[0])).all()
    assert order.epochs(2**16) == {"epoch/0": 3 * 2**14 / 12, "epoch/1": 2**14 / 20}
    replaced = order.replacement_ids(np.arange(100), 2)
    assert ((replaced >= 40) == (ids[:100] >= 40)).all(), "a replacement comes from the same source"
    with loader_of(data) as loader:
        assert loader.batch(1).sample_ids.tolist() == ids[8:16].tolist()


def test_one_source_keeps_the_order_it_had(shards):
    data = TrainingData.open(DataConfig(source=f"{shards}/two.index"))
    positions = np.arange(100)
    assert (SampleOrder(data, 9).sample_ids(positions) == sample_ids(9, 40, positions)).all()


def test_sources_are_named_in_one_way():
    with pytest.raises(ValidationError, match="instead of data.source"):
        DataConfig(source="a", sources=[{"source": "b"}])


# ---------------------------------------------------------------- remote shards


@pytest.mark.parametrize("shuffle_run", [1, 4])
def test_interrupted_remote_reads_change_neither_order_nor_bytes(shards, shuffle_run, monkeypatch):
    monkeypatch.setattr(storage, "_MAX_DELAY_S", 0.01)
    config = DataConfig(**QUICK, shuffle_run=shuffle_run)
    with loader_of(Index.open(f"{shards}/{{0..2}}.tar"), config=config) as loader:
        undisturbed = [loader.batch(step) for step in range(15)]
    faults = Faults(drop_share=0.05, delay_share=0.1, delay_s=0.02)
    with serving(shards, faults) as url:
        report = build_index(f"{url}/{{0..2}}.tar", shards / f"remote{shuffle_run}.index")
        assert report.num_samples == 60 and not report.problems
        remote = Index.open(f"{shards}/remote{shuffle_run}.index")
        assert remote.name(41) == "2-1" and remote.storage.read(*remote.locate_member(41, "txt")[:3]) == b"caption"
        before = faults.num_requests - faults.num_dropped
        with loader_of(remote, config=config, num_threads=4) as loader:
            for step, expected in enumerate(undisturbed):
                batch = loader.batch(step)
                assert batch.sample_ids.tolist() == expected.sample_ids.tolist() and batch.num_bad == 0
                assert torch.equal(batch.crops[0], expected.crops[0])
            assert loader.health()["unreadable_samples"] == 0
    assert faults.num_dropped > 0
    num_reads = faults.num_requests - faults.num_dropped - before
    assert num_reads <= (120 if shuffle_run == 1 else 60), "neighbours are read by one request"


def test_what_stays_unreadable_is_a_bad_sample_and_never_the_end(shards, tmp_path):
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes((shards / f"{shard}.tar").read_bytes())
    config = DataConfig(**QUICK, read_attempts=2, read_timeout_s=5)
    with serving(tmp_path) as url:
        remote = Index.open(f"{url}/{{0..2}}.tar")
        (tmp_path / "1.tar").unlink()
        with loader_of(remote, config=config, output_dir=str(tmp_path)) as loader:
            batches = [loader.batch(step) for step in range(7)]
            assert sum(batch.num_bad for batch in batches) >= 15
            assert loader.health()["unreadable_samples"] >= 15
    ids = np.concatenate([batch.sample_ids for batch in batches])
    assert not ((20 <= ids) & (ids < 40)).any()
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert all(line["path"].endswith("/1.tar") and "cannot be read" in line["reason"] for line in lines)


def test_a_broken_neighbour_takes_nobody_along(shards, tmp_path):
    """Runs are read by one request; where that fails, each sample is judged by itself."""
    (tmp_path / "0.tar").write_bytes((shards / "0.tar").read_bytes())
    config = DataConfig(**QUICK, shuffle_run=8)
    with serving(tmp_path) as url:
        remote = Index.open(f"{url}/0.tar")
        last = remote.locate(19)
        with open(tmp_path / "0.tar", "r+b") as file:
            file.truncate(last.offset + 5)
        with loader_of(remote, config=config) as loader:
            batches = [loader.batch(step) for step in range(5)]
    assert sum(batch.num_bad for batch in batches) == 2  # two epochs, in each of which the last sample comes once


def test_retries_are_those_of_the_config(shards, monkeypatch):
    made = []
    monkeypatch.setattr("webssl_fast.data.pipeline.Retries", lambda *a: made.append(a) or Retries(*a))
    loader_of(Index.open(f"{shards}/0.tar"), config=DataConfig(read_attempts=5, read_timeout_s=7)).close()
    assert made == [(5, 7.0)]


# ---------------------------------------------------------------- long runs


def test_memory_of_a_long_run_is_flat(tmp_path):
    """Thousands of samples, some of them bad, over several epochs: what is kept of a sample would show."""
    image = encode(picture(32, 32))
    files = {f"{i:04d}.jpg": image if i % 50 else image[:200] for i in range(1000)}
    for shard in range(4):
        write_tar(tmp_path / f"{shard}.tar", dict(list(files.items())[shard * 250 : (shard + 1) * 250]))
    build_index(f"{tmp_path}/*.tar", tmp_path / "i")
    options = {"global_batch_size": 50, "micro_batch_size": 50, "output_dir": str(tmp_path), "prefetch_batches": 2}
    with loader_of(Index.open(f"{tmp_path}/i"), **options) as loader:
        resident_mib = []
        for step in range(160):
            loader.batch(step)
            resident_mib.append(_resident_mib())
    early, late = np.median(resident_mib[40:60]), np.median(resident_mib[-20:])
    assert late - early < 4, f"{early:.0f} MiB after 2,500 samples, {late:.0f} MiB after 7,500"


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def test_folders_without_shards_train_from_an_index_too(tmp_path):
    root = write_folder(tmp_path / "images", {f"{i}.jpg": encode(picture(seed=i)) for i in range(9)})
    build_index(str(root), tmp_path / "i")
    with loader_of(Index.open(f"{tmp_path}/i")) as a, loader_of(Index.open(str(root))) as b:
        assert torch.equal(a.batch(0).crops[0], b.batch(0).crops[0])
