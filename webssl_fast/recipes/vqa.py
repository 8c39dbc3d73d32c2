"""`webssl vqa`: from a frozen encoder to the row of its VQA scores."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from webssl_fast.config.load import load_config_of
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.manifest import digest
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.feature_cache import encoder_hash
from webssl_fast.models.chat import ChatFormat
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.language import load_tokenizer
from webssl_fast.models.vision_language import VisionLanguageModel
from webssl_fast.models.vision_language_files import ADAPTER, EncoderIdentity, load_vision_language, read_identity
from webssl_fast.recipes.encoder_source import load_encoder
from webssl_fast.recipes.result_file import result_table, write_result
from webssl_fast.recipes.setup import joined, keep_config, log_to_stderr
from webssl_fast.recipes.vqa_benchmarks import check_data, run_benchmarks, score_benchmarks
from webssl_fast.recipes.vqa_training import MODEL, Frozen, train_adapter, train_language
from webssl_fast.records import EvalResult

logger = logging.getLogger(__name__)


def vqa(config_path: Path, overrides: Sequence[str], score_only: bool = False) -> EvalResult | None:
    """Trains the two stages and has the benchmarks answered, whatever of it is not done yet in output_dir.

    score_only  the answers that are there are scored again, without a model
    Training uses every rank of torchrun, the benchmarks the first alone (the others return None). Raises Interrupted
    after a signal, UserError for what the user can mend.
    """
    log_to_stderr()
    config = load_config_of(VqaConfig, config_path, overrides)
    output_dir = Path(config.output_dir)
    if score_only:
        started = time.monotonic()
        return _finish(score_benchmarks(config.benchmarks, output_dir), config, output_dir / MODEL, started)
    _check(config)
    with joined(config.train) as ranks:
        if ranks.is_main:
            check_data(config.benchmarks)  # now, and not after days of training
            keep_config(config, output_dir)
        encoder = load_encoder(config.encoder, ranks.device)
        identity = identify(encoder, config.encoder)
        model_dir = train(config, encoder, identity, ranks)
    if not ranks.is_main:
        return None
    # Out of the ranks' group, whose other members must not wait through hours of answers.
    gc.collect()  # what training held
    started = time.monotonic()
    model = load_model(config, encoder, identity, model_dir, ranks.device)
    result = run_benchmarks(
        lambda questions: model.answers(questions, config.answer_batch_size),
        config.benchmarks,
        output_dir,
        model_identity=f"{identity.name}, adapter {digest(model_dir / ADAPTER)[:16]}",
    )
    return _finish(result, config, model_dir, started)


def _check(config: VqaConfig) -> None:
    for key, value in (
        ("encoder", config.encoder),
        ("language_model.source", config.language_model.source),
        ("stage2.data.conversations", config.stage2.data.conversations),
    ):
        if not value:
            raise ConfigError(f"{key} is not set, and is needed; docs/vqa.md says what to fetch")


def identify(encoder: Encoder, source: str) -> EncoderIdentity:
    assert isinstance(encoder, nn.Module)
    return EncoderIdentity(encoder.name, source, encoder_hash(encoder), encoder.image_size_px)


def train(config: VqaConfig, encoder: Encoder, identity: EncoderIdentity, ranks: Distributed) -> Path:
    """Both stages, whatever of them is not done; returns the folder of the model."""
    settings = config.language_model
    chat = ChatFormat(load_tokenizer(settings.source), settings.chat_template, settings.system_prompt)
    frozen = Frozen(encoder, identity, chat)
    adapter = None
    if config.stage1.data.conversations:
        adapter = train_adapter(config, frozen, ranks)
    elif ranks.is_main:
        logger.warning("NO STAGE 1: stage1.data.conversations is empty, so stage 2 starts from an untrained adapter")
    return train_language(config, frozen, ranks, adapter)


def load_model(
    config: VqaConfig, encoder: Encoder, identity: EncoderIdentity, model_dir: Path, device: torch.device
) -> VisionLanguageModel:
    model = load_vision_language(model_dir, encoder, identity.sha256, device)
    model.autocast = config.train.precision == "bf16"
    return model


def open_trained(output_dir: Path, device: torch.device) -> tuple[VisionLanguageModel, VqaConfig]:
    """The model that `webssl vqa` left in its output_dir, and that run's config. UserError where there is none."""
    config_path, model_dir = output_dir / "config.yaml", output_dir / MODEL
    if not config_path.is_file() or not model_dir.is_dir():
        raise UserError(f"{output_dir} is no output_dir of a finished `webssl vqa`: it lacks config.yaml or {MODEL}/")
    config = load_config_of(VqaConfig, config_path)
    encoder = load_encoder(config.encoder, device)
    return load_model(config, encoder, identify(encoder, config.encoder), model_dir, device), config


def _finish(result: EvalResult, config: VqaConfig, model_dir: Path, started: float) -> EvalResult:
    identity = read_identity(model_dir)
    path = write_result(
        result,
        Path(config.output_dir),
        encoder={"name": identity.name, "source": identity.source, "sha256": identity.sha256},
        settings=config.model_dump(mode="json", exclude={"train", "output_dir", "seed"}),
        image_size_px=identity.image_size_px,
        seed=config.seed,
        precision=config.train.precision,
        world_size=1,
        seconds=time.monotonic() - started,
    )
    print(result_table(result, None, identity.name, path))
    return result
