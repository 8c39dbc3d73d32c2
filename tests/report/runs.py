"""Run directories as `webssl train` leaves them, made on the fly."""

import json
import math
from pathlib import Path

CONFIG = """\
output_dir: runs/tiny
data: {source: photos, max_bad_share: 0.05}
model: {preset: vit_tiny_patch14}
method: {name: dinov2}
optim: {clip_grad_norm: 3.0}
train: {num_steps: 40, global_batch_size: 8}
"""


def write_run(
    directory: Path, metrics: list[dict] | None = None, bad_samples: list[dict] | None = None, config: str = CONFIG
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(config)
    for name, rows in (("metrics.jsonl", metrics), ("bad_samples.jsonl", bad_samples)):
        if rows is not None:
            (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def training_metrics(num_steps: int = 40, every: int = 10) -> list[dict]:
    """Step 0 evaluated, then logged and evaluated every so many steps; the last loss is 7.125."""
    rows: list[dict] = [{"step": 0, "eval/knn/cls_top1": 0.3125, "eval/knn/patch_mean_top1": 0.452}]
    for step in range(every, num_steps + 1, every):
        share = step / num_steps
        rows.append(
            {
                "step": step,
                "loss": 11.125 - 4 * share,
                "dino_global": 1.5 - share,
                "dino_local": 9 - 3 * share,
                "ibot": 9.5 - 2 * share,
                "koleo": 0.3 - share,
                "lr": 1e-4 * (1 + math.cos(math.pi * share)),
                "weight_decay": 0.04 + 0.16 * share,
                "teacher_temperature": 0.07,
                "ema_momentum": 0.994 + 0.006 * share,
                "grad_norm/backbone": 1.5,
                "grad_norm/dino_head": 0.05,
                "samples_per_second": 120.5,
                "data_wait_share": 0.085,
                "samples_seen": step * 8,
                "epoch": step * 8 / 100,
                "bad_samples": 2,
                "skipped_steps": 0,
                "memory_peak_rss_gib": 2.3,
            }
        )
        rows.append(
            {"step": step, "eval/knn/cls_top1": 0.3125 + 0.2 * share, "eval/knn/patch_mean_top1": 0.452 + 0.229 * share}
        )
    return rows
