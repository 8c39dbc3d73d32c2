"""Labelled images to train on, to choose by, and perhaps to test on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from webssl_fast.config.schema import LinearProbeConfig, LogisticRegressionConfig
from webssl_fast.data.index import Index
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.base import check_labels


@dataclass(frozen=True)
class LabelledSplits:
    """test: None where the choice and the score are both those of `val`, as the paper has it."""

    train: Index
    val: Index
    test: Index | None

    @classmethod
    def open(cls, settings: LinearProbeConfig | LogisticRegressionConfig, section: str) -> LabelledSplits:
        """Raises ConfigError where a source is empty or held out of nothing, UserError where an image has no label."""
        for key in ("train_source", "val_source"):
            if not getattr(settings, key):
                raise ConfigError(
                    f"{section}.{key} is empty: name labelled images, e.g. a folder with one subfolder a class"
                )
        train = _labelled(settings.train_source, f"{section}.train_source", None)
        parts: list[Index | None] = []
        for key in ("val_source", "test_source"):
            source = getattr(settings, key)
            if source and _inside(source, settings.train_source):
                raise ConfigError(
                    f"{section}.{key} is {source!r}, which lies in {section}.train_source = "
                    f"{settings.train_source!r}: name images that are not trained on"
                )
            parts.append(_labelled(source, f"{section}.{key}", train.class_names) if source else None)
        val, test = parts
        assert val is not None
        if test is not None and _inside(settings.test_source, settings.val_source):
            raise ConfigError(
                f"{section}.test_source lies in {section}.val_source, by which the best is chosen: leave it empty to "
                "report the score on val, or name other images"
            )
        return cls(train, val, test)

    def describe(self) -> dict[str, int]:
        sizes = {"train_images": len(self.train), "val_images": len(self.val), "classes": len(self.train.class_names)}
        return sizes if self.test is None else {**sizes, "test_images": len(self.test)}


def _labelled(source: str, key: str, class_names: list[str] | None) -> Index:
    index = Index.open(source, class_names=class_names)
    ids = np.arange(len(index))
    check_labels(torch.from_numpy(index.label(ids)), ids, f"{key} = {source!r}")
    if len(index.class_names) < 2:
        raise UserError(f"{key}: {source!r} has {len(index.class_names)} classes; at least two are needed")
    return index


def _inside(source: str, other: str) -> bool:
    paths = [Path(each).expanduser().resolve() for each in (source, other)]
    return paths[0] == paths[1] or paths[1] in paths[0].parents
