"""What the metrics of a run mean: which belong together, what they are called, in which unit.

A metric that is not named here is still drawn, under "Other measurements", so a new method needs no change.
"""

from __future__ import annotations

from dataclasses import dataclass

from webssl_fast.report import scales
from webssl_fast.report.curves import Chart, Line
from webssl_fast.report.run_files import Run

LOSS_PARTS = {
    "dino_global": "DINO, global crops",
    "dino_local": "DINO, local crops",
    "ibot": "iBOT, masked patches",
    "koleo": "KoLeo, spread of class tokens",
    "reconstruction": "Reconstruction",
    "contrastive": "Contrastive",
}
SCHEDULES = {
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "teacher_temperature": "Teacher temperature",
    "ema_momentum": "EMA momentum of the teacher",
}
SPEED = {
    "samples_per_second": ("Throughput", "images/s"),
    "data_wait_share": ("Waiting for data", "of the time"),
    "mfu": ("Use of the peak FLOP/s", ""),
    "memory_peak_rss_gib": ("Peak memory", "GiB, this process"),
    "memory_peak_cuda_gib": ("Peak GPU memory", "GiB, allocated"),
}
SHARES = {"data_wait_share", "mfu"}
READING = {"read_retries": "Remote reads tried again", "unreadable_samples": "Samples that could not be read"}
COUNTERS = {"samples_seen", "epoch", "bad_samples", "skipped_steps", *READING}  # told in words and `health_charts`
GRAD_NORM = "grad_norm/"
EVALUATION = "eval/"
EVALUATION_NAMES = {"knn": "k-NN"}
FEATURE_NAMES = {"cls": "class token", "patch_mean": "patch mean"}


@dataclass(frozen=True)
class Section:
    """Charts under one heading; `lead` is the sentence that says how to read them."""

    title: str
    charts: list[Chart]
    lead: str = ""


@dataclass(frozen=True)
class ScoreRow:
    """One score from the first evaluation to the last."""

    evaluation: str
    score: str
    first: float
    first_step: int
    last: float
    last_step: int
    best: float
    best_step: int
    is_share: bool

    def text(self, value: float) -> str:
        return scales.percent(value) if self.is_share else scales.number(value)

    @property
    def change(self) -> str:
        """From first to last, in percentage points for a share; a dash where there was one evaluation."""
        if self.last_step == self.first_step:
            return scales.number(None)
        difference = self.last - self.first
        text = f"{100 * difference:.1f}" if self.is_share else scales.number(difference)
        return ("+" if difference >= 0 else "") + text.replace("-", "\N{MINUS SIGN}")


def loss_chart(run: Run) -> Chart:
    return _chart(run, "loss", "Total loss")


def loss_parts(run: Run) -> list[Chart]:
    return [_chart(run, key, title) for key, title in LOSS_PARTS.items() if run.get(key)]


def metric_sections(run: Run) -> list[Section]:
    """Speed, schedules, gradients and the rest; those of which nothing was logged are left out."""
    speed = [
        _chart(run, key, title, unit, percent=key in SHARES, from_zero=True)
        for key, (title, unit) in SPEED.items()
        if run.get(key)
    ]
    schedules = [_chart(run, key, title) for key, title in SCHEDULES.items() if run.get(key)]
    known = {"loss", *LOSS_PARTS, *SCHEDULES, *SPEED, *COUNTERS}
    others = [
        _chart(run, key, key)
        for key in sorted(run.series)
        if key not in known and not key.startswith((GRAD_NORM, EVALUATION))
    ]
    sections = [
        Section("Speed", speed),
        Section("Schedules", schedules),
        Section("Gradient norms", _grad_norms(run), "L2 norm of each module's gradient before clipping."),
        Section("Other measurements", others),
    ]
    return [section for section in sections if section.charts]


def health_charts(run: Run) -> list[Chart]:
    """What went wrong with the data, counted over the run; what never happened is left out."""
    counters = {"bad_samples": ("Images replaced", run.get("bad_samples").finite)}
    counters |= {key: (title, run.get(key).over_restarts) for key, title in READING.items()}
    return [
        Chart(title, [Line(key, counted.steps, counted.values)], from_zero=True, last_step=run.last_step)
        for key, (title, counted) in counters.items()
        if any(counted.values)
    ]


def evaluation_charts(run: Run) -> list[Chart]:
    """One chart for each evaluation and score (k-NN top-1), one curve for each feature, its first score dashed."""
    lines: dict[tuple[str, str], list[Line]] = {}
    for key in _evaluation_keys(run):
        evaluation, feature, score = _parse_evaluation(key)
        series = run.get(key)
        finite = series.finite
        level = finite.values[0] if len(finite.steps) > 1 else None
        name = "untrained" if finite.steps[:1] == [0] else "first"
        lines.setdefault((evaluation, score), []).append(
            Line(feature or score, series.steps, series.values, level, name)
        )
    return [
        Chart(
            title=f"{evaluation} {_score_name(score)}",
            unit="accuracy" if _is_share(score) else "",
            lines=found,
            percent=_is_share(score),
            last_step=run.last_step,
        )
        for (evaluation, score), found in lines.items()
    ]


def score_rows(run: Run) -> list[ScoreRow]:
    rows = []
    for key in _evaluation_keys(run):
        evaluation, feature, score = _parse_evaluation(key)
        finite = run.get(key).finite
        if not finite:
            continue
        best = max(range(len(finite.values)), key=finite.values.__getitem__)
        rows.append(
            ScoreRow(
                evaluation=evaluation,
                score=f"{feature} {_score_name(score)}".strip(),
                first=finite.values[0],
                first_step=finite.steps[0],
                last=finite.values[-1],
                last_step=finite.steps[-1],
                best=finite.values[best],
                best_step=finite.steps[best],
                is_share=_is_share(score),
            )
        )
    return rows


def _evaluation_keys(run: Run) -> list[str]:
    return [key for key in run.series if key.startswith(EVALUATION)]


def _parse_evaluation(key: str) -> tuple[str, str, str]:
    """eval/knn/patch_mean_top1 -> ("k-NN", "patch mean", "top1")."""
    _, _, rest = key.partition("/")
    evaluation, _, score = rest.rpartition("/")
    evaluation = EVALUATION_NAMES.get(evaluation, evaluation.replace("_", " "))
    for feature, name in FEATURE_NAMES.items():
        if score.startswith(f"{feature}_"):
            return evaluation, name, score.removeprefix(f"{feature}_")
    return evaluation, "", score


def _score_name(score: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}.get(score, score.replace("_", " "))


def _is_share(score: str) -> bool:
    return score in ("top1", "top5", "accuracy")


def _grad_norms(run: Run) -> list[Chart]:
    """A dashed line where the clipping begins, if the norms come near it."""
    limit = run.setting("optim.clip_grad_norm")
    charts = []
    for key in sorted(run.series):
        if not key.startswith(GRAD_NORM):
            continue
        series = run.get(key)
        line = Line(key, series.steps, series.values, float(limit) if limit else None, "clip at")
        note = f"clipped at {scales.number(float(limit))}" if limit else ""
        charts.append(Chart(key.removeprefix(GRAD_NORM), [line], may_be_log=True, last_step=run.last_step, note=note))
    return charts


def _chart(run: Run, key: str, title: str, unit: str = "", percent: bool = False, from_zero: bool = False) -> Chart:
    series = run.get(key)
    line = Line(key, series.steps, series.values)
    return Chart(title, [line], unit, percent, from_zero, last_step=run.last_step)


def images_seen(run: Run) -> float:
    """Logged, or else steps times the global batch size."""
    seen = run.last("samples_seen")
    return seen if seen is not None else run.last_step * float(run.setting("train.global_batch_size", 0))
