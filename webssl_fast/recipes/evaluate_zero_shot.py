"""`webssl eval` with `eval.zero_shot`: CLIP and SigLIP classify by the names of the classes.

Dimensions: N images, C classes, P prompts of a class, D width of the joint space.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import RunConfig, ZeroShotConfig
from webssl_fast.data.index import Index
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.base import check_labels
from webssl_fast.evals.feature_cache import FrozenFeature
from webssl_fast.evals.zero_shot import class_directions, zero_shot
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.models.encoders import Encoder
from webssl_fast.recipes.encoder_source import load_method
from webssl_fast.recipes.frozen_features import FrozenFeatures
from webssl_fast.records import EvalResult

DEFAULT_TEMPLATE = "a photo of a {}."


def evaluate_zero_shot(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """Zero-shot classification by the run that `encoder` comes from; image features from the cache, or computed into it
    by all ranks together.

    Raises UserError where that is no run of CLIP or SigLIP, ConfigError where names or templates cannot be used.
    """
    settings = config.eval.zero_shot
    index = Index.open(settings.source)
    check_labels(torch.from_numpy(index.labels), np.arange(len(index)), f"eval.zero_shot.source = {settings.source!r}")
    names, templates = class_names(settings, index), prompt_templates(settings)
    method = _image_text_method(config.eval.checkpoint or config.output_dir, ranks.device)
    feature = FrozenFeature(encoder.num_blocks - 1, "cls")
    table = FrozenFeatures(encoder, config, ranks).of(index, [feature], batch_size=settings.batch_size)
    with torch.no_grad():
        images_ND = method.joint(table.features[feature].to(ranks.device), None)[0]
        classes_CD = class_directions(_embedded_prompts(method, names, templates, settings.batch_size))
    result = zero_shot(images_ND, classes_CD, table.labels.to(ranks.device))
    data = {"images": len(images_ND), "classes": len(names), "templates": len(templates)}
    return EvalResult(result.name, result.scores, data)


def class_names(settings: ZeroShotConfig, index: Index) -> list[str]:
    """What each class is called. ConfigError where the data do not say, or the file has another number of lines."""
    num_classes = int(index.labels.max()) + 1
    if not settings.class_names:
        if not index.class_names or all(name.isdecimal() for name in index.class_names):
            raise ConfigError(
                f"eval.zero_shot.class_names is empty, and {index.source!r} has numbers for classes; name a file with "
                "the name of class i in line i"
            )
        return [name.replace("_", " ") for name in index.class_names]
    names = _lines(settings.class_names, "eval.zero_shot.class_names")
    if len(names) < num_classes or (index.class_names and len(names) != len(index.class_names)):
        raise ConfigError(
            f"eval.zero_shot.class_names = {settings.class_names!r} has {len(names)} lines, but {index.source!r} has "
            f"{max(num_classes, len(index.class_names))} classes; it needs the name of class i in line i"
        )
    return names


def prompt_templates(settings: ZeroShotConfig) -> list[str]:
    """Texts with {} where a class's name goes. ConfigError for a line without it."""
    if not settings.templates:
        return [DEFAULT_TEMPLATE]
    templates = _lines(settings.templates, "eval.zero_shot.templates")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(
                f"eval.zero_shot.templates = {settings.templates!r}: the line {template!r} must have {{}} once, "
                "where the class's name goes"
            )
    return templates


def _lines(path: str, key: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} = {path!r} cannot be read: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ConfigError(f"{key} = {path!r} is empty")
    return lines


def _image_text_method(source: str, device: torch.device) -> ImageTextMethod:
    method = load_method(source)
    if not isinstance(method, ImageTextMethod):
        raise UserError(
            f"eval.zero_shot needs a run of clip or siglip, which know texts, and {source} was trained by "
            f"{method.name}; set eval.zero_shot.source='' or another eval.checkpoint"
        )
    return method.to(device)


def _embedded_prompts(method: ImageTextMethod, names: list[str], templates: list[str], batch_size: int) -> Tensor:
    """[C, P, D]."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    parts = [method.embed_texts(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    return torch.cat(parts).unflatten(0, (len(names), len(templates)))
