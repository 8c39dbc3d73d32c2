import numpy as np
import pytest
import torch

from webssl_fast.evals.alignment import alignment, clamped, mutual_knn, nearest_neighbours


def random_features(num_samples: int, num_layers: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(num_samples, num_layers, width, generator=torch.Generator().manual_seed(seed))


def direct_mutual_knn(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """The definition, sample by sample: the share of common elements of two sets of neighbours."""
    shares = []
    for i in range(len(a)):
        neighbours = []
        for x in (a, b):
            cosine = [
                -np.inf if j == i else x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(len(x))
            ]
            neighbours.append(set(np.argsort(cosine)[::-1][:k].tolist()))
        shares.append(len(neighbours[0] & neighbours[1]) / k)
    return float(np.mean(shares))


def test_every_pair_of_layers_matches_the_double_loop():
    vision, language = random_features(23, 3, 8, 0), random_features(23, 2, 5, 1)
    language[:, 1, :5] += 2 * vision[:, 2, :5]
    result, scores_VL = alignment(vision, language, k=4, clamp="none")
    expected = [
        [direct_mutual_knn(vision[:, v].double().numpy(), language[:, w].double().numpy(), 4) for w in range(2)]
        for v in range(3)
    ]
    torch.testing.assert_close(scores_VL, torch.tensor(expected), rtol=0, atol=1e-6)
    assert result.scores["alignment"] == pytest.approx(max(map(max, expected)))
    assert (result.scores["vision_layer"], result.scores["language_layer"]) == (2, 1)
    assert result.scores["chance"] == pytest.approx(4 / 22)


def test_identical_features_are_fully_aligned_and_random_ones_at_chance():
    features = random_features(200, 1, 16, 0)
    assert alignment(features, features, clamp="none")[0].scores["alignment"] == 1
    scores = alignment(features, random_features(200, 1, 16, 1))[0].scores
    assert scores["alignment"] == pytest.approx(scores["chance"], abs=0.02)


def test_a_rotation_and_a_scale_do_not_matter():
    features = random_features(60, 1, 12, 0)
    rotation = torch.linalg.qr(random_features(12, 1, 12, 3)[:, 0]).Q
    assert alignment(features, 7 * features @ rotation, clamp="none")[0].scores["alignment"] > 0.99


def test_a_sample_is_not_its_own_neighbour():
    neighbours = nearest_neighbours(random_features(9, 1, 4, 0)[:, 0], 8)
    assert all(i not in row for i, row in enumerate(neighbours.tolist()))
    assert mutual_knn(neighbours[None], neighbours[None]).item() == 1


def test_clamps_by_hand():
    features = torch.tensor([[[1.0, -2.0, 3.0, -4.0]], [[10.0, 20.0, -30.0, 40.0]]])
    # numpy's linear quantile of each sample, averaged: (3.85 + 38.5) / 2.
    bound = (np.quantile([1, 2, 3, 4], 0.95) + np.quantile([10, 20, 30, 40], 0.95)) / 2
    torch.testing.assert_close(clamped(features, "per_sample"), features.clamp(-bound, bound))
    # The value at index int(.95 * 8) = 7 of the sorted magnitudes.
    torch.testing.assert_close(clamped(features, "exact"), features.clamp(-40.0, 40.0))
    torch.testing.assert_close(clamped(features, "exact", quantile=0.5), features.clamp(-10.0, 10.0))
    assert torch.equal(clamped(features.bfloat16(), "none"), features)


@pytest.mark.parametrize("k", [0, 5, 9])
def test_rejects_k(k: int):
    with pytest.raises(ValueError, match=f"k is {k}.*less than the 5 samples"):
        alignment(random_features(5, 1, 3, 0), random_features(5, 1, 3, 1), k=k)


def test_rejects_unpaired_samples():
    with pytest.raises(ValueError, match="5 samples and language_NLD 4"):
        alignment(random_features(5, 1, 3, 0), random_features(4, 1, 3, 1), k=2)
