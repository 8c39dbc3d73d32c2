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
from webssl_fast.errors import ConfigError
from webssl_fast.evals.feature_cache import encoder_hash
from webssl_fast.models.chat import ChatFormat
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.language import load_tokenizer
from webssl_fast.models.vision_language import VisionLanguageModel
from webssl_fast.models.vision_language_files import EncoderIdentity, load_vision_language
from webssl_fast.recipes.encoder_source import load_encoder
from webssl_fast.recipes.result_file import result_table, write_result
from webssl_fast.recipes.setup import joined, keep_config, log_to_stderr
from webssl_fast.recipes.vqa_benchmarks import run_benchmarks
from webssl_fast.recipes.vqa_training import Frozen, train_adapter, train_language
from webssl_fast.records import EvalResult

logger = logging.getLogger(__name__)


def vqa(config_path: Path, overrides: Sequence[str]) -> EvalResult | None:
    """Trains the two stages and has the benchmarks answered, whatever of it is not done yet in output_dir.

    Training uses every rank of torchrun, the benchmarks the first alone (the others return None). Raises Interrupted
    after a signal, UserError for what the user can mend.
    """
    log_to_stderr()
    config = load_config_of(VqaConfig, config_path, overrides)
    _check(config)
    with joined(config.train) as ranks:
        encoder = load_encoder(config.encoder, ranks.device)
        assert isinstance(encoder, nn.Module)
        identity = EncoderIdentity(encoder.name, config.encoder, encoder_hash(encoder))
        if ranks.is_main:
            keep_config(config, Path(config.output_dir))
        model_dir = _train(config, encoder, identity, ranks)
    if not ranks.is_main:
        return None
    # Out of the ranks' group, whose other members must not wait through hours of answers.
    return _judge(config, encoder, identity, model_dir, Distributed(ranks.device))


def _check(config: VqaConfig) -> None:
    for key, value in (
        ("encoder", config.encoder),
        ("language_model.source", config.language_model.source),
        ("stage2.data.conversations", config.stage2.data.conversations),
    ):
        if not value:
            raise ConfigError(f"{key} is not set, and is needed; docs/vqa.md says what to fetch")


def _train(config: VqaConfig, encoder: Encoder, identity: EncoderIdentity, ranks: Distributed) -> Path:
    settings = config.language_model
    chat = ChatFormat(load_tokenizer(settings.source), settings.chat_template, settings.system_prompt)
    frozen = Frozen(encoder, identity, chat)
    adapter = None
    if config.stage1.data.conversations:
        adapter = train_adapter(config, frozen, ranks)
    elif ranks.is_main:
        logger.warning("NO STAGE 1: stage1.data.conversations is empty, so stage 2 starts from an untrained adapter")
    return train_language(config, frozen, ranks, adapter)


def _judge(
    config: VqaConfig, encoder: Encoder, identity: EncoderIdentity, model_dir: Path, ranks: Distributed
) -> EvalResult:
    gc.collect()  # what training held
    started = time.monotonic()
    model = load_model(config, encoder, identity, model_dir, ranks.device)
    output_dir = Path(config.output_dir)
    result = run_benchmarks(
        lambda questions: model.answers(questions, config.answer_batch_size),
        config.benchmarks,
        output_dir,
        model_identity=f"{identity.name}, {identity.sha256[:16]}, seed {config.seed}",
    )
    path = write_result(
        result,
        output_dir,
        encoder=encoder,
        source=identity.source,
        settings=config.model_dump(mode="json", exclude={"train", "output_dir", "seed"}),
        image_size_px=encoder.image_size_px,
        seed=config.seed,
        precision=config.train.precision,
        world_size=ranks.world_size,
        seconds=time.monotonic() - started,
    )
    print(result_table(result, None, encoder.name, path))
    return result


def load_model(
    config: VqaConfig, encoder: Encoder, identity: EncoderIdentity, model_dir: Path, device: torch.device
) -> VisionLanguageModel:
    model = load_vision_language(model_dir, encoder, identity.sha256, device)
    model.autocast = config.train.precision == "bf16"
    return model
