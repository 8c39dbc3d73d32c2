import json
from collections import Counter

import numpy as np
import pytest

from tests.data.image_files import write_tar
from webssl_fast.data.duplicates import write_duplicates
from webssl_fast.data.index import Index
from webssl_fast.data.tar_scan import key_hash


@pytest.fixture
def index(tmp_path):
    draws = np.random.default_rng(0)
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", {f"{key}.jpg": b"x" for key in draws.choice(900, 150, replace=False)})
    return Index.open(f"{tmp_path}/*.tar")


@pytest.mark.parametrize("bucket_samples", [4, 100, 10_000])
def test_every_key_that_comes_twice_is_found_however_many_buckets_there_are(tmp_path, index, bucket_samples):
    names = [index.name(i) for i in range(len(index))]
    hashes = np.array([key_hash(name) for name in names], np.uint64)
    parts = [hashes[:150], hashes[150:150], hashes[150:]]
    found = write_duplicates(index, parts, tmp_path / "found.jsonl", tmp_path, bucket_samples)
    listed = {line["key"]: line["sample_ids"] for line in map(json.loads, (tmp_path / "found.jsonl").open())}
    expected = {name for name, number in Counter(names).items() if number > 1}
    assert listed.keys() == expected and found == len(expected) > 20
    assert all(ids == [i for i, name in enumerate(names) if name == key] for key, ids in listed.items())
    assert not (tmp_path / "buckets").exists()


def test_a_collision_of_hashes_is_no_duplicate(tmp_path, index):
    names = [index.name(i) for i in range(len(index))]
    alike = [np.full(len(index), 7, np.uint64)]
    found = write_duplicates(index, alike, tmp_path / "found.jsonl", tmp_path)
    assert found == sum(number > 1 for number in Counter(names).values())
