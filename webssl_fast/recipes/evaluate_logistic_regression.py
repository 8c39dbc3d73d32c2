"""`webssl eval` with `eval.logistic_regression`: a linear accuracy from features that are computed once."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.engine.distributed import Distributed
from webssl_fast.evals.feature_cache import FrozenFeature
from webssl_fast.evals.logistic_regression import KS, fit_logistic_regressions
from webssl_fast.models.encoders import Encoder
from webssl_fast.recipes.frozen_features import FrozenFeatures
from webssl_fast.recipes.labelled_splits import LabelledSplits
from webssl_fast.records import EvalResult

logger = logging.getLogger(__name__)


def evaluate_logistic_regression(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """Fits one classifier for each of eval.logistic_regression.C, shared out among the ranks, and chooses the best on
    val_source; reported there, and on test_source where there is one ("best_on_val/...").

    Raises ConfigError for settings that do not fit and UserError for images without labels.
    """
    settings = config.eval.logistic_regression
    splits = LabelledSplits.open(settings, "eval.logistic_regression")
    num_classes = len(splits.train.class_names)
    frozen = FrozenFeatures(encoder, config, ranks)
    wanted = [FrozenFeature(encoder.num_blocks - 1, pool) for pool in settings.features]

    def joined(index: Index) -> tuple[Tensor, Tensor]:
        table = frozen.of(index, wanted, batch_size=settings.batch_size)
        return torch.cat([table.features[feature] for feature in wanted], 1), table.labels

    train, val = joined(splits.train), joined(splits.val)
    test = joined(splits.test) if splits.test is not None else None
    own = sorted(settings.C)[ranks.rank :: ranks.world_size]
    fitted = fit_logistic_regressions(
        *train, num_classes, own, max_iterations=settings.max_iterations, device=ranks.device
    )
    val_hits: dict[float, list[int]] = {}
    test_hits: dict[float, list[int]] = {}
    for on_val, on_test in ranks.gather(
        (
            {C: classifier.hits(*val) for C, classifier in fitted.items()},
            {C: classifier.hits(*test) for C, classifier in fitted.items()} if test is not None else {},
        )
    ):
        val_hits |= on_val
        test_hits |= on_test
    best = max(sorted(val_hits), key=lambda C: val_hits[C])
    if len(val_hits) > 1 and best in (min(val_hits), max(val_hits)):
        logger.warning(
            "C = %g is best on val and the end of eval.logistic_regression.C: a wider grid may do better", best
        )
    ks = [k for k in KS if k < num_classes]
    scores = {f"best_on_val/val_top{k}": val_hits[best][KS.index(k)] / len(val[1]) for k in ks}
    if test is not None:
        scores |= {f"best_on_val/test_top{k}": test_hits[best][KS.index(k)] / len(test[1]) for k in ks}
    scores |= {"best_on_val/C": best, "chance": 1 / num_classes}
    scores |= {f"C_{C:g}/val_top1": hits[0] / len(val[1]) for C, hits in sorted(val_hits.items())}
    return EvalResult("logistic_regression", scores, splits.describe())
