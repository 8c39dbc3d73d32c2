import json
import threading
import time

import numpy as np
import pytest
import torch

from tests.data.image_files import encode, picture, write_folder
from webssl_fast.config.schema import DataConfig, DecodeConfig
from webssl_fast.data.index import Index
from webssl_fast.data.order import sample_ids
from webssl_fast.data.pipeline import MAX_ATTEMPTS, EvalLoader, TrainLoader, loader_threads
from webssl_fast.errors import UserError
from webssl_fast.records import CropRecipe, Preprocessing

RECIPES = [
    CropRecipe(28, scale=(0.4, 1.0), flip_probability=0.5),
    CropRecipe(28, scale=(0.4, 1.0), jitter_probability=0.8, brightness=0.4, hue=0.1),
    CropRecipe(14, scale=(0.1, 0.4), blur_probability=0.5),
]
CONFIG = DataConfig(decode=DecodeConfig(backend="pillow"), min_seen_before_stop=1000)
SMALL = Preprocessing(resize_px=32, crop_px=28)
NUM_GOOD, NUM_BAD = 30, 4


def make_folder(root, num_bad=NUM_BAD):
    files = {f"{'ab'[i % 2]}/{i}.jpg": encode(picture(40 + i, 60, seed=i)) for i in range(NUM_GOOD)}
    files |= {f"a/bad{i}.jpg": encode(picture(seed=i))[: 300 + i] for i in range(num_bad)}
    return write_folder(root, files)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return Index.open(str(make_folder(tmp_path_factory.mktemp("images"))))


@pytest.fixture(scope="module")
def bad_ids(index):
    return {i for i in range(len(index)) if "bad" in index.name(i)}


def loader_of(index, **changes):
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 4, "num_threads": 2} | changes
    config = options.pop("config", CONFIG)
    return TrainLoader(index, config, RECIPES, **options)


def assert_equal(a, b):
    assert np.array_equal(a.positions, b.positions) and np.array_equal(a.sample_ids, b.sample_ids)
    assert len(a.crops) == len(b.crops) and all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))
    assert torch.equal(a.labels, b.labels) and a.num_bad == b.num_bad


def test_batch_is_what_the_order_says(index, bad_ids):
    with loader_of(index) as loader:
        assert loader.num_micro_steps == 2
        for step in range(6):
            for micro_step in range(2):
                batch = loader.batch(step, micro_step)
                assert batch.positions.tolist() == [step * 8 + micro_step * 4 + i for i in range(4)]
                assert [tuple(c.shape) for c in batch.crops] == [(2, 4, 3, 28, 28), (1, 4, 3, 14, 14)]
                assert batch.labels.tolist() == index.label(batch.sample_ids).tolist()
                wanted = sample_ids(3, len(index), batch.positions)
                was_bad = np.isin(wanted, list(bad_ids))
                assert (batch.sample_ids == wanted)[~was_bad].all() and batch.num_bad == was_bad.sum()
                assert not bad_ids & set(batch.sample_ids.tolist())


def test_any_step_any_thread_count_and_prefetching_give_the_same(index):
    with loader_of(index, num_threads=1) as loader:
        expected = {(s, m): loader.batch(s, m) for s in range(5) for m in range(2)}
    assert sum(batch.num_bad for batch in expected.values()) > 0
    with loader_of(index, num_threads=3, prefetch_batches=3) as loader:
        for key, batch in expected.items():
            assert_equal(loader.batch(*key), batch)
    with loader_of(index, prefetch_batches=2) as resumed:
        for key in ((3, 1), (4, 0), (0, 1)):
            assert_equal(resumed.batch(*key), expected[key])


def test_ranks_share_a_step_without_changing_it(index):
    with loader_of(index, micro_batch_size=8) as loader:
        whole = loader.batch(2)
    parts = []
    for rank in range(2):
        with loader_of(index, rank=rank, world_size=2) as loader:
            parts.append(loader.batch(2))
    assert np.concatenate([p.sample_ids for p in parts]).tolist() == whole.sample_ids.tolist()
    for group, crops in enumerate(whole.crops):
        assert torch.equal(torch.cat([p.crops[group] for p in parts], dim=1), crops)


def test_bad_samples_are_listed_once_over_restarts(index, bad_ids, tmp_path):
    for _ in range(2):
        with loader_of(index, output_dir=str(tmp_path)) as loader:
            for step in range(len(index) // 8 + 1):
                loader.batch(step, 0)
                loader.batch(step, 1)
    entries = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(e["sample_id"] for e in entries) == sorted(bad_ids)
    assert all(e["reason"] and e["path"].endswith(e["name"]) for e in entries)


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_too_many_bad_samples_stop_the_run(index, tmp_path, prefetch_batches):
    config = CONFIG.model_copy(update={"max_bad_share": 0.02, "min_seen_before_stop": 24})
    with loader_of(index, config=config, output_dir=str(tmp_path), prefetch_batches=prefetch_batches) as loader:
        with pytest.raises(UserError, match="of 2[48] samples.*bad_samples.jsonl"):
            for step in range(9):
                loader.batch(step, 0)
                loader.batch(step, 1)


def test_nothing_decodable_is_a_clear_error(tmp_path):
    index = Index.open(str(write_folder(tmp_path, {f"{i}.jpg": b"no image" for i in range(8)})))
    with loader_of(index) as loader, pytest.raises(UserError, match=f"{MAX_ATTEMPTS} samples in a row.*data.source"):
        loader.batch(0)


def test_captions_come_with_their_images_and_a_missing_one_counts_as_bad(tmp_path):
    files = {f"{i}.jpg": encode(picture(40, 50, seed=i)) for i in range(12)}
    files |= {f"{i}.txt": f" caption {i}\n".encode() for i in range(12) if i not in (3, 7, 9)}
    files |= {"7.txt": b"  ", "9.txt": b"\xff\xfe"}
    index = Index.open(str(write_folder(tmp_path, files)))
    prepared = []
    options = {"captions": True, "config": CONFIG.model_copy(update={"max_bad_share": 0.5})}
    with loader_of(index, output_dir=str(tmp_path), prepare=prepared.append, **options) as loader:
        batches = [loader.batch(step, micro_step) for step in range(3) for micro_step in range(2)]
    seen = set()
    for batch in batches:
        names = [index.name(i).removesuffix(".jpg") for i in batch.sample_ids.tolist()]
        assert batch.captions == [f"caption {name}" for name in names]
        assert batch.to(torch.device("cpu")).captions == batch.captions
        seen |= set(names)
    assert all(x is y for x, y in zip(prepared, batches, strict=True)), "what is prepared has its captions"
    assert seen == {str(i) for i in range(12)} - {"3", "7", "9"} and sum(batch.num_bad for batch in batches) >= 3
    bad = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    reasons = {entry["name"]: entry["reason"] for entry in bad}
    assert "has no caption" in reasons["3.jpg"] and "empty caption" in reasons["7.jpg"]
    assert "cannot be read" in reasons["9.jpg"]
    with loader_of(index, num_threads=1, prefetch_batches=2, micro_batch_size=8, **options) as loader:
        again = [loader.batch(step, 0) for step in range(3)]
    assert [c for b in again for c in b.captions] == [c for b in batches for c in b.captions]
    with loader_of(index) as loader:
        assert loader.batch(0, 0).captions is None


def test_files_that_vanish_are_replaced(tmp_path):
    root = make_folder(tmp_path, num_bad=0)
    index = Index.open(str(root))
    for name in ("a/0.jpg", "b/1.jpg"):
        (root / name).unlink()
    (root / "a/0.jpg").mkdir()
    with loader_of(index, output_dir=str(tmp_path)) as loader:
        num_bad = sum(loader.batch(step, micro_step).num_bad for step in range(4) for micro_step in range(2))
    text = (tmp_path / "bad_samples.jsonl").read_text()
    assert num_bad == 2 and "No such file" in text and "Is a directory" in text


def test_prepare_sees_each_batch_and_its_errors_reach_the_caller(index):
    def prepare(batch):
        if batch.positions[0] >= 8:
            raise ValueError("prepare failed")
        batch.host["mask"] = torch.from_numpy(batch.positions)

    for prefetch_batches in (0, 2):
        with loader_of(index, prepare=prepare, prefetch_batches=prefetch_batches) as loader:
            assert loader.batch(0, 1).host["mask"].tolist() == [4, 5, 6, 7]
            with pytest.raises(ValueError, match="prepare failed"):
                loader.batch(1, 0)


def test_waiting_is_accounted_and_prefetching_hides_it(index):
    def slow(batch):
        time.sleep(0.05)

    waits = []
    for prefetch_batches in (0, 2):
        with loader_of(index, prepare=slow, prefetch_batches=prefetch_batches) as loader:
            loader.batch(0, 0)
            begin = loader.data_wait_seconds
            for key in ((0, 1), (1, 0)):
                time.sleep(0.3)  # the training step
                loader.batch(*key)
            waits.append(loader.data_wait_seconds - begin)
    assert waits[0] > 0.1 and waits[1] < waits[0] / 2


def test_threads_end_with_the_loader(index):
    loader = loader_of(index, prefetch_batches=3)
    loader.batch(0)
    loader.close()
    loader.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("webssl-")]


def test_bf16_crops(index):
    with loader_of(index, dtype=torch.bfloat16) as loader:
        assert {c.dtype for c in loader.batch(0).crops} == {torch.bfloat16}


def test_too_few_images_for_a_step(index):
    with pytest.raises(UserError, match="34 images, fewer than train.global_batch_size = 64.*at most 34"):
        loader_of(index, global_batch_size=64)


def test_threads_of_the_loader(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert loader_threads(DataConfig(), 0, 8) == 8
    assert loader_threads(DataConfig(), 4, 6) == 2
    assert loader_threads(DataConfig(), 4, 8) == 1
    assert loader_threads(DataConfig(num_threads=5), 4, 8) == 5


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_evaluation_sees_every_good_sample_once_in_order(index, bad_ids, caplog, prefetch_batches):
    loader = EvalLoader(
        index, CONFIG, preprocessing=SMALL, batch_size=7, num_threads=2, prefetch_batches=prefetch_batches
    )
    for _ in range(2):
        batches = list(loader)
        ids = np.concatenate([b.sample_ids for b in batches])
        assert ids.tolist() == [i for i in range(len(index)) if i not in bad_ids]
        assert torch.cat([b.labels for b in batches]).tolist() == index.label(ids).tolist()
        assert all(b.images.shape == (len(b.sample_ids), 3, 28, 28) for b in batches)
        assert loader.num_bad == NUM_BAD
    assert len(loader) == 5 and "bad" in caplog.text


def test_evaluation_of_nothing_decodable_is_a_clear_error(tmp_path):
    index = Index.open(str(write_folder(tmp_path, {f"{i}.jpg": b"no image" for i in range(8)})))
    with pytest.raises(UserError, match="none of the 8 images.*'7.jpg': not an image"):
        list(EvalLoader(index, CONFIG, preprocessing=SMALL, batch_size=3))


def test_evaluation_ranks_share_the_samples(index, bad_ids):
    ids = []
    for rank in range(3):
        options = {"preprocessing": SMALL, "batch_size": 4, "rank": rank, "world_size": 3}
        ids += [i for batch in EvalLoader(index, CONFIG, **options) for i in batch.sample_ids.tolist()]
    assert sorted(ids) == [i for i in range(len(index)) if i not in bad_ids]


def test_evaluation_that_is_left_early_ends_its_threads(index):
    for _ in EvalLoader(index, CONFIG, preprocessing=SMALL, batch_size=4, prefetch_batches=2):
        break
    assert not [t.name for t in threading.enumerate() if t.name.startswith("webssl-")]
