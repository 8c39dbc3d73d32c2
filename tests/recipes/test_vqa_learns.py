"""The whole path with real parts: an encoder of ours that has seen no label, SmolLM2-135M-Instruct, and rendered
pictures. It answers questions about pictures that it has not seen: in half an hour it learns colors, and hardly more.
The figures stand in docs/log.md."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.packaged import smollm2
from tests.rendered_scenes import SIZE_PX, Asked, Scene, write_scenes
from webssl_fast.config.load import load_config_of
from webssl_fast.config.vqa import VqaConfig
from webssl_fast.models.vision_language import VisionLanguageModel
from webssl_fast.recipes.encoder_source import load_encoder
from webssl_fast.recipes.pretrain import pretrain
from webssl_fast.recipes.setup import joined
from webssl_fast.recipes.vqa import identify, load_model, train

CONFIGS = Path(__file__).parents[2] / "configs"
ENCODER = (
    "model.preset=vit_mae_tiny_patch14",
    f"model.image_size_px={SIZE_PX}",
    "method.decoder_width=96",
    "method.decoder_num_heads=3",
    "method.crop_scale=[0.7, 1.0]",
    "method.normalize_pixels=false",
    "optim.base_lr=3e-3",
    "optim.warmup_steps=60",
    "train.precision=bf16",
    "train.num_steps=265",
    "train.global_batch_size=64",
    "train.micro_batch_size=64",
    "train.group_size=16",
    "train.checkpoint_every=265",
)
LANGUAGE = (
    "language_model.max_tokens=256",
    "language_model.system_prompt=Answer in one word.",
    "adapter.num_image_tokens=64",
    "adapter.image_newline=false",
    "stage1.data.precompute=true",
    "stage1.num_steps=10",
    "stage1.optim.base_lr=1e-3",
    "stage1.optim.warmup_share=0.2",
    "stage2.data.precompute=true",
    "stage2.num_steps=300",
    "stage2.optim.base_lr=5e-4",
    "stage2.optim.warmup_share=0.05",
    "train.precision=bf16",
    "train.global_batch_size=8",
    "train.micro_batch_size=8",
    "train.log_every=5",
    "train.checkpoint_every=50",
)


@dataclass
class Question:
    asked: Asked
    scene: Scene
    max_new_tokens: int = 6

    @property
    def prompt(self) -> str:
        return self.asked.question

    def image(self) -> Image.Image:
        return self.scene.image


def right_by_kind(model: VisionLanguageModel, scenes: list[Scene]) -> dict[str, float]:
    questions = [Question(asked, scene) for scene in scenes for asked in scene.asked]
    right = defaultdict(list)
    for question, answer in zip(questions, model.answers(questions, batch_size=32), strict=True):
        right[question.asked.kind].append(answer.lower().rstrip(".") == question.asked.answer)
    return {kind: sum(flags) / len(flags) for kind, flags in sorted(right.items())}


def best_constant(scenes: list[Scene]) -> dict[str, float]:
    """Of one answer to all questions of a kind, the most frequent one here: no blind answerer does better."""
    answers = defaultdict(Counter)
    for asked in (asked for scene in scenes for asked in scene.asked):
        answers[asked.kind][asked.answer] += 1
    return {kind: max(counts.values()) / sum(counts.values()) for kind, counts in sorted(answers.items())}


@pytest.mark.nightly
def test_it_sees_colors(tmp_path: Path):
    started = time.process_time()
    write_scenes(tmp_path / "unlabelled", 1500, seed=2)
    write_scenes(tmp_path / "train", 640, seed=0)
    unseen = write_scenes(tmp_path / "test", 120, seed=1)
    encoder_dir = tmp_path / "encoder"
    pretrain(
        CONFIGS / "smoke/mae.yaml",
        [f"data.source={tmp_path / 'unlabelled/images'}", f"output_dir={encoder_dir}", *ENCODER],
    )
    data = [f"{stage}.data.conversations={tmp_path / 'train/conversations.jsonl'}" for stage in ("stage1", "stage2")]
    data += [f"{stage}.data.images={tmp_path / 'train/images'}" for stage in ("stage1", "stage2")]
    sources = [f"encoder={encoder_dir}", f"language_model.source={smollm2()}", f"output_dir={tmp_path / 'vqa'}"]
    config = load_config_of(VqaConfig, CONFIGS / "vqa/smoke.yaml", [*sources, *data, *LANGUAGE])
    with joined(config.train) as ranks:
        encoder = load_encoder(config.encoder, ranks.device)
        identity = identify(encoder, config.encoder)
        model = load_model(config, encoder, identity, train(config, encoder, identity, ranks), torch.device("cpu"))

    metrics = (tmp_path / "vqa/stage2/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in metrics]
    trained, chance = right_by_kind(model, unseen), best_constant(unseen)
    model.adapter.initialize(0, "adapter")
    untrained = right_by_kind(model, unseen)
    print(
        f"stage 2: loss {losses[0]:.2f} to {sum(losses[-3:]) / 3:.2f}; "
        f"{time.process_time() - started:.0f} s of processor time"
    )
    for kind in trained:
        print(
            f"{kind:14} {trained[kind]:.2f}, best constant {chance[kind]:.2f}, untrained adapter {untrained[kind]:.2f}"
        )
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]
    assert trained["color"] > max(chance["color"], untrained["color"]) + 0.3
