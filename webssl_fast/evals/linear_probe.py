"""The linear probe of DINOv2 (arXiv 2304.07193, section 7.1) as Web-SSL takes it over: what its heads read, how their
learning rates run, how they are judged and kept.

Every combination of learning rate, number of blocks and patch mean is a head; all train on the same features, and the
head that is best on validation images is the result.

Dimensions: B images, N images of a set, D width of one token, F width of all features together.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from webssl_fast.config.schema import LinearProbeConfig
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.feature_cache import FrozenFeature
from webssl_fast.evals.probe_heads import ProbeHeads, Variant, head_name
from webssl_fast.records import EvalResult, Features
from webssl_fast.schedules import cosine

BASE_BATCH_SIZE = 256  # of which the learning rates are
KS = (1, 5)
SCORE_ROWS = 1024

Hits = dict[str, list[int]]  # of each head, for each of KS


def variants(config: LinearProbeConfig) -> list[Variant]:
    return [Variant(num_blocks, mean) for num_blocks in config.num_blocks for mean in config.patch_mean]


def lr_factor(step: int, config: LinearProbeConfig) -> float:
    """By what each learning rate is multiplied at a step: the batch's size, and half a cosine to 0."""
    return cosine(step, config.batch_size / BASE_BATCH_SIZE, 0.0, config.num_steps)


def probe_blocks(config: LinearProbeConfig, num_blocks: int) -> list[int]:
    """The blocks whose class tokens the heads read, the last one first. ConfigError where the network has fewer."""
    wanted = max(config.num_blocks)
    if wanted > num_blocks:
        raise ConfigError(
            f"eval.linear_probe.num_blocks asks for the last {wanted} blocks of an encoder of {num_blocks}"
        )
    return [num_blocks - 1 - i for i in range(wanted)]


def cached_features(blocks: Sequence[int]) -> list[FrozenFeature]:
    """What `joined_features` makes of an image, as the cache knows it: the patch mean, then the class tokens."""
    return [FrozenFeature(blocks[0], "patch_mean"), *(FrozenFeature(block) for block in blocks)]


def joined_features(of_blocks: Sequence[Features]) -> Tensor:
    """fp32 [B, F]: the last block's patch mean, then the class tokens; of_blocks has the last block first."""
    patch_mean_BD = of_blocks[0].patch_tokens.float().mean(1)
    return torch.cat([patch_mean_BD, *(features.cls_token.float() for features in of_blocks)], 1)


def head_hits(heads: ProbeHeads, features_NF: Tensor, labels_N: Tensor, device: torch.device) -> Hits:
    """How many of N images each head has right among its best 1 and 5; features may lie on the CPU."""
    total = torch.zeros(len(heads), len(KS), dtype=torch.int64, device=device)
    for features_BF, labels_B in zip(features_NF.split(SCORE_ROWS), labels_N.split(SCORE_ROWS), strict=True):
        total += heads.hits(features_BF.to(device), labels_B.to(device), KS)
    return dict(zip(heads.names(), total.tolist(), strict=True))


def best_head(hits: Hits, config: LinearProbeConfig) -> tuple[Variant, float]:
    """By top-1, then top-5, then the order of the config."""
    candidates = [(variant, rate) for variant in variants(config) for rate in config.learning_rates]
    return max(candidates, key=lambda candidate: hits[head_name(*candidate)])


def probe_result(
    val: Hits, num_val: int, test: Hits | None, num_test: int, num_classes: int, config: LinearProbeConfig
) -> EvalResult:
    """The chosen head's scores under "best_on_val/...", and every head's on the validation images under its name.

    Test images, where there are any, judge the chosen head alone.
    """
    variant, rate = best_head(val, config)
    ks = [k for k in KS if k < num_classes]
    scores = {f"best_on_val/val_top{k}": val[head_name(variant, rate)][KS.index(k)] / num_val for k in ks}
    if test is not None:
        scores |= {f"best_on_val/test_top{k}": test[head_name(variant, rate)][KS.index(k)] / num_test for k in ks}
    scores["best_on_val/learning_rate"] = rate
    scores["best_on_val/num_blocks"] = float(variant.num_blocks)
    scores["best_on_val/patch_mean"] = float(variant.patch_mean)
    scores["chance"] = 1 / num_classes
    for name, of_head in val.items():
        scores |= {f"{name}/val_top{k}": of_head[KS.index(k)] / num_val for k in ks}
    return EvalResult("linear_probe", scores)


# ---------------------------------------------------------------- heads on disk


def save_heads(folder: Path, rank: int, state: Mapping[str, Tensor]) -> None:
    """Writes one rank's heads into a folder that the caller renames once every rank is through."""
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in state.items()}, folder / f"heads_{rank:05d}.safetensors"
    )


def load_heads(folder: Path, heads: ProbeHeads) -> None:
    """Takes up the heads that any number of ranks saved. UserError where one is missing."""
    wanted, state = set(heads.state()), {}
    for path in sorted(folder.glob("heads_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state.update({name: file.get_tensor(name) for name in wanted.intersection(file.keys())})
    if missing := sorted(wanted - set(state)):
        raise UserError(f"{folder} lacks {missing[0]} and {len(missing) - 1} more tensors; delete it to start anew")
    heads.load_state(state)


def newest_step(folder: Path) -> int:
    """The step of the newest complete save; 0 where there is none."""
    return max((int(path.name.removeprefix("step_")) for path in _saves(folder)), default=0)


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def remove_older(folder: Path, step: int) -> None:
    for path in _saves(folder):
        if path != step_folder(folder, step):
            shutil.rmtree(path)


def _saves(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]


def mean_finite(losses: Tensor) -> float:
    """For a progress line: some of the larger learning rates diverge, and that is no failure."""
    finite = losses[losses.isfinite()]
    return finite.mean().item() if len(finite) else math.nan
