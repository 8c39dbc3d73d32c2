"""`webssl eval`: a frozen encoder is judged by everything that its config names data for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from webssl_fast.config.schema import RunConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.feature_cache import encoder_hash
from webssl_fast.models.encoders import Encoder, compile_encoder
from webssl_fast.recipes.encoder_source import is_own_training, load_encoder, untrained_twin
from webssl_fast.recipes.evaluate_alignment import evaluate_alignment
from webssl_fast.recipes.evaluate_dense import evaluate_depth, evaluate_segmentation
from webssl_fast.recipes.evaluate_knn import evaluate_knn
from webssl_fast.recipes.evaluate_linear_probe import evaluate_linear_probe
from webssl_fast.recipes.evaluate_logistic_regression import evaluate_logistic_regression
from webssl_fast.recipes.evaluate_zero_shot import evaluate_zero_shot
from webssl_fast.recipes.result_file import result_table, write_result
from webssl_fast.recipes.setup import prepared
from webssl_fast.records import EvalResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """source: the setting of its section that names its data; where that is empty, it is not wanted."""

    run: Callable[[Encoder, RunConfig, Distributed], EvalResult]
    source: str
    beside_untrained: bool = False  # an own run is judged beside an untrained network of its architecture


# By section of `eval:`, in the order in which they run.
EVALUATIONS = {
    "knn": Evaluation(evaluate_knn, "train_source", beside_untrained=True),
    "logistic_regression": Evaluation(evaluate_logistic_regression, "train_source"),
    "linear_probe": Evaluation(evaluate_linear_probe, "train_source"),
    "zero_shot": Evaluation(evaluate_zero_shot, "source"),
    "segmentation": Evaluation(evaluate_segmentation, "source"),
    "depth": Evaluation(evaluate_depth, "source"),
    "alignment": Evaluation(evaluate_alignment, "source"),
}


def evaluate(config_path: Path, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Runs the evaluations that a config names data for; returns their scores by name.

    Each prints a table and writes `output_dir/eval/<name>.json` when it is done.
    """
    with prepared(config_path, overrides) as (config, ranks):
        wanted = wanted_evaluations(config)
        if not config.eval.checkpoint and not Path(config.output_dir).is_dir():
            raise UserError(f"there is no run at output_dir {config.output_dir}: train first, or set eval.checkpoint")
        source = config.eval.checkpoint or config.output_dir
        encoder = load_encoder(source, ranks.device)
        assert isinstance(encoder, nn.Module)
        untrained = untrained_twin(encoder, config.seed) if is_own_training(source) else None
        if config.eval.compile_encoder:
            for each in (encoder, untrained):
                if each is not None:
                    compile_encoder(each)
        scores = {}
        for name, evaluation in wanted.items():
            started = time.monotonic()
            result = evaluation.run(encoder, config, ranks)
            beside = None
            if evaluation.beside_untrained and untrained is not None:
                beside = evaluation.run(untrained, config, ranks)
            if ranks.is_main:
                path = write_result(
                    result,
                    Path(config.output_dir),
                    encoder={"name": encoder.name, "source": source, "sha256": encoder_hash(encoder)},
                    settings=getattr(config.eval, name).model_dump(mode="json"),
                    image_size_px=config.eval.image_size_px or encoder.image_size_px,
                    seed=config.seed,
                    precision=config.train.precision,
                    world_size=ranks.world_size,
                    seconds=time.monotonic() - started,
                    untrained=beside,
                )
                print(result_table(result, beside, encoder.name, path))
            scores[name] = result.scores
    return scores


def wanted_evaluations(config: RunConfig) -> dict[str, Evaluation]:
    """Those that the config names data for. ConfigError where there is none."""
    wanted = {name: e for name, e in EVALUATIONS.items() if getattr(getattr(config.eval, name), e.source)}
    if not wanted:
        keys = ", ".join(f"eval.{name}.{e.source}" for name, e in EVALUATIONS.items())
        raise ConfigError(f"nothing to evaluate: the config names no data; set one or more of {keys}")
    return wanted
