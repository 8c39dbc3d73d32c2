import time

import numpy as np
import pytest

from webssl_fast.data.mixture import BLOCK, Mixture
from webssl_fast.errors import UserError


def test_weights_hold_exactly_over_every_block_and_nearly_over_a_batch():
    mixture = Mixture(0, [5, 3, 0.5])
    shares = np.array([5, 3, 0.5]) / 8.5
    for block in (0, 7):
        source, _ = mixture.at(np.arange(block * BLOCK, (block + 1) * BLOCK))
        assert np.abs(np.bincount(source, minlength=3) / BLOCK - shares).max() <= 1 / BLOCK
    source, _ = mixture.at(np.arange(300 * 3072))
    counts = np.stack([np.bincount(batch, minlength=3) for batch in source.reshape(300, 3072)])
    deviations = (counts - 3072 * shares) / np.sqrt(3072 * shares * (1 - shares))
    assert np.abs(deviations).max() < 5 and 0.8 < deviations.std() < 1.1


def test_each_source_is_run_through_in_order_without_gaps():
    mixture = Mixture(1, [0.7, 0.2, 0.1])
    positions = np.arange(3 * BLOCK + 1000)
    source, own = mixture.at(positions)
    for number in range(3):
        mine = own[source == number]
        assert (mine == np.arange(len(mine))).all()
    assert mixture.seen(2 * BLOCK).tolist() == [np.sum(source[: 2 * BLOCK] == number) for number in range(3)]


def test_a_position_does_not_depend_on_the_others_nor_on_how_far_it_is():
    mixture = Mixture(2, [1, 2])
    far = np.array([10**13, 5, 10**13 + 1, BLOCK - 1, BLOCK])
    source, own = mixture.at(far)
    for i in range(5):
        assert [part[0] for part in Mixture(2, [1, 2]).at(far[i : i + 1])] == [source[i], own[i]]
    begin = time.perf_counter()
    Mixture(3, [1, 2]).at(np.arange(10**15, 10**15 + 3072))
    assert time.perf_counter() - begin < 1


def test_one_source_is_left_alone_and_seeds_differ():
    source, own = Mixture(0, [3]).at(np.array([5, 0, 9]))
    assert source.tolist() == [0, 0, 0] and own.tolist() == [5, 0, 9]
    a, b = (Mixture(seed, [1, 1]).at(np.arange(4096))[0] for seed in (0, 1))
    assert 0.4 < (a == b).mean() < 0.6


def test_a_weight_that_is_too_small_is_an_error():
    with pytest.raises(UserError, match=r"data.sources\[1\].weight is 1e-06.*one image in 65536"):
        Mixture(0, [1, 1e-6])
