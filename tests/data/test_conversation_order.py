"""The order of conversations: once an epoch, alike within a batch, and a function of seed and position alone."""

from __future__ import annotations

import numpy as np
import pytest

from webssl_fast.data.conversation_order import BLOCK_STEPS, ConversationOrder
from webssl_fast.data.order import positions_of
from webssl_fast.errors import UserError

NUM, G = 3000, 16
_rng = np.random.default_rng(0)
HAS_IMAGE, LENGTHS = _rng.random(NUM) < 0.6, _rng.integers(1, 2000, NUM)
IDS = np.arange(NUM) * 7 + 3


def order(seed: int = 5) -> ConversationOrder:
    return ConversationOrder(seed, IDS, HAS_IMAGE, LENGTHS, G)


def steps(of: ConversationOrder, first: int, num: int) -> np.ndarray:
    return of.sample_ids(np.arange(first * G, (first + num) * G)).reshape(num, G)


def test_an_epoch_has_each_record_once():
    of = order()
    assert of.steps_per_epoch == NUM // G
    first, second = (steps(of, epoch * of.steps_per_epoch, of.steps_per_epoch) for epoch in (0, 1))
    for epoch in (first, second):
        assert len(np.unique(epoch)) == epoch.size and np.isin(epoch, IDS).all()
    assert set(IDS) - set(first.flat) != set(IDS) - set(second.flat), "what is left over differs"


def test_any_place_may_be_asked_for():
    of = order()
    whole = steps(of, 0, 3 * of.steps_per_epoch)
    places = np.random.default_rng(1).integers(0, whole.size, 200)
    assert order().sample_ids(places).tolist() == whole.reshape(-1)[places].tolist()


def test_any_number_of_ranks_shares_the_same_steps():
    of = order()
    for step in (0, 70, 187):
        expected = steps(of, step, 1)[0].tolist()
        for world_size, micro in ((1, 16), (2, 4), (4, 4), (16, 1)):
            found = [
                of.sample_ids(positions_of(step, micro_step, rank, world_size, G, micro))
                for micro_step in range(G // (world_size * micro))
                for rank in range(world_size)
            ]
            assert np.concatenate(found).tolist() == expected


def test_a_batch_is_of_one_kind_and_of_like_length():
    of = order()
    batches = (steps(of, 0, of.steps_per_epoch) - 3) // 7
    kinds = HAS_IMAGE[batches]
    mixed = (kinds.any(1) & ~kinds.all(1)).sum()
    assert mixed <= -(-of.steps_per_epoch // BLOCK_STEPS), "one batch of a block at most"
    spread = np.ptp(LENGTHS[batches], axis=1)[kinds.all(1) | ~kinds.any(1)]
    by_chance = np.ptp(LENGTHS[_rng.permutation(NUM)[: NUM // G * G].reshape(-1, G)], axis=1)
    assert np.median(spread) < 0.1 * np.median(by_chance)


def test_long_and_short_batches_come_in_no_order():
    lengths = LENGTHS[(steps(order(), 0, BLOCK_STEPS) - 3) // 7].mean(1)
    assert abs(np.corrcoef(np.arange(BLOCK_STEPS), lengths)[0, 1]) < 0.4


def test_another_seed_is_another_order():
    assert steps(order(5), 0, 4).tolist() != steps(order(6), 0, 4).tolist()


def test_replacements_are_of_the_same_records():
    found = order().replacement_ids(np.arange(50), 1)
    assert np.isin(found, IDS).all() and len(np.unique(found)) > 40


def test_rejects_fewer_records_than_a_step_takes():
    with pytest.raises(UserError, match="15 conversations, fewer than train.global_batch_size = 16.*at most 15"):
        ConversationOrder(0, IDS[:15], HAS_IMAGE[:15], LENGTHS[:15], G)
