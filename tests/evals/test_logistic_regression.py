"""Against scikit-learn's own solver of the same objective."""

import numpy as np
import pytest
import torch

from webssl_fast.evals import logistic_regression
from webssl_fast.evals.logistic_regression import fit_logistic_regressions


def clusters(num_images: int, num_classes: int = 7, width: int = 12, seed: int = 0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(num_classes, width))
    labels = rng.integers(num_classes, size=num_images)
    features = (centers[labels] + rng.normal(size=(num_images, width))) * rng.uniform(0.1, 30, width) + 5
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("tile_rows", [64, 100_000])
def test_matches_scikit_learn(monkeypatch: pytest.MonkeyPatch, tile_rows: int):
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(logistic_regression, "TILE_ROWS", tile_rows)
    features, labels = clusters(300)
    fitted = fit_logistic_regressions(features, labels, 7, [1.0, 0.01], max_iterations=500)
    assert set(fitted) == {0.01, 1.0}
    standardised = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    for C, found in fitted.items():
        judge = linear_model.LogisticRegression(C=C, max_iter=5000, tol=1e-8).fit(standardised, labels.numpy())
        logits = features @ found.weight_CD.T + found.bias_C
        expected = torch.tensor(judge.predict_log_proba(standardised), dtype=torch.float32)
        torch.testing.assert_close(logits.log_softmax(1), expected, rtol=2e-3, atol=2e-3)  # L-BFGS in fp32
        assert found.hits(features, labels)[0] == int((judge.predict(standardised) == labels.numpy()).sum())


def test_a_constant_feature_and_an_absent_class_do_no_harm():
    features, labels = clusters(200)
    features[:, 3] = 4.0
    found = fit_logistic_regressions(features, labels, 9, [0.1], max_iterations=100)[0.1]
    assert found.weight_CD.isfinite().all() and found.hits(features, labels)[0] > 100
