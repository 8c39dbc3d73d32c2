"""The settings of `webssl vqa`: a frozen encoder is given eyes for a language model, in two stages, and asked.

Defaults are those of Web-SSL (arXiv 2504.01017, App. A and Table 5) and, where it says nothing, of Cambrian-1
(arXiv 2406.16860), whose recipe it takes.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from webssl_fast.config.fields import Config, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from webssl_fast.config.schema import DecodeConfig, OptimConfig, TrainConfig
from webssl_fast.config.vqa_benchmarks import VqaBenchmarksConfig


def _refuse(config: Config, unused: dict[str, str]) -> None:
    for name in unused:
        if getattr(config, name) == type(config).model_fields[name].default:
            continue
        raise ValueError(f"{name} has no meaning here" + (f"; set {unused[name]}" if unused[name] else ""))


class LanguageModelConfig(Config):
    source: str = ""  # a folder or hub id of a causal language model of transformers, or a .gguf file
    # How turns are written: empty: the tokenizer's own template; llama_3; or a file with a Jinja template.
    chat_template: str = ""
    system_prompt: str = ""  # before conversations that have none; empty: whatever the template does then
    max_tokens: Annotated[int, Field(ge=8)] = 2048  # of a conversation with its image; longer ones are cut at the end


class AdapterConfig(Config):
    num_image_tokens: PositiveInt = 576  # a square: patches are resized to such a grid
    image_newline: bool = False  # a learned token after each row (Cambrian-1's code; Web-SSL speaks of 576 tokens)

    @model_validator(mode="after")
    def _square(self):
        side = math.isqrt(self.num_image_tokens)
        if side**2 != self.num_image_tokens:
            raise ValueError(f"num_image_tokens must be a square, such as {side**2} or {(side + 1) ** 2}")
        return self


class ConversationsConfig(Config):
    """What a stage trains on."""

    conversations: str = ""  # JSON lines
    index: str = ""  # where their index is kept; empty: beside them, as <conversations>.index
    images: str = ""  # what images' names are relative to: a folder, or shards in which they are keys
    exclude_prefixes: tuple[str, ...] = ()  # records are left out whose image's name begins so
    exclude_images: str = ""  # a file with images' names, one a line, whose records are left out
    decode: DecodeConfig = DecodeConfig()
    # Image tokens are computed once and kept in output_dir (num_image_tokens x width x 2 bytes an image), for encoders
    # that cost more than a disk.
    precompute: bool = False
    num_threads: PositiveInt = 4  # that read, decode and tokenise
    prefetch_steps: NonNegativeInt = 2
    max_bad_share: Probability = 0.05  # a larger share of unusable records stops the run ...
    min_seen_before_stop: NonNegativeInt = 200  # ... once so many records were seen

    @model_validator(mode="after")
    def _decodes_on_the_host(self):
        if self.decode.device == "gpu":
            raise ValueError("decode.device must be cpu here: whole images are padded and resized on the host")
        return self


class LoraConfig(Config):
    """Low-rank updates of the language model's linear layers (arXiv 2106.09685), through peft: for small GPUs. They are
    merged into the weights in the end."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 128.0


class StageOptimConfig(OptimConfig):
    """AdamW as in pre-training, with these defaults; the warm-up is a share of the stage's steps."""

    base_lr: PositiveFloat = 1e-5
    lr_scaling: Literal["sqrt", "linear", "none"] = "none"
    min_lr: NonNegativeFloat = 0.0
    warmup_share: Probability = 0.06
    weight_decay: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.0)
    clip_grad_norm: PositiveFloat | None = 1.0

    @model_validator(mode="after")
    def _only_what_is_used(self):
        _refuse(self, {"warmup_steps": "warmup_share", "layerwise_decay": "", "patch_embed_lr_factor": ""})
        return self


class LanguageStageOptimConfig(StageOptimConfig):
    base_lr: PositiveFloat = 4e-5
    warmup_share: Probability = 0.03


class AdapterStageConfig(Config):
    data: ConversationsConfig = ConversationsConfig()
    epochs: PositiveFloat = 1.0
    num_steps: PositiveInt | None = None  # stands instead of epochs
    optim: StageOptimConfig = StageOptimConfig()


class LanguageStageConfig(AdapterStageConfig):
    optim: LanguageStageOptimConfig = LanguageStageOptimConfig()
    lora: LoraConfig | None = None


class VqaTrainConfig(TrainConfig):
    """Both stages' training, by the engine that pre-trains. The frozen parts have the dtype of `teacher_weights`."""

    global_batch_size: PositiveInt = 512
    checkpoint_every: PositiveInt = 500

    @model_validator(mode="after")
    def _only_what_is_used(self):
        _refuse(self, {"num_steps": "stage1.num_steps or stage2.num_steps", "group_size": ""})
        return self


class VqaConfig(Config):
    output_dir: str = "runs/vqa"
    seed: NonNegativeInt = 0
    encoder: str = ""  # a run, a .pth file of the Web-SSL authors, or a folder or id of the Hugging Face hub
    language_model: LanguageModelConfig = LanguageModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    stage1: AdapterStageConfig = AdapterStageConfig()
    stage2: LanguageStageConfig = LanguageStageConfig()
    train: VqaTrainConfig = VqaTrainConfig()
    benchmarks: VqaBenchmarksConfig = VqaBenchmarksConfig()
    answer_batch_size: PositiveInt = 16  # questions at once
