"""`webssl filter`: which images of a source contain text, as scores and as subsets to train on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from webssl_fast.config.filter import FilterConfig
from webssl_fast.config.load import load_config_of
from webssl_fast.data.bad_samples import BadShareLimit
from webssl_fast.data.column_file import is_column_file
from webssl_fast.data.executors import run_tasks
from webssl_fast.data.indexing import build_index
from webssl_fast.data.judged_parts import (
    Counts,
    JudgedSource,
    PartJudge,
    counts_of,
    missing_parts,
    part_path,
    read_table,
)
from webssl_fast.data.owned_folder import noted, owned
from webssl_fast.data.scores import HEAVY, LIGHT, SCORES, raw_scores, write_answers
from webssl_fast.data.storage import Retries
from webssl_fast.errors import ConfigError, Interrupted, UserError
from webssl_fast.judges import KINDS
from webssl_fast.judges.base import JudgeKind

logger = logging.getLogger(__name__)

HOW_IT_RUNS = ("num_threads", "device", "batch_size")  # settings of a judge that change a score by rounding at most
INDEX, PARTS, SETTINGS, SUMMARY = "source.index", "parts", "judged_by.json", "summary.json"


def filter_by_config(config_path: Path, overrides: Sequence[str]) -> None:
    """Judges by a config and prints what was found. Raises UserError, Interrupted after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = load_config_of(FilterConfig, config_path, overrides)
    try:
        summary = filter_images(config, KINDS[config.judge.name])
    except KeyboardInterrupt:
        raise Interrupted("what is judged so far is kept; start the same command again to go on") from None
    print(_described(summary, config))


def filter_images(config: FilterConfig, kind: JudgeKind) -> dict[str, Any]:
    """Judges every image of a source and writes scores.parquet, light.subset, heavy.subset and summary.json, which it
    returns, into output_dir. What they hold follows from the source and the settings alone, byte for byte; the same
    call again does what is missing, and with other thresholds it judges nothing anew.

    Raises UserError: a package or the source is missing, too many bad images, other settings than those of the scores
    that are there.
    """
    _check_packages(config)
    versions = kind.check(config.judge)
    folder = Path(os.path.abspath(os.path.expanduser(config.output_dir)))
    with owned(folder, "output_dir"):
        source = JudgedSource.open(str(_indexed(config, folder)), config.data.subset)
        if not len(source):
            raise UserError(f"data.subset={config.data.subset!r} is empty: there is nothing to judge")
        _check_settings(config, kind, versions, source, folder)
        if (folder / SCORES).exists():
            logger.info("the scores are there: nothing is judged anew, the thresholds are applied")
            raw = raw_scores(folder / SCORES, kind, config)
        else:
            numbers = _judge(config, kind, source, folder / PARTS)
            raw = (read_table(part_path(folder / PARTS, number)) for number in numbers)
        counts = write_answers(raw, kind, config, source.index, folder)
        summary = _summary(config, kind, versions, source, counts)
        _write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        for left_over in folder.glob("*.unfinished"):  # by processes that were killed
            left_over.unlink()
    for name, number in ((LIGHT, counts.num_light), (HEAVY, counts.num_heavy)):
        if not number:
            logger.warning("%s is empty: no image of the source is in it, and training on it cannot start", name)
    return summary


def _check_packages(config: FilterConfig) -> None:
    for package in ("pyarrow", "pyroaring"):
        if find_spec(package) is None:
            raise UserError(f"webssl filter needs the package {package}: pip install 'webssl_fast[filter]'")
    if not config.data.source:
        raise ConfigError(
            "data.source is empty: name a folder of images, shards, Parquet files or an index, e.g. data.source=photos"
        )


def _indexed(config: FilterConfig, folder: Path) -> Path:
    """The index of the source: itself, or one that is made here."""
    path = Path(os.path.abspath(os.path.expanduser(config.data.source)))
    if is_column_file(path):
        return path
    if config.data.subset:
        raise ConfigError(
            f"data.subset is a subset of an index, and data.source={config.data.source!r} is none: set it to that index"
        )
    retries = Retries(config.data.read_attempts, config.data.read_timeout_s)
    report = build_index(
        config.data.source,
        folder / INDEX,
        executor=config.executor,
        retries=retries,
        output_setting="output_dir",
    )
    logger.info("%s", report.describe())
    return folder / INDEX


def _check_settings(
    config: FilterConfig, kind: JudgeKind, versions: dict[str, str], source: JudgedSource, folder: Path
) -> None:
    """Refuses to mix scores of different settings, and names those that differ."""
    if not (folder / SCORES).exists() and not any((folder / PARTS).glob("*.parquet")):
        (folder / SETTINGS).unlink(missing_ok=True)  # of a try that came to nothing, by a mistyped model perhaps
    settings = json.dumps(_what_decides_the_scores(config, kind, versions, source), indent=2) + "\n"
    before, now = _flat(json.loads(noted(folder / SETTINGS, settings))), _flat(json.loads(settings))
    changes = [
        f"{key}: {before.get(key)} -> {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)
    ]
    if changes:
        raise UserError(
            f"{str(folder)!r} holds scores by other settings:\n  " + "\n  ".join(changes) + "\nSet them back, give "
            "another output_dir, or remove that folder to judge anew. (Thresholds may change without that.)"
        )


def _what_decides_the_scores(
    config: FilterConfig, kind: JudgeKind, versions: dict[str, str], source: JudgedSource
) -> dict[str, Any]:
    judge = config.judge.model_dump(mode="json", exclude={"thresholds", *HOW_IT_RUNS})
    subset = config.data.subset
    return {
        "judge": {**judge, **versions},
        "data": {
            "samples": len(source),
            "index": source.index.identity,
            "subset": hashlib.sha256(Path(subset).read_bytes()).hexdigest() if subset else "",
            "decode": config.data.decode.model_dump(mode="json"),
        },
        "samples_per_part": config.samples_per_part,
        "columns": dict(kind.columns(config.judge)),
    }


def _judge(config: FilterConfig, kind: JudgeKind, source: JudgedSource, parts_dir: Path) -> range:
    """Judges the parts that are missing; the numbers of all. Raises UserError where too much is bad or unreadable."""
    parts_dir.mkdir(exist_ok=True)
    num_parts = -(-len(source) // config.samples_per_part)
    missing = missing_parts(parts_dir, num_parts)
    limit = BadShareLimit(
        config.data.max_bad_share, config.data.min_seen_before_stop, f"{parts_dir}/*.parquet (column error)"
    )
    done = Counts()
    for number in sorted(set(range(num_parts)) - set(missing)):
        done += counts_of(read_table(part_path(parts_dir, number)), kind, config)
    if done.num_samples:
        logger.info("%d of %d parts are judged already", num_parts - len(missing), num_parts)
        limit.count(done.num_samples, done.num_bad)
    make_work = partial(PartJudge, kind, config, source.index.source, parts_dir)
    failed: dict[int, str] = {}
    progress = tqdm(total=len(source), initial=done.num_samples, desc="judging", unit="image", disable=None)
    with progress:
        for outcome in run_tasks(make_work, missing, config.executor, parts_dir):
            if outcome.counts is None:
                failed[outcome.number] = outcome.reason
                continue
            done += outcome.counts
            progress.update(outcome.counts.num_samples)
            progress.set_postfix_str(", ".join(f"{name} {share:.1%}" for name, share in _shares(done).items()))
            limit.count(outcome.counts.num_samples, outcome.counts.num_bad)
    if failed:
        examples = "".join(f"\n  part {number}: {reason}" for number, reason in sorted(failed.items())[:5])
        raise UserError(
            f"of {len(failed)} of {num_parts} parts more than data.max_bad_share={config.data.max_bad_share} of the "
            f"samples could not be read:{examples}\nThe others are judged and kept: the same command tries these "
            "again; with a larger data.max_bad_share it leaves out what cannot be read"
        )
    return range(num_parts)


def _shares(counts: Counts) -> dict[str, float]:
    """Of the images that could be judged."""
    num_judged = max(1, counts.num_samples - counts.num_bad)
    return {"light": counts.num_light / num_judged, "heavy": counts.num_heavy / num_judged}


def _summary(
    config: FilterConfig, kind: JudgeKind, versions: dict[str, str], source: JudgedSource, counts: Counts
) -> dict[str, Any]:
    return {
        **asdict(counts),
        **{f"{name}_share": share for name, share in _shares(counts).items()},
        "heavy_means": kind.heavy,
        "source": config.data.source,
        "subset": config.data.subset,
        "index": source.index.identity,
        "judge": {**config.judge.model_dump(mode="json", exclude=set(HOW_IT_RUNS)), **versions},
        "decode": config.data.decode.model_dump(mode="json"),
    }


def _described(summary: dict[str, Any], config: FilterConfig) -> str:
    num_judged = summary["num_samples"] - summary["num_bad"]
    return "\n".join(
        [
            f"{config.data.source}: {num_judged:,} images judged by {config.judge.name}, {summary['num_bad']:,} bad",
            f"  light: {summary['num_light']:,} ({summary['light_share']:.1%}) contain readable text",
            f"  heavy: {summary['num_heavy']:,} ({summary['heavy_share']:.1%}); {summary['heavy_means']}",
            f"wrote {', '.join((SCORES, LIGHT, HEAVY, SUMMARY))} in {config.output_dir}",
        ]
    )


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
