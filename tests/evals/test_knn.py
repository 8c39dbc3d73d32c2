"""k-NN against a brute-force fp64 reference written from the formula."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from webssl_fast.config.schema import KnnConfig
from webssl_fast.errors import UserError
from webssl_fast.evals.knn import evaluate_knn, knn_scores
from webssl_fast.records import Features


def brute_force(train, train_labels, test, test_labels, k, temperature, num_classes):
    """Top-1 and top-5 by full sort, image by image, in fp64; ties by lower training index and lower class."""
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    test = test / np.linalg.norm(test, axis=1, keepdims=True)
    top1 = top5 = 0
    for feature, label in zip(test, test_labels, strict=True):
        similarity = train @ feature
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(num_classes)
        for index in nearest:
            votes[train_labels[index]] += np.exp(similarity[index] / temperature)
        order = [c for c in np.argsort(-votes, kind="stable") if votes[c] > 0]
        top1 += order[0] == label
        top5 += label in order[:5]
    return top1 / len(test), top5 / len(test)


def clusters(num_train, num_test, dim, num_classes, noise, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_classes, dim))
    labels = rng.integers(num_classes, size=num_train + num_test)
    features = centers[labels] + noise * rng.normal(size=(num_train + num_test, dim))
    features *= rng.uniform(0.1, 10, size=(len(features), 1))  # cosine similarity does not see lengths
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def tensors(train, train_labels, test, test_labels):
    return (
        torch.tensor(train, dtype=torch.float32),
        torch.tensor(train_labels),
        torch.tensor(test, dtype=torch.float32),
        torch.tensor(test_labels),
    )


@pytest.mark.parametrize(
    ("num_train", "num_test", "dim", "num_classes", "k", "temperature"),
    [(300, 101, 16, 10, 20, 0.07), (300, 101, 16, 10, 1, 0.07), (57, 40, 5, 3, 57, 0.5), (513, 64, 33, 40, 10, 0.01)],
)
def test_matches_reference(num_train, num_test, dim, num_classes, k, temperature):
    data = clusters(num_train, num_test, dim, num_classes, noise=1.5)
    top1, top5 = brute_force(*data, k, temperature, num_classes)
    found = knn_scores(*tensors(*data), k, temperature, num_classes)
    assert found["top1"] == pytest.approx(top1)
    assert 1 / num_classes < top1 < 1, "the case must be neither hopeless nor trivial"
    assert found.get("top5") == (pytest.approx(top5) if num_classes >= 6 else None)


def test_matches_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, train_labels, test, test_labels = clusters(400, 150, 24, 8, noise=2.0)
    judge = neighbors.KNeighborsClassifier(
        n_neighbors=15, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, train_labels)
    found = knn_scores(*tensors(train, train_labels, test, test_labels), 15, 0.07, 8)
    assert found["top1"] == pytest.approx(judge.score(test, test_labels))


@pytest.mark.parametrize(("train_rows", "test_rows"), [(1, 1), (7, 13), (64, 1000), (1000, 5)])
def test_tiles_do_not_change_the_scores(train_rows, test_rows):
    data = tensors(*clusters(200, 60, 12, 9, noise=1.5))
    whole = knn_scores(*data, 20, 0.07, 9)
    assert knn_scores(*data, 20, 0.07, 9, train_rows=train_rows, test_rows=test_rows) == whole


def test_a_low_temperature_does_not_overflow():
    data = clusters(200, 60, 12, 9, noise=1.5)
    nearest_only = knn_scores(*tensors(*data), 1, 0.07, 9)["top1"]
    assert knn_scores(*tensors(*data), 20, 1e-6, 9)["top1"] == nearest_only


def test_random_labels_give_chance_level():
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(1000, 32)), rng.normal(size=(1000, 32))
    data = tensors(train, rng.integers(10, size=1000), test, rng.integers(10, size=1000))
    found = knn_scores(*data, 20, 0.07, 10)
    assert found["top1"] == pytest.approx(0.1, abs=0.04)  # four standard deviations of 1000 draws
    assert found["top5"] == pytest.approx(0.5, abs=0.07)


def test_equally_near_images_are_taken_in_order():
    train = torch.ones(6, 4)  # six duplicates, of which k = 3 vote
    test = torch.ones(2, 4)
    labels = torch.tensor([2, 1, 1, 0, 0, 0])
    for rows in (1, 4, 100):
        assert knn_scores(train, labels, test, torch.tensor([1, 1]), 3, 0.07, 3, train_rows=rows)["top1"] == 1.0


def test_equal_votes_go_to_the_lower_class_and_none_is_never_right():
    train, labels = torch.ones(2, 4), torch.tensor([5, 3])
    scores = [knn_scores(train, labels, torch.ones(1, 4), torch.tensor([c]), 2, 0.07, 7) for c in (3, 5, 0)]
    assert [s["top1"] for s in scores] == [1.0, 0.0, 0.0]
    assert [s["top5"] for s in scores] == [1.0, 1.0, 0.0]  # class 0 has no vote, though fewer than 5 classes have one


def test_opposite_and_orthogonal_features_rank_last():
    train = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    test = torch.tensor([[1.0, 0.0]])
    for k, best in ((1, 2), (2, 2), (3, 2)):
        assert knn_scores(train, torch.tensor([0, 1, 2]), test, torch.tensor([best]), k, 0.07, 3)["top1"] == 1.0


def test_is_deterministic():
    data = tensors(*clusters(300, 100, 8, 20, noise=3.0))
    assert knn_scores(*data, 20, 0.07, 20) == knn_scores(*data, 20, 0.07, 20)


def test_a_single_class_is_always_right():
    train_labels, test_labels = torch.zeros(5).long(), torch.zeros(4).long()
    assert knn_scores(torch.randn(5, 3), train_labels, torch.randn(4, 3), test_labels, 2, 0.07, 1) == {"top1": 1.0}


def test_k_beyond_the_training_set_is_cut_with_a_warning():
    data = clusters(12, 30, 6, 3, noise=1.0)
    with pytest.warns(UserWarning, match="k=200 but only 12 training images.*not comparable"):
        found = knn_scores(*tensors(*data), 200, 0.07, 3)
    assert found["top1"] == pytest.approx(brute_force(*data, 12, 0.07, 3)[0])


def test_zero_features_are_allowed_and_not_nearest():
    train = torch.tensor([[0.0, 0.0], [1.0, 0.1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = knn_scores(train, torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]), 1, 0.07, 2)
    assert found["top1"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels_M": torch.tensor([0, -1])}, r"test_labels must be in \[0, 2\).*without a label"),
        ({"train_labels_N": torch.tensor([0, 1, 2])}, r"train_labels must be in \[0, 2\), got 0 to 2"),
        ({"test_features_MD": torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])}, "test_features: 1 of 2 rows are not"),
        ({"train_features_ND": torch.zeros(0, 2), "train_labels_N": torch.zeros(0).long()}, "at least one row"),
        ({"k": 0}, "k must be at least 1"),
        ({"temperature": 0.0}, "temperature positive"),
    ],
)
def test_rejects_bad_input(change, message):
    good = {
        "train_features_ND": torch.eye(3)[:, :2],
        "train_labels_N": torch.tensor([0, 1, 1]),
        "test_features_MD": torch.eye(2),
        "test_labels_M": torch.tensor([0, 1]),
        "k": 1,
        "temperature": 0.07,
        "num_classes": 2,
    }
    knn_scores(**good)
    with pytest.raises(ValueError, match=message):
        knn_scores(**{**good, **change})


class ColourEncoder(nn.Module):
    """The mean colour is the class token; patch tokens average to a constant, so that their k-NN knows nothing."""

    def forward(self, images):
        colour = images.mean((2, 3))
        return Features(cls_token=colour, patch_tokens=torch.stack([colour, 1 - colour], dim=1))


def coloured(num_images, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_images,), generator=generator)
    images = 0.2 * torch.rand(num_images, 3, 6, 6, generator=generator)
    images[torch.arange(num_images), labels] += 0.6
    ids = torch.arange(num_images)
    return list(zip(images.split(5), labels.split(5), ids.split(5), strict=True))


def test_evaluate_scores_each_feature():
    config = KnnConfig(k=3)
    result = evaluate_knn(ColourEncoder(), config, coloured(30, 0), coloured(24, 1), "cpu")
    assert result.name == "knn"
    assert result.scores["cls_top1"] == 1.0
    assert result.scores["patch_mean_top1"] < 0.8
    assert set(result.scores) == {"cls_top1", "patch_mean_top1"}
    assert result == evaluate_knn(ColourEncoder(), config, coloured(30, 0), coloured(24, 1), "cpu")


def test_evaluate_takes_one_pass_iterators():
    result = evaluate_knn(
        ColourEncoder(), KnnConfig(k=3, features=("cls",)), iter(coloured(30, 0)), iter(coloured(24, 1)), "cpu"
    )
    assert result.scores == {"cls_top1": 1.0}


def test_evaluate_names_the_source_of_unlabelled_samples():
    test = coloured(6, 1)
    test[0][1][2] = -1
    config = KnnConfig(k=3, train_source="photos/train", test_source="photos/test")
    with pytest.raises(UserError, match=r"photos/test: 1 images .*sample ids 2\)"):
        evaluate_knn(ColourEncoder(), config, coloured(30, 0), test, "cpu")
