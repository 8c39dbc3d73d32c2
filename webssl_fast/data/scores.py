"""From raw scores to what `webssl filter` leaves: scores.parquet, light.subset, heavy.subset.

The answers are made here, from the raw scores and the thresholds: other thresholds need no other judging. One row group
at a time is in memory, and the subsets' bitmaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from webssl_fast.config.filter import FilterConfig
from webssl_fast.data.index import Index
from webssl_fast.data.judged_parts import Counts, answers_of, counts_of, part_schema
from webssl_fast.data.subset import of_ids, write_subset
from webssl_fast.errors import UserError
from webssl_fast.judges.base import JudgeKind

if TYPE_CHECKING:
    import pyarrow

SCORES = "scores.parquet"
LIGHT, HEAVY = "light.subset", "heavy.subset"
ROWS_AT_ONCE = 2**17  # of a row group


def write_answers(
    raw: Iterable[pyarrow.Table], kind: JudgeKind, config: FilterConfig, index: Index, folder: Path
) -> Counts:
    """Writes the three files, each whole or not at all. raw: tables with the columns of a part, in the order of ids."""
    import pyarrow
    import pyarrow.parquet

    answers = [pyarrow.field(name, pyarrow.bool_()) for name in ("light", "heavy")]
    schema = part_schema(kind, config)
    schema = pyarrow.schema([*list(schema)[:-1], *answers, schema.field("error")])
    light, heavy, counts = of_ids(np.zeros(0, np.int64)), of_ids(np.zeros(0, np.int64)), Counts()
    unfinished = folder / f"{SCORES}.unfinished"
    with open(unfinished, "wb") as file:
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in _regrouped(raw, ROWS_AT_ONCE):
                light_B, heavy_B = answers_of(table, kind, config)
                ids_B = table["sample_id"].to_numpy()
                light |= of_ids(ids_B[light_B])
                heavy |= of_ids(ids_B[heavy_B])
                counts += counts_of(table, kind, config)
                bad_B = table["error"].is_valid().to_numpy()
                for field, answers_B in zip(answers, (light_B, heavy_B), strict=True):
                    table = table.append_column(field, pyarrow.array(answers_B, mask=bad_B))
                writer.write_table(table.select(schema.names), row_group_size=ROWS_AT_ONCE)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / SCORES)
    write_subset(folder / LIGHT, light, index)
    write_subset(folder / HEAVY, heavy, index)
    return counts


def raw_scores(path: Path, kind: JudgeKind, config: FilterConfig) -> Iterator[pyarrow.Table]:
    """The columns of parts, of a scores.parquet. Raises UserError where it is damaged."""
    import pyarrow
    import pyarrow.parquet

    columns = part_schema(kind, config).names
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): remove it to judge anew") from error


def _regrouped(tables: Iterable[pyarrow.Table], num_rows: int) -> Iterator[pyarrow.Table]:
    """The same rows in tables of `num_rows`, the last one perhaps smaller."""
    import pyarrow

    waiting: list[pyarrow.Table] = []
    num_waiting = 0
    for table in tables:
        while num_waiting + len(table) >= num_rows:
            taken = num_rows - num_waiting
            yield pyarrow.concat_tables([*waiting, table.slice(0, taken)]).combine_chunks()
            table, waiting, num_waiting = table.slice(taken), [], 0
        if len(table):
            waiting.append(table)
            num_waiting += len(table)
    if waiting:
        yield pyarrow.concat_tables(waiting).combine_chunks()
