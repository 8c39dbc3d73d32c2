import numpy as np
import pytest

from webssl_fast.data.order import positions_of, replacement_ids, sample_ids, uniform

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


# ---------------------------------------------------------------- runs of neighbours


@pytest.mark.parametrize("num_samples", [1, 2, 5, 16, 17, 100, 257, 1000])
@pytest.mark.parametrize("run_length", [2, 7, 16])
def test_every_epoch_is_a_permutation_in_runs_too(num_samples, run_length):
    ids = sample_ids(3, num_samples, np.arange(3 * num_samples), run_length).reshape(3, num_samples)
    assert (np.sort(ids, axis=1) == np.arange(num_samples)).all()
    positions = np.array([2 * num_samples, num_samples - 1, num_samples // 2])
    alone = [sample_ids(3, num_samples, positions[i : i + 1], run_length)[0] for i in range(3)]
    assert alone == [ids[2, 0], ids[0, -1], ids[0, num_samples // 2]]


def test_runs_are_neighbours_and_begin_elsewhere_in_each_epoch():
    num_samples, run_length = 10_007, 16
    ids = sample_ids(1, num_samples, np.arange(2 * num_samples), run_length).reshape(2, num_samples)
    starts = []
    for epoch in ids:
        steps = np.diff(epoch) % num_samples
        within = np.arange(1, num_samples) % run_length != 0
        assert (steps[within] == 1).all() and (steps[~within] == 1).sum() < 5
        starts.append(epoch[0] % run_length)
    same_run = np.intersect1d(ids[0, ::run_length], ids[1, ::run_length])
    assert len(same_run) < num_samples / run_length / 2 or starts[0] != starts[1]
    first_ids = np.array([sample_ids(seed, num_samples, np.arange(1), run_length)[0] for seed in range(64)])
    assert len(np.unique(first_ids % run_length)) > 10, "runs begin anywhere"


@pytest.mark.parametrize(("num_samples", "run_length"), [(12, 3), (13, 4), (17, 5)])
def test_every_sample_is_equally_likely_at_every_place_in_runs_too(num_samples, run_length):
    """Chi-square as above. The places of one run move together, so each place is judged by itself."""
    num_epochs = 6_000
    ids = sample_ids(5, num_samples, np.arange(num_epochs * num_samples), run_length).reshape(num_epochs, num_samples)
    expected = num_epochs / num_samples
    for place in range(num_samples):
        counts = np.bincount(ids[:, place], minlength=num_samples)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square - (num_samples - 1) < 6 * np.sqrt(2 * (num_samples - 1))


def test_more_than_2_to_the_31_samples_are_spread_evenly():
    """Chi-square over coarse places of many positions of one epoch: with runs, of their beginnings."""
    num_samples, bins, draws = 2**31 + 12_345, 256, 200_000
    stride = num_samples // draws
    for run_length in (1, 16):
        positions = np.arange(draws) * (stride // run_length * run_length) + num_samples
        cell = sample_ids(7, num_samples, positions, run_length) * bins // num_samples
        counts = np.bincount(cell, minlength=bins)
        chi_square = ((counts - draws / bins) ** 2 / (draws / bins)).sum()
        assert abs(chi_square - (bins - 1)) < 5 * np.sqrt(2 * bins)


def test_runs_of_one_are_the_order_without_runs():
    positions = np.arange(1000)
    assert (sample_ids(4, 100, positions, 1) == sample_ids(4, 100, positions)).all()


def test_shares_by_id_are_nested_and_even():
    ids = np.arange(100_000, dtype=np.uint64) + np.uint64(2**33)
    drawn = uniform(3, ids)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, 50, (0, 1))[0]
    assert abs(((counts - 2000) ** 2 / 2000).sum() - 49) < 5 * np.sqrt(2 * 49)
    assert (uniform(3, ids[5:9]) == drawn[5:9]).all() and (uniform(4, ids) != drawn).any()
