"""`webssl data`: index images, look into an index, make subsets of it, by captions too."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.data.column_file import is_column_file
from webssl_fast.data.contact_sheet import write_contact_sheet
from webssl_fast.data.curation import curate as curate_index
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.subset import Subset, index_of, is_subset, of_ids, sampled, whole, write_subset
from webssl_fast.errors import Interrupted, UserError

_CHUNK = 2**24  # sizes that are counted at once, to bound the memory


def index(source: str, output: Path, executor: ExecutorConfig, find_duplicates: bool, skip_unreadable: bool) -> None:
    """Writes a saved index and prints what it holds. Raises UserError (see build_index), Interrupted after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        report = build_index(
            source,
            output,
            executor=executor,
            find_duplicates=find_duplicates,
            skip_unreadable=skip_unreadable,
        )
    except KeyboardInterrupt:
        raise Interrupted("what is indexed so far is kept; start the same command again to go on") from None
    print(report.describe())


def inspect(source: str, output: Path | None, num_pictures: int) -> None:
    """Prints counts, sizes and problems of an index, and writes a contact sheet. Raises UserError."""
    found = Index.open(source)
    print(f"{found.source}: {len(found):,} samples in {len(found.files):,} files ({found.kind})")
    if found.class_names:
        print(f"classes: {len(found.class_names):,}")
    if found.sizes is not None:
        print("bytes of an image:")
        for low, number in size_histogram(found.sizes):
            share = number / len(found)
            print(f"  from {_bytes(low):>8}  {number:>15,}  {share:6.1%}  {'#' * round(40 * share)}")
    kinds = Counter(problem.kind for problem in found.problems)
    print("problems: " + (", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "none"))
    for problem in found.problems:
        print(f"  {problem.message}")
    if num_pictures:
        path = output or Path(f"{source}.png" if is_column_file(source) else "contact_sheet.png")
        bad = write_contact_sheet(found, path, num_pictures)
        print(f"wrote {path}" + (f"; {len(bad)} of {num_pictures} samples cannot be shown:" if bad else ""))
        for name, reason in bad:
            print(f"  {name}: {reason}")


def size_histogram(sizes: np.ndarray) -> list[tuple[int, int]]:
    """(lower end in bytes, number of images) by powers of two, without the empty ones at both ends."""
    counts = np.zeros(34, np.int64)
    for first in range(0, len(sizes), _CHUNK):
        exponents = np.frexp(sizes[first : first + _CHUNK].astype(np.float64))[1]  # 2^(e-1) <= size < 2^e; 0 for 0
        counts += np.bincount(exponents, minlength=len(counts))
    filled = np.flatnonzero(counts)
    return [(2 ** (int(e) - 1) if e else 0, int(counts[e])) for e in range(filled[0], filled[-1] + 1)]


def _bytes(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} GiB"


def subset(start: str, output: Path, index_path: str | None, operations: Sequence[tuple[str, str]], seed: int) -> None:
    """Applies ("and" | "or" | "not" | "ids" | "share", value) to a subset, or to the whole of an index, in this order.

    Raises UserError: a file is none, subsets of different indexes, a bad number.
    """
    starts_from_subset = is_subset(start)
    found = Index.open(index_path or (index_of(start) if starts_from_subset else start))
    kept = Subset.of(start, found).bitmap() if starts_from_subset else whole(found)
    for operation, value in operations:
        if operation == "share":
            kept = sampled(kept, _number(value), seed)
        elif operation == "ids":
            kept &= of_ids(_ids_of(value))
        else:
            other = Subset.of(value, found).bitmap()
            kept = kept & other if operation == "and" else kept | other if operation == "or" else kept - other
    if not len(kept):
        raise UserError("nothing is left: no sample of the index meets all of this, so there is no subset to write")
    write_subset(output, kept, found)
    print(f"{output}: {len(kept):,} of {len(found):,} samples of {found.source} ({len(kept) / len(found):.2%})")


def curate(index_path: str, metadata_path: Path, output: Path, executor: ExecutorConfig, cap: int, seed: int) -> None:
    """Writes a balanced subset by captions and prints counts. Raises UserError (see curation.curate), Interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if not is_column_file(index_path):
        raise UserError(f"{index_path!r} is no index: write one with `webssl data index SOURCE -o INDEX`")
    if not metadata_path.is_file():
        raise UserError(f"no metadata file {str(metadata_path)!r}: a text file with one entry a line, or a .json list")
    try:
        report = curate_index(Index.open(index_path), metadata_path, output, cap=cap, seed=seed, executor=executor)
    except KeyboardInterrupt:
        raise Interrupted("what is matched so far is kept; start the same command again to go on") from None
    print(f"{output}: a subset of {index_path}, and {output}.entries.tsv\n{report.describe()}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--share takes a number between 0 and 1, got {text!r}") from None


def _ids_of(path: str) -> np.ndarray:
    try:
        return np.array(Path(path).read_text().split(), np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"--ids {path!r} must be a text file of sample ids, one a line: {error}") from error
