"""Balanced subsets by captions: the curation of MetaCLIP (arXiv 2309.16671, 3.3 and Algorithm 1).

The first pass matches captions with a list of entries, one part a shard, by whoever does the work (executors.py), and
counts the captions of each entry. The second keeps an entry's caption with the probability p = min(1, cap / count), and
a caption where any of its entries keeps it. It needs the parts alone.

Whether any of the independent draws of a caption's entries keeps it is one draw of the probability 1 - prod(1 - p).
That draw follows from the seed and the sample's id: not from workers, restarts or the order in which parts end.

Dimensions: B samples of a part, M samples among them with matches, E entries.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.caption_matching import EntryMatcher, read_metadata, unmatchable
from webssl_fast.data.caption_scan import caption_ranges, scan_captions
from webssl_fast.data.column_file import Column, map_columns, write_columns
from webssl_fast.data.executors import ONE_PROCESS, run_tasks
from webssl_fast.data.index import Index
from webssl_fast.data.order import mixed, uniform
from webssl_fast.data.owned_folder import noted, owned
from webssl_fast.data.subset import of_ids, write_subset
from webssl_fast.errors import UserError

if TYPE_CHECKING:
    from pyroaring import BitMap64

logger = logging.getLogger(__name__)

_KIND = "part of a curation"
_DRAW_STREAM = 1  # of `order.mixed`: another than that of `data subset --share`, which may follow with the same seed


class _Task(NamedTuple):
    number: int
    first: int
    end: int
    path: Path


@dataclass(frozen=True)
class CurationReport:
    """Captions and entries, before and after. Head entries are those with more than `cap` captions before."""

    cap: int
    num_samples: int
    num_without_caption: int
    num_matched: int
    num_kept: int
    counts_before_E: np.ndarray  # int64: captions of each entry
    counts_after_E: np.ndarray

    def describe(self) -> str:
        before_E, after_E = self.counts_before_E, self.counts_after_E
        head_E = before_E > self.cap
        num_captions = self.num_samples - self.num_without_caption

        def share(part: int | float, whole: int | float) -> str:
            return f"{part / whole:.2%}" if whole else "-"

        return "\n".join(
            [
                f"{self.num_samples:,} samples, of which {self.num_without_caption:,} have no caption",
                f"{num_captions:,} captions, of which {self.num_matched:,} match an entry "
                f"({share(self.num_matched, num_captions)})",
                f"{self.num_kept:,} kept ({share(self.num_kept, num_captions)} of the captions)",
                f"{len(before_E):,} entries: {(before_E == 0).sum():,} without a caption, {head_E.sum():,} with more "
                f"than {self.cap:,} (the head)",
                f"{'matches':<8} {'before':>15} {'of all':>8} {'after':>15} {'of all':>8}",
                *(
                    f"{name:<8} {before_E[of_E].sum():>15,} {share(before_E[of_E].sum(), before_E.sum()):>8} "
                    f"{after_E[of_E].sum():>15,} {share(after_E[of_E].sum(), after_E.sum()):>8}"
                    for name, of_E in (("head", head_E), ("tail", ~head_E))
                ),
            ]
        )


def curate(
    index: Index,
    metadata_path: Path,
    output: Path,
    *,
    cap: int,
    seed: int = 0,
    executor: ExecutorConfig = ONE_PROCESS,
) -> CurationReport:
    """Writes a balanced subset of a saved index, and OUTPUT.entries.tsv: each entry's captions before and after.

    The same call again goes on where a killed one was. Samples without a caption, or whose caption matches no entry,
    are not in the subset. Raises UserError: no captions, bad metadata, shards unreadable, nothing kept; OSError.
    """
    if cap < 1:
        raise UserError(f"the cap is a number of captions of an entry, at least 1, got {cap}")
    entries = read_metadata(metadata_path)
    if lost := unmatchable(entries):
        logger.warning(
            "%d entries hold marks that stand alone in captions, and match nothing, such as %r", len(lost), lost[0]
        )
    ranges = caption_ranges(index)
    parts_dir = output.absolute().with_name(output.name + ".parts")
    fingerprint = hashlib.sha256("\n".join([index.identity, *entries]).encode()).hexdigest()
    with owned(parts_dir, "-o"):
        if noted(parts_dir / "listing", fingerprint) != fingerprint:
            raise UserError(
                f"{str(parts_dir)!r} holds unfinished work on another index or other metadata: remove that folder to "
                "begin anew, or give another -o"
            )
        tasks = [_Task(i, *ids, parts_dir / f"{i:08d}.part") for i, ids in enumerate(ranges)]
        _match(index, metadata_path, tasks, executor)
        kept, report = _draw([task.path for task in tasks], len(entries), cap, seed)
        if not len(kept):
            raise UserError(f"no caption of {index.source!r} matches any of the {len(entries):,} entries")
        write_subset(output, kept, index)
        _write_counts(output.with_name(output.name + ".entries.tsv"), entries, report)
        shutil.rmtree(parts_dir)
    return report


def _match(index: Index, metadata_path: Path, tasks: Sequence[_Task], executor: ExecutorConfig) -> None:
    missing = [task for task in tasks if not task.path.exists()]
    num_missing = sum(task.end - task.first for task in missing)
    if len(missing) < len(tasks):
        logger.info("%d of %d shards are matched already", len(tasks) - len(missing), len(tasks))
    make_work = partial(_make_matcher, os.path.abspath(index.source), os.path.abspath(metadata_path))
    failed: dict[int, str] = {}
    progress = tqdm(total=len(index), initial=len(index) - num_missing, desc="matching", unit="caption", disable=None)
    with progress:
        for number, reason in run_tasks(make_work, missing, executor, tasks[0].path.parent):
            progress.update(tasks[number].end - tasks[number].first)
            if reason:
                failed[number] = reason
    if failed:
        examples = "".join(f"\n  {reason}" for _, reason in sorted(failed.items())[:5])
        raise UserError(
            f"the captions of {len(failed)} of {len(tasks)} shards cannot be read:{examples}\nThe others are matched "
            "and kept: the same command tries these again"
        )


def _make_matcher(index_path: str, metadata_path: str) -> Callable[[_Task], tuple[int, str]]:
    return partial(_match_shard, Index.open(index_path), EntryMatcher(read_metadata(metadata_path)))


def _match_shard(index: Index, matcher: EntryMatcher, task: _Task) -> tuple[int, str]:
    try:
        captions = scan_captions(index, task.first, task.end)
    except OSError as error:
        return task.number, str(error)
    matches = [matcher(caption) for caption in captions]
    header = {"kind": _KIND, "first": task.first, "num_without_caption": captions.count("")}
    columns = {
        "num_matches": np.array([len(of_caption) for of_caption in matches], np.uint32),
        "entries": np.array([entry for of_caption in matches for entry in of_caption], np.uint32),
    }
    write_columns(task.path, header, {name: Column.of(values) for name, values in columns.items()})
    return task.number, ""


def _draw(parts: Sequence[Path], num_entries: int, cap: int, seed: int) -> tuple[BitMap64, CurationReport]:
    before_E = np.zeros(num_entries, np.int64)
    for path in parts:
        before_E += np.bincount(map_columns(path, _KIND)[1]["entries"], minlength=num_entries)
    probability_E = cap / np.maximum(before_E, cap)
    after_E = np.zeros(num_entries, np.int64)
    kept = of_ids(np.zeros(0, np.int64))
    num_samples = num_without_caption = num_matched = 0
    for path in parts:
        header, columns = map_columns(path, _KIND)
        num_matches_B, entries = columns["num_matches"].astype(np.int64), columns["entries"]
        num_samples += len(num_matches_B)
        num_without_caption += header["num_without_caption"]
        matched_M = np.flatnonzero(num_matches_B)
        if not len(matched_M):
            continue
        num_matched += len(matched_M)
        num_M = num_matches_B[matched_M]
        probability_M = 1 - np.multiply.reduceat(1 - probability_E[entries], np.cumsum(num_M) - num_M)
        ids_M = header["first"] + matched_M
        kept_M = uniform(mixed(seed, _DRAW_STREAM), ids_M.astype(np.uint64)) < probability_M
        kept |= of_ids(ids_M[kept_M])
        after_E += np.bincount(entries[np.repeat(kept_M, num_M)], minlength=num_entries)
    return kept, CurationReport(cap, num_samples, num_without_caption, num_matched, len(kept), before_E, after_E)


def _write_counts(path: Path, entries: Sequence[str], report: CurationReport) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write("entry\tbefore\tafter\n")
        for entry, before, after in zip(entries, report.counts_before_E, report.counts_after_E, strict=True):
            file.write(f"{entry}\t{before}\t{after}\n")
    os.replace(unfinished, path)
