"""Language models of transformers: as sources of text features (every layer's mean over the tokens of a text), and
whole, as what answers.

Dimensions: B texts, T tokens, L layers (the embeddings and each block's output), D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webssl_fast.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageEncoder:
    """A frozen language model: `encoder(texts)` -> [B, L, D] in fp32."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        device: torch.device,
        max_tokens: int = 2048,
    ):
        self.name, self._model, self._tokenizer, self._device = name, model.eval(), tokenizer, device
        nn.Module.to(model, device)
        tokenizer.padding_side = "right"  # padding then changes no position, absolute or relative
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        positions = getattr(model.config, "max_position_embeddings", None) or max_tokens
        self._max_tokens = min(max_tokens, positions)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Means over each text's own tokens, padding left out; [B, L, D], fp32, on the CPU. No text may be empty."""
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(f"texts: number {empty[0]} is empty, and a text without tokens has no mean")
        tokens: Any = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._max_tokens
        ).to(self._device)
        hidden_states = self._model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        ).hidden_states
        weight_BT1 = tokens["attention_mask"].unsqueeze(-1).float()
        weight_BT1 = weight_BT1 / weight_BT1.sum(dim=1, keepdim=True)
        return torch.stack([(states.float() * weight_BT1).sum(dim=1) for states in hidden_states], dim=1).cpu()


def load_language_encoder(
    source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, max_tokens: int = 2048
) -> LanguageEncoder:
    """A language model from a folder, a hub id, or a `.gguf` file, with its tokenizer. Raises as `reading`."""
    place = LanguageSource.of(source)
    with reading(source) as transformers:
        model = transformers.AutoModel.from_pretrained(place.folder, dtype=dtype, **place.weights)
    return LanguageEncoder(model, load_tokenizer(source), source, torch.device(device), max_tokens)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a language model. ConfigError as `reading` says."""
    place = LanguageSource.of(source)
    with reading(source) as transformers:
        return transformers.AutoTokenizer.from_pretrained(place.folder, **place.options)


def describe_causal_model(source: str) -> PreTrainedModel:
    """A causal language model without its weights: in fp32 on the meta device. ConfigError as `reading` says."""
    place = LanguageSource.of(source)
    with reading(source) as transformers:
        config = transformers.AutoConfig.from_pretrained(place.folder, **place.options)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_causal_model(source: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A causal language model on the CPU; "auto": in the dtype of its files. ConfigError as `reading` says."""
    place = LanguageSource.of(source)
    with reading(source) as transformers:
        model = transformers.AutoModelForCausalLM.from_pretrained(place.folder, dtype=dtype, **place.weights)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and "gguf_file" in place.weights:
        # What was quantised in the file is a plain tensor by now, but transformers would refuse to save it.
        quantizer.remove_quantization_config(model)
    return model


@dataclass(frozen=True)
class LanguageSource:
    """Where transformers is to look, and how: code that lies beside the weights is never run, and weights are read from
    safetensors or GGUF alone."""

    folder: str
    options: dict[str, Any]  # of whatever is read
    weights: dict[str, Any]  # of weights

    @classmethod
    def of(cls, source: str) -> LanguageSource:
        path = Path(source).expanduser()
        options: dict[str, Any] = {"trust_remote_code": False}
        if path.suffix == ".gguf":
            options["gguf_file"] = path.name
            return cls(str(path.parent), options, options)
        return cls(str(path) if path.is_dir() else source, options, {**options, "use_safetensors": True})


@contextmanager
def reading(source: str) -> Iterator[Any]:
    """transformers, to read from `source`. Raises ConfigError: it is not installed, or cannot load what is there."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("language models need transformers: pip install 'webssl_fast[hf]'") from error
    try:
        yield transformers
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"cannot load a language model from {source!r}: {error}\n"
            "It must be a folder or hub id with config.json, tokenizer files and safetensors, or a .gguf file."
        ) from error
