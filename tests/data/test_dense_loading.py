"""Batches do not depend on threads or ranks; what is read ahead comes in order."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from webssl_fast.data.dense_loading import DenseTestLoader, DenseTrainLoader, read_image
from webssl_fast.data.prefetch import map_ahead
from webssl_fast.errors import UserError


def draw(sample_id, rng):
    return torch.full((3, 2, 2), float(sample_id)), torch.tensor([[rng.random()]])


def train_loader(**settings):
    return DenseTrainLoader(
        draw, 5, **{"purpose": "test", "seed": 1, "num_steps": 6, "global_batch_size": 4, **settings}
    )


def joined(loaders):
    return [[torch.cat(parts) for parts in zip(*ranks, strict=True)] for ranks in zip(*loaders, strict=True)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_batches_are_the_same_on_any_number_of_ranks_and_threads():
    expected = [list(batch) for batch in train_loader()]
    assert len(expected) == 6 and expected[0][0].shape == (4, 3, 2, 2)
    for world_size in (2, 4):
        assert_same(joined([train_loader(rank=r, world_size=world_size) for r in range(world_size)]), expected)
    assert_same([list(batch) for batch in train_loader(prefetch_batches=3, num_threads=4)], expected)


def test_every_sample_comes_once_an_epoch_and_draws_differ():
    ids = torch.cat([images[:, 0, 0, 0] for images, _ in train_loader(num_steps=5)])
    for epoch in ids.split(5):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
    numbers = torch.cat([targets.flatten() for _, targets in train_loader()])
    assert len(set(numbers.tolist())) == len(numbers)
    other = torch.cat([targets.flatten() for _, targets in train_loader(seed=2)])
    assert not set(numbers.tolist()) & set(other.tolist())


def test_test_samples_are_shared_out_and_can_be_read_again():
    loaders = [DenseTestLoader(lambda i: i, 7, rank=r, world_size=3, prefetch_samples=2) for r in range(3)]
    assert [list(loader) for loader in loaders] == [[0, 3, 6], [1, 4], [2, 5]]
    assert list(loaders[0]) == [0, 3, 6] and len(loaders[1]) == 2


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_map_ahead_keeps_order_and_its_bound(depth):
    begun, lock = [], threading.Lock()

    def produce(key):
        with lock:
            begun.append(key)
        return key * key

    products = map_ahead(produce, range(10), num_threads=4, depth=depth)
    assert next(products) == 0
    with lock:
        assert len(begun) <= depth + 1
    assert list(products) == [key * key for key in range(1, 10)]


@pytest.mark.parametrize("depth", [0, 2])
def test_map_ahead_raises_in_place(depth):
    products = map_ahead(lambda key: 1 // (2 - key), range(5), num_threads=2, depth=depth)
    assert [next(products), next(products)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(products)


def test_an_unreadable_image_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"broken.jpg cannot be read .*put a good copy"):
        read_image(path)
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.full((3, 4, 5), 7, dtype=torch.uint8))
