"""The data order as a pure function of (seed, position): no state, so a run resumes sample-exact from its step alone.

A position counts images over the whole run, on all ranks. Within an epoch (num_samples positions) every sample comes
once, in the order of a keyed permutation: a Feistel network over the next power of four, walked until the value falls
into range (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

With a run length R > 1 the permutation moves runs of R neighbouring samples instead, and the runs begin elsewhere in
every epoch. Storage then reads R samples at once; in return a batch of G images holds no more than about G / R draws
that are independent, where neighbours in storage resemble each other.

Dimensions: B positions.
"""

from __future__ import annotations

import numpy as np

MAX_SAMPLES = 2**40
_NUM_ROUNDS = 8  # small domains have few bits a round, and want the more rounds
_SAMPLE_STREAM, _REPLACEMENT_STREAM, _RUN_STREAM, _SHIFT_STREAM, _SHARE_STREAM = range(5)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_ids(seed: int, num_samples: int, positions_B: np.ndarray, run_length: int = 1) -> np.ndarray:
    """int64 [B]: the sample at each position (int64 [B], from 0 on) of a run. O(B) time, O(B) memory.

    run_length: so many neighbouring samples stand at neighbouring positions; 1: none do.
    Raises ValueError for num_samples outside [1, 2^40] and for negative positions.
    """
    num_runs = num_samples // run_length
    if run_length == 1 or num_runs < 2:
        return _permuted(seed, _SAMPLE_STREAM, 0, num_samples, positions_B)
    positions_B = _checked(num_samples, positions_B)
    epoch_B, place_B = np.divmod(positions_B, np.int64(num_samples))
    run_B, place_in_run_B = np.divmod(place_B, np.int64(run_length))
    whole_B = run_B < num_runs  # what is left over after the last whole run comes last
    moved_B = place_B.copy()
    run_position_B = (epoch_B * num_runs + run_B)[whole_B]
    moved_B[whole_B] = _permuted(seed, _RUN_STREAM, 0, num_runs, run_position_B) * run_length + place_in_run_B[whole_B]
    # The shift lets the runs begin elsewhere in each epoch, and what is left over be other samples.
    with np.errstate(over="ignore"):
        shift_B = _mix(_key(seed, _SHIFT_STREAM, 0) + epoch_B.astype(np.uint64) * _GOLDEN) % np.uint64(num_samples)
    return (moved_B + shift_B.astype(np.int64)) % num_samples


def mixed(seed: int, stream: int) -> int:
    """A seed for the stream of this number: the seed itself for number 0, unrelated ones for the others."""
    with np.errstate(over="ignore"):
        return seed if stream == 0 else int(_mix(_mix(np.uint64(seed % 2**64)) + np.uint64(stream) * _GOLDEN))


def replacement_ids(seed: int, num_samples: int, positions_B: np.ndarray, attempt: int) -> np.ndarray:
    """int64 [B]: the sample to try at each position where `attempt` (from 1 on) samples before could not be decoded.

    Drawn from another permutation for each attempt, not from the neighbourhood: broken files come in runs.
    """
    return _permuted(seed, _REPLACEMENT_STREAM, attempt, num_samples, positions_B)


def uniform(seed: int, ids: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) for each id (uint64): a pure function of the seed and the id."""
    with np.errstate(over="ignore"):
        return (_mix(_mix(ids) + _key(seed, _SHARE_STREAM, 0)) >> np.uint64(11)) * 2.0**-53


def positions_of(
    step: int, micro_step: int, rank: int, world_size: int, global_batch_size: int, micro_batch_size: int
) -> np.ndarray:
    """int64 [micro_batch_size]: positions of one rank's micro-batch.

    A step covers [step * G, (step + 1) * G). Micro-step a covers the next world_size * micro_batch_size of them, rank
    by rank, so the concatenation over micro-steps and ranks is the same for every number of ranks.
    Raises ValueError where the global batch is no whole number of passes.
    """
    pass_size = world_size * micro_batch_size
    if global_batch_size % pass_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} must be a multiple of micro_batch_size * ranks = "
            f"{micro_batch_size} * {world_size} = {pass_size}"
        )
    if not 0 <= micro_step < global_batch_size // pass_size or not 0 <= rank < world_size:
        raise ValueError(
            f"no micro-step {micro_step} of rank {rank} in {global_batch_size // pass_size} x {world_size}"
        )
    first = step * global_batch_size + micro_step * pass_size + rank * micro_batch_size
    return np.arange(first, first + micro_batch_size, dtype=np.int64)


def _checked(num_samples: int, positions_B: np.ndarray) -> np.ndarray:
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise ValueError(f"num_samples must lie in [1, 2^40], got {num_samples}")
    positions_B = np.asarray(positions_B, dtype=np.int64)
    if positions_B.size and positions_B.min() < 0:
        raise ValueError(f"positions must be at least 0, got {positions_B.min()}")
    return positions_B


def _key(seed: int, stream: int, attempt: int) -> np.uint64:
    return _mix(_mix(np.uint64(seed % 2**64)) ^ np.uint64(stream << 32 | attempt))


def _permuted(seed: int, stream: int, attempt: int, num_samples: int, positions_B: np.ndarray) -> np.ndarray:
    positions_B = _checked(num_samples, positions_B)
    epoch_B, place_B = np.divmod(positions_B, np.int64(num_samples))
    with np.errstate(over="ignore"):
        key_B = _mix(_key(seed, stream, attempt) + epoch_B.astype(np.uint64) * _GOLDEN)
        half_bits = max(1, -(-(num_samples - 1).bit_length() // 2))
        value_B = _feistel(place_B.astype(np.uint64), key_B, half_bits)
        while (outside_B := value_B >= num_samples).any():
            value_B[outside_B] = _feistel(value_B[outside_B], key_B[outside_B], half_bits)
    return value_B.astype(np.int64)


def _feistel(value_B: np.ndarray, key_B: np.ndarray, half_bits: int) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left_B, right_B = value_B >> bits, value_B & mask
    for round_number in range(1, _NUM_ROUNDS + 1):
        round_key_B = key_B + np.uint64(round_number) * _GOLDEN
        left_B, right_B = right_B, left_B ^ (_mix(right_B ^ _mix(round_key_B)) & mask)
    return left_B << bits | right_B


def _mix(x):
    """Finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
