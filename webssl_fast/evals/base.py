"""What every evaluation of a frozen encoder shares: its features of labelled images, drawn without side effects.

Dimensions: B images of a batch, N images of a data set, D width, S side in pixels. (`patch_tokens` is [B, P, D] here,
P patches an image, since N counts images.)

Evaluations never open files: a recipe hands in iterables of (images_B3SS, labels_B, sample_ids_B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from webssl_fast.errors import UserError
from webssl_fast.records import Features

LabelledBatch = tuple[Tensor, Tensor, np.ndarray]

FEATURES: dict[str, Callable[[Features], Tensor]] = {
    "cls": lambda features: features.cls_token.float(),
    "patch_mean": lambda features: features.patch_tokens.float().mean(dim=1),
}


def labelled(batches: Iterable[LabelledBatch], source: str) -> Iterator[LabelledBatch]:
    """Passes batches on; raises UserError at the first image without a label (-1), naming `source` and the samples."""
    for images_B3SS, labels_B, sample_ids_B in batches:
        check_labels(labels_B, sample_ids_B, source)
        yield images_B3SS, labels_B, sample_ids_B


def check_labels(labels_B: Tensor, sample_ids_B: np.ndarray, source: str) -> None:
    """Raises UserError where an image has no label (-1), naming `source` and the samples."""
    missing = torch.as_tensor(labels_B) < 0
    if missing.any():
        ids = torch.as_tensor(sample_ids_B)[missing].tolist()
        named = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        raise UserError(
            f"{source}: {len(ids)} images have no label (sample ids {named}), and this evaluation compares labels. "
            "Give every image one: a folder with one subfolder a class, shards with a .cls entry beside each image, or "
            "Parquet files with a column of labels."
        )


@contextmanager
def judged(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and no gradients inside; each submodule's mode and the global random state are as before after it.

    Iterating a torch DataLoader draws from the global generator, so an evaluation in the middle of a run would change
    the run if its state were not put back.
    """
    was_training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module, training in was_training.items():
            module.training = training


def extract_features(
    encoder: nn.Module,
    batches: Iterable[LabelledBatch],
    device: torch.device | str,
    features: Iterable[str] = ("cls", "patch_mean"),
    autocast_dtype: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of every image, in the order of the batches.

    encoder         images [B, 3, S, S] -> records.Features
    batches         (images fp32 or bf16 [B, 3, S, S], labels int64 [B], sample ids [B])
    device          where the encoder lives; images are moved to it
    features        "cls" (the class token), "patch_mean" (mean of the patch tokens); both after the final norm
    autocast_dtype  e.g. torch.bfloat16; None runs in the encoder's own dtype

    Returns {name: fp32 [N, D]} and labels int64 [N], on the CPU (a million images of width 1536 are 6 GiB a feature).
    Raises ValueError for an unknown feature name and where `batches` is empty.
    """
    device = torch.device(device)
    names = tuple(features)
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise ValueError(f"features: got {', '.join(map(repr, unknown))}, allowed are {', '.join(map(repr, FEATURES))}")

    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    labels: list[Tensor] = []
    autocast = torch.autocast(device.type, autocast_dtype) if autocast_dtype is not None else nullcontext()
    with judged(encoder, device), autocast:
        for images_B3SS, labels_B, _ in batches:
            found = encoder(images_B3SS.to(device, non_blocking=True))
            for name in names:
                rows[name].append(FEATURES[name](found).cpu())
            labels.append(torch.as_tensor(labels_B).cpu().long())
    if not labels:
        raise ValueError("batches: got none, an evaluation needs at least one image; check its source")
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.cat(labels)
