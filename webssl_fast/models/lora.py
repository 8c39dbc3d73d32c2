"""Low-rank updates of a language model's linear layers (LoRA, arXiv 2106.09685), through peft."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from webssl_fast.errors import ConfigError
from webssl_fast.models.init import constant, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPER = "base_model.model."  # what peft puts before the names of a model's parameters
_BASE_LAYER = ".base_layer."  # and within those of the layers that it updates


def add_lora(llm: PreTrainedModel, rank: int, alpha: float) -> PreTrainedModel:
    """The model with updates of all its linear layers but the logits', which alone are trained; in place.

    ConfigError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("stage2.lora needs peft: pip install 'webssl_fast[vqa]'") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")  # type: ignore[arg-type]
    return get_peft_model(llm, config)  # type: ignore[return-value]


def plain_name(name: str) -> str:
    """Of a parameter, as the model without updates calls it."""
    return name.removeprefix(_WRAPPER).replace(_BASE_LAYER, ".")


def initialize_lora(llm: nn.Module, seed: int, prefix: str) -> None:
    """The updates as their authors start them, A drawn (Kaiming's rule for a slope of sqrt(5)) and B zero, so that the
    model is at first what it was. A model without updates has nothing to fill."""
    for name, p in llm.named_parameters():
        if ".lora_A." in name:
            uniform(p, (seed, f"{prefix}.{name}"), bound=1 / math.sqrt(p.shape[1]))
        elif ".lora_B." in name:
            constant(p, 0.0)


def merged(llm: Any) -> PreTrainedModel:
    """The model with its updates added to the weights."""
    return llm.merge_and_unload() if hasattr(llm, "merge_and_unload") else llm
