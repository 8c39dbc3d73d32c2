import numpy as np
import pytest

from webssl_fast.data.order import positions_of, replacement_ids, sample_ids

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 65, 100, 255, 256, 257, 1000, 4096, 4097, 65537]


@pytest.mark.parametrize("num_samples", SIZES)
def test_every_epoch_is_a_permutation(num_samples):
    ids = sample_ids(3, num_samples, np.arange(3 * num_samples)).reshape(3, num_samples)
    assert ids.dtype == np.int64
    assert (np.sort(ids, axis=1) == np.arange(num_samples)).all()


def test_epochs_and_seeds_differ():
    positions = np.arange(2000)
    first, second = sample_ids(0, 1000, positions).reshape(2, 1000)
    other_seed = sample_ids(1, 1000, positions[:1000])
    for a, b in ((first, second), (first, other_seed), (first, np.arange(1000))):
        assert (a == b).sum() < 10  # one is expected


def test_a_position_does_not_depend_on_the_others():
    positions = np.array([5, 123_456, 7, 99_999, 0])
    together = sample_ids(9, 1000, positions)
    alone = [sample_ids(9, 1000, positions[i : i + 1])[0] for i in range(5)]
    assert together.tolist() == alone


def test_order_is_pinned():
    """A change here changes the data order of every run, and breaks resuming."""
    assert sample_ids(0, 10, np.arange(10)).tolist() == [1, 0, 9, 3, 5, 6, 2, 8, 7, 4]
    assert sample_ids(1, 2**40, np.array([0, 2**40])).tolist() == [822526457316, 918408223884]


@pytest.mark.parametrize("num_samples", [6, 12, 16])
def test_every_sample_is_equally_likely_at_every_place(num_samples):
    """Chi-square over epochs: each of num_samples^2 cells expects num_epochs / num_samples."""
    num_epochs = 12_000
    ids = sample_ids(5, num_samples, np.arange(num_epochs * num_samples)).reshape(num_epochs, num_samples)
    expected = num_epochs / num_samples
    counts = np.stack([np.bincount(ids[:, place], minlength=num_samples) for place in range(num_samples)])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (num_samples - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_are_unrelated():
    """Chi-square over the coarse places of pairs of neighbouring positions of one large epoch."""
    num_samples, bins = 2**18, 16
    cell = sample_ids(2, num_samples, np.arange(num_samples)) * bins // num_samples
    counts = np.bincount(cell[:-1] * bins + cell[1:], minlength=bins * bins)
    expected = (num_samples - 1) / bins**2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - bins**2) < 5 * np.sqrt(2 * bins**2)


def test_up_to_2_to_the_40_samples():
    num_samples = 2**40 - 12345
    ids = sample_ids(0, num_samples, np.arange(10_000) * 10_000_019 + 5 * num_samples)
    assert ids.min() >= 0 and ids.max() < num_samples and len(np.unique(ids)) == 10_000
    assert abs(ids.mean() / num_samples - 0.5) < 0.02


@pytest.mark.parametrize("num_samples", [0, -1, 2**40 + 1])
def test_rejects_bad_sizes(num_samples):
    with pytest.raises(ValueError, match="num_samples"):
        sample_ids(0, num_samples, np.arange(1))


def test_rejects_negative_positions():
    with pytest.raises(ValueError, match="positions"):
        sample_ids(0, 10, np.array([-1]))


def test_replacements_differ_from_the_sample_and_from_each_other():
    positions = np.arange(1000)
    drawn = [sample_ids(0, 1000, positions)] + [replacement_ids(0, 1000, positions, a) for a in (1, 2, 3)]
    for i in range(4):
        assert (np.sort(drawn[i]) == positions).all()
        assert all((drawn[i] == drawn[j]).sum() < 10 for j in range(i))


def test_ranks_and_micro_steps_share_a_step_in_the_same_order():
    whole = positions_of(7, 0, 0, 1, 24, 24)
    assert whole.tolist() == list(range(168, 192))
    for world_size, micro_batch_size in ((1, 8), (2, 12), (2, 6), (3, 4), (4, 6)):
        num_micro_steps = 24 // (world_size * micro_batch_size)
        parts = [
            positions_of(7, a, r, world_size, 24, micro_batch_size)
            for a in range(num_micro_steps)
            for r in range(world_size)
        ]
        assert np.concatenate(parts).tolist() == whole.tolist()


def test_rejects_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="global_batch_size 10 must be a multiple.* 4 \\* 2 = 8"):
        positions_of(0, 0, 0, 2, 10, 4)
    with pytest.raises(ValueError, match="micro-step 1"):
        positions_of(0, 1, 0, 2, 8, 4)
