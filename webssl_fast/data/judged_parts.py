"""The raw scores of a source's images, part by part: the work of one worker on some thousand samples.

A part is a Parquet file that is there whole or not at all. What it holds follows from the samples, the judge and its
settings alone: not from workers, restarts or the order in which parts end.

Dimensions: B images.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from webssl_fast.config.filter import FilterConfig
from webssl_fast.data.decode import BadImage, make_decoder
from webssl_fast.data.index import Index
from webssl_fast.data.prefetch import map_ahead
from webssl_fast.data.read import SampleReader
from webssl_fast.data.storage import Retries, is_remote
from webssl_fast.data.subset import Subset
from webssl_fast.errors import UserError
from webssl_fast.judges.base import JudgeKind, Unjudged

if TYPE_CHECKING:
    import pyarrow

CHUNKS_AHEAD = 2  # of a judge's batches, read, decoded and prepared by each thread ahead of time


@dataclass(frozen=True)
class JudgedSource:
    """The samples to judge: all of an index, or a subset of it."""

    index: Index
    subset: Subset | None

    @classmethod
    def open(cls, index_path: str, subset_path: str) -> JudgedSource:
        index = Index.open(index_path)
        return cls(index, Subset.of(subset_path, index) if subset_path else None)

    def __len__(self) -> int:
        return len(self.index if self.subset is None else self.subset)

    def ids(self, first: int, end: int) -> np.ndarray:
        """int64: the sample ids at these places of the ascending order."""
        places_B = np.arange(first, min(end, len(self)))
        return places_B if self.subset is None else self.subset.select(places_B)


@dataclass(frozen=True)
class Counts:
    """Samples of a part, or of many."""

    num_samples: int = 0
    num_bad: int = 0
    num_light: int = 0
    num_heavy: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.num_samples + other.num_samples,
            self.num_bad + other.num_bad,
            self.num_light + other.num_light,
            self.num_heavy + other.num_heavy,
        )


class PartOutcome(NamedTuple):
    """counts is None where too much could not be read to call it judged: `reason` says what, and nothing is written."""

    number: int
    counts: Counts | None
    reason: str = ""


class PartJudge:
    """Judges parts of a source, in one worker. `judge(number)` writes part `number` and says what is in it."""

    def __init__(self, kind: JudgeKind, config: FilterConfig, index_path: str, parts_dir: Path):
        self._kind, self._config, self._parts_dir = kind, config, parts_dir
        self._source = JudgedSource.open(index_path, config.data.subset)
        data = config.data
        retries = Retries(data.read_attempts, data.read_timeout_s)
        self._reader = SampleReader(retries=retries, remote_reads=data.remote_reads)
        self._decoder = make_decoder(data.decode)
        self._judge = kind.load(config.judge)

    def __call__(self, number: int) -> PartOutcome:
        size = self._config.samples_per_part
        ids_B = self._source.ids(number * size, (number + 1) * size)
        batch = self._judge.batch_size
        chunks = [ids_B[i : i + batch] for i in range(0, len(ids_B), batch)]
        num_threads = self._config.data.num_threads
        rows: list[dict] = []
        unreadable: list[str] = []
        loaded = map_ahead(self._load, chunks, max(1, num_threads), CHUNKS_AHEAD * num_threads)
        for chunk, (reasons, prepared) in zip(chunks, loaded, strict=True):
            unreadable += [bad.reason for bad in reasons if isinstance(bad, _Unreadable)]
            judged = iter(self._judge.judge(prepared) if None in reasons else [])
            for sample_id, bad in zip(chunk.tolist(), reasons, strict=True):
                scores = bad or next(judged)
                row = {"sample_id": sample_id, "name": _name(self._source.index, sample_id), "error": None}
                rows.append(row | ({"error": scores.reason} if isinstance(scores, BadImage | Unjudged) else scores))
        if len(unreadable) > self._config.data.max_bad_share * len(ids_B):
            return PartOutcome(number, None, f"{len(unreadable)} of {len(ids_B)} samples: {unreadable[0]}")
        import pyarrow

        table = pyarrow.Table.from_pylist(rows, schema=part_schema(self._kind, self._config))
        write_table(table, part_path(self._parts_dir, number))
        return PartOutcome(number, counts_of(table, self._kind, self._config))

    def _load(self, ids_B: np.ndarray) -> tuple[list[BadImage | None], Any]:
        """Why there is no image, for each sample; and what the judge made of those that are."""
        found = self._reader.read_many([self._source.index.locate(sample_id) for sample_id in ids_B.tolist()])
        images = iter(self._decoder.decode([data for data in found if isinstance(data, bytes)]))
        loaded = [
            _Unreadable(f"cannot be read: {data}") if isinstance(data, OSError) else next(images) for data in found
        ]
        good = [image.numpy() for image in loaded if not isinstance(image, BadImage)]
        reasons = [image if isinstance(image, BadImage) else None for image in loaded]
        return reasons, self._judge.prepare(good) if good else None


class _Unreadable(BadImage):
    """Its bytes did not come: another day they may."""


def _name(index: Index, sample_id: int) -> str:
    """The sample's name; of a remote shard where it lies, since its key would cost a request."""
    location = index.locate(sample_id)
    if is_remote(location.path):
        name = f"{os.path.basename(location.path)}, byte {location.offset}"
    else:
        name = index.name(sample_id)
    return name.encode(errors="backslashreplace").decode()  # names of files need not be Unicode


def part_path(parts_dir: Path, number: int) -> Path:
    return parts_dir / f"{number:08d}.parquet"


def part_schema(kind: JudgeKind, config: FilterConfig) -> pyarrow.Schema:
    """sample_id, name, the judge's raw scores, error."""
    import pyarrow

    columns = kind.columns(config.judge).items()
    scores = [(name, pyarrow.type_for_alias(arrow_type)) for name, arrow_type in columns]
    return pyarrow.schema(
        [("sample_id", pyarrow.int64()), ("name", pyarrow.string()), *scores, ("error", pyarrow.string())]
    )


def write_table(table: pyarrow.Table, path: Path) -> None:
    """Writes a Parquet file whole or not at all."""
    import pyarrow.parquet

    # Drawn: a worker that outlives a killed parent, or is given up by its cluster, does not meet the one after it.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    with open(unfinished, "wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def answers_of(table: pyarrow.Table, kind: JudgeKind, config: FilterConfig) -> tuple[np.ndarray, np.ndarray]:
    """bool [B] each: light and heavy, of a table with raw scores; False for bad images."""
    good_B = table["error"].is_null().to_numpy()
    light_B, heavy_B = kind.answers(_arrays(table, kind.columns(config.judge)), config.judge.thresholds)
    return light_B & good_B, heavy_B & good_B


def counts_of(table: pyarrow.Table, kind: JudgeKind, config: FilterConfig) -> Counts:
    light_B, heavy_B = answers_of(table, kind, config)
    num_bad = len(table) - table["error"].null_count
    return Counts(len(table), num_bad, int(light_B.sum()), int(heavy_B.sum()))


def _arrays(table: pyarrow.Table, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """NaN or 0 where there is no score."""
    missing = {
        name: np.nan if "float" in arrow_type else 0 for name, arrow_type in columns.items() if arrow_type != "string"
    }
    return {name: table[name].fill_null(value).to_numpy() for name, value in missing.items()}


def missing_parts(parts_dir: Path, num_parts: int) -> list[int]:
    there = set(os.listdir(parts_dir))
    return [number for number in range(num_parts) if part_path(parts_dir, number).name not in there]


def read_table(path: Path) -> pyarrow.Table:
    """Raises UserError where a file of scores is damaged."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}): remove it, and the same command judges it anew"
        ) from error


def tables_of(parts_dir: Path, numbers: list[int]) -> Iterator[pyarrow.Table]:
    return (read_table(part_path(parts_dir, number)) for number in numbers)
