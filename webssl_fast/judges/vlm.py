"""A vision-language model of transformers is asked the two questions of Web-SSL (arXiv 2504.01017, App. A).

The paper's rule is the generated yes or no. The default here is the probability of yes against no as the answer's first
token, p(yes) / (p(yes) + p(no)), each summed over its spellings in the vocabulary: it costs one token, and has a
threshold.

Dimensions: B images, H rows, W columns, V entries of the vocabulary.
"""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webssl_fast.config.filter import VlmConfig, VlmThresholds
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.judges.base import JudgeKind, Scores, Unjudged

HEAVY = "charts, tables or documents with readable text, by the model's answer"
_INSTALL = "pip install 'webssl_fast[filter,hf]'"


def check(config: VlmConfig) -> dict[str, str]:
    """Nothing: a hub id stands in the config with its revision. Raises UserError: no transformers, no GPU."""
    if find_spec("transformers") is None:
        raise UserError(f"judge.name=vlm needs the package transformers, which is not installed: {_INSTALL}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("judge.device=cuda, but torch finds no NVIDIA GPU here: set judge.device=cpu, or auto")
    return {}


class _Prepared(NamedTuple):
    """reasons: why an image is not asked about; inputs: of the others, by question."""

    reasons: list[str | None]
    inputs: dict[str, dict[str, Tensor]]


class VlmJudge:
    """light_probability, heavy_probability: of yes against no; where the answer is generated 1 for a yes, 0 for a no,
    None for anything else. light_text, heavy_text: what was generated."""

    def __init__(self, config: VlmConfig):
        self.batch_size = config.batch_size
        self._config = config
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._device = _device(config)
        self._processor, self._model = _load(config)
        self._lock = threading.Lock()  # a fast tokenizer that pads is one thread's
        self._model.to(self._device).eval()
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "left"  # so that every answer begins at the end of the batch
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._prompts = {"light": self._prompt(config.light_question), "heavy": self._prompt(config.heavy_question)}
        if config.answer == "first_token":
            self._yes, self._no = (self._spellings(word) for word in ("yes", "no"))

    def prepare(self, images: Sequence[np.ndarray]) -> _Prepared:
        pictures = [Image.fromarray(image) for image in images]
        reasons: list[str | None] = [None] * len(pictures)
        try:
            return _Prepared(reasons, self._inputs(pictures))
        except Exception:  # the processor does not take one of them, of extreme shape perhaps: which?
            reasons = [self._reason_against(picture) for picture in pictures]
        good = [picture for picture, reason in zip(pictures, reasons, strict=True) if reason is None]
        return _Prepared(reasons, self._inputs(good) if good else {})

    def judge(self, prepared: _Prepared) -> list[Scores | Unjudged]:
        columns: dict[str, list] = {}
        for name, inputs in prepared.inputs.items():
            columns |= self._ask(name, inputs)
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [next(rows) if reason is None else Unjudged(reason) for reason in prepared.reasons]

    def _inputs(self, pictures: Sequence[Image.Image]) -> dict[str, dict[str, Tensor]]:
        """What the model takes, by question; what is the same for both, the pixels above all, is in memory once."""
        inputs: dict[str, dict[str, Tensor]] = {}
        first: dict[str, Tensor] = {}
        for name, prompt in self._prompts.items():
            texts, images = [prompt] * len(pictures), [[picture] for picture in pictures]
            with self._lock:
                found = self._processor(text=texts, images=images, return_tensors="pt", padding=True)
            cast = {k: v.to(self._model.dtype) if v.is_floating_point() else v for k, v in found.items()}
            inputs[name] = {k: first[k] if k in first and torch.equal(first[k], v) else v for k, v in cast.items()}
            first = first or inputs[name]
        return inputs

    def _reason_against(self, picture: Image.Image) -> str | None:
        try:
            self._inputs([picture])
        except Exception as error:
            return f"the model's processor does not take it: {type(error).__name__}: {error}"
        return None

    @torch.inference_mode()
    def _ask(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, list]:
        generated = self._config.answer == "generated"
        try:
            output = self._model.generate(
                **{key: value.to(self._device) for key, value in inputs.items()},
                max_new_tokens=self._config.max_new_tokens if generated else 1,
                do_sample=False,
                output_logits=not generated,
                return_dict_in_generate=True,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"judge.batch_size={self.batch_size} images do not fit into the GPU's memory: set a smaller one, and "
                f"the same output_dir goes on ({error})"
            ) from error
        if generated:
            new_tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
            with self._lock:
                texts = self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
            return {f"{name}_probability": [yes_or_no(t) for t in texts], f"{name}_text": [t.strip() for t in texts]}
        return {f"{name}_probability": probability_of_yes(output.logits[0], self._yes, self._no).tolist()}

    def _prompt(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _spellings(self, word: str) -> Tensor:
        """Entries of the vocabulary that say the word, in capitals or not, with a space before it or not."""
        entries = self._tokenizer.batch_decode([[entry] for entry in range(len(self._tokenizer))])
        found = [number for number, entry in enumerate(entries) if entry.strip().lower() == word]
        if not found:
            raise UserError(
                f"the vocabulary of {self._config.model!r} has no token {word!r}: set judge.answer=generated"
            )
        return torch.tensor(found, device=self._device)


def probability_of_yes(logits_BV: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """fp32 [B]: p(yes) / (p(yes) + p(no)), each the sum over its entries of the vocabulary."""
    logits_BV = logits_BV.float()
    return torch.sigmoid(logits_BV[:, yes].logsumexp(1) - logits_BV[:, no].logsumexp(1)).cpu()


def yes_or_no(text: str) -> float | None:
    """1 for an answer that begins with yes, 0 for no, None for anything else."""
    found = re.match(r"\W*(yes|no)\b", text.lower())
    return None if found is None else float(found[1] == "yes")


def answers(scores: Mapping[str, np.ndarray], thresholds: VlmThresholds) -> tuple[np.ndarray, np.ndarray]:
    """bool [B] each: light and heavy."""
    light_B = scores["light_probability"] >= np.float32(thresholds.light)
    return light_B, scores["heavy_probability"] >= np.float32(thresholds.heavy)


def _columns(config: VlmConfig) -> dict[str, str]:
    columns = {"light_probability": "float32", "heavy_probability": "float32"}
    return columns | {"light_text": "string", "heavy_text": "string"} if config.answer == "generated" else columns


def _device(config: VlmConfig) -> torch.device:
    """Worker processes take the GPUs of a machine in turn."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    found = re.search(r"\d+$", multiprocessing.current_process().name)  # "SpawnProcess-3"; "MainProcess"
    return torch.device("cuda", (int(found[0]) - 1) % torch.cuda.device_count() if found else 0)


def _load(config: VlmConfig) -> tuple[Any, Any]:
    """Processor and model, from a folder or the hub. Code beside the weights never runs, weights are safetensors."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Idefics3Processor

    path = Path(config.model).expanduser()
    source = str(path) if path.is_dir() else config.model
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    try:
        model_type = AutoConfig.from_pretrained(source, **options).model_type
        # SmolVLM's own processor asks for torchvision and num2words, for videos; for images it does what this one does.
        processor_class = Idefics3Processor if model_type == "smolvlm" else AutoProcessor
        processor = processor_class.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"judge.model={config.model!r} cannot be loaded: {' '.join(str(error).split())[:500]}\nIt must be a folder "
            "or hub id of an image-text-to-text model of transformers, with its processor, tokenizer and safetensors."
        ) from error
    return processor, model


KIND = JudgeKind(check=check, load=VlmJudge, columns=_columns, answers=answers, heavy=HEAVY)
