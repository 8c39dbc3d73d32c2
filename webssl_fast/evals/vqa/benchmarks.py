"""The 16 benchmarks by name, and where the data of one lie on this machine."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.general import GQA, MMBENCH, MME, SEED
from webssl_fast.evals.vqa.knowledge import AI2D, MATHVISTA, MMMU, SCIENCEQA
from webssl_fast.evals.vqa.ocr_and_chart import CHARTQA, DOCVQA, DOCVQA_TEST, OCRBENCH, TEXTVQA
from webssl_fast.evals.vqa.question import Benchmark, HubFiles
from webssl_fast.evals.vqa.snapshot import find_files
from webssl_fast.evals.vqa.vision_centric import CV_BENCH_2D, CV_BENCH_3D, MMVP, REALWORLDQA

logger = logging.getLogger(__name__)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(MME, MMBENCH, SEED, GQA),
        *(SCIENCEQA, MMMU, MATHVISTA, AI2D),
        *(CHARTQA, OCRBENCH, TEXTVQA, DOCVQA),
        *(MMVP, REALWORLDQA, CV_BENCH_2D, CV_BENCH_3D),
    )
}


def benchmark_of(name: str, docvqa_split: str = "validation") -> Benchmark:
    """docvqa_split: "validation", which is judged here, or "test", which the benchmark's server judges."""
    return DOCVQA_TEST if name == "docvqa" and docvqa_split == "test" else BENCHMARKS[name]


def download_command(benchmark: Benchmark, folder: Path) -> str:
    """The shell command that puts a benchmark's data where they are looked for."""
    data = benchmark.published[0]
    included = "".join(f" --include {shlex.quote(pattern)}" for pattern in data.patterns)
    return f"hf download {data.hub_id} --repo-type dataset --local-dir {shlex.quote(str(folder))}{included}"


def find_data(benchmark: Benchmark, folder: Path | None, *, download: bool = False) -> Path:
    """The folder with a benchmark's data: `folder` where they lie there, else a snapshot in the hub's cache.

    folder    where they are expected; None: in the cache alone
    download  fetches them into the cache where they are in neither

    Raises UserError, which gives the command that fetches them.
    """
    looked: list[str] = []
    if folder is not None:
        try:
            find_files(folder, benchmark.published)
            return folder
        except UserError as error:
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"{benchmark.name}: {error}. To fetch it: {_command(benchmark, folder)}") from error
            looked.append(str(error))
    for online in (False, True) if download else (False,):
        for data in benchmark.published[:1] if online else benchmark.published:
            snapshot = _snapshot(data, online=online)
            if snapshot is not None:
                logger.info("%s: data of %s, from %s", benchmark.name, data.hub_id, snapshot)
                return snapshot
    looked.append("and none of its data sets is in the hub's cache" if looked else "no data set in the hub's cache")
    raise UserError(f"{benchmark.name}: {', '.join(looked)}. To fetch it: {_command(benchmark, folder)}")


def _command(benchmark: Benchmark, folder: Path | None) -> str:
    return download_command(benchmark, folder or Path("vqa_data") / benchmark.folder)


def _snapshot(data: HubFiles, *, online: bool) -> Path | None:
    """The folder of a data set in the hub's cache; None where it, or huggingface_hub, is not there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        if online:
            raise UserError("to download data, install huggingface_hub: pip install 'webssl_fast[vqa]'") from error
        return None
    try:
        folder = Path(
            snapshot_download(
                data.hub_id, repo_type="dataset", local_files_only=not online, allow_patterns=list(data.patterns)
            )
        )
        find_files(folder, [data])
    except (LocalEntryNotFoundError, UserError) as error:
        if online:
            raise UserError(f"{data.hub_id} cannot be downloaded: {error}") from error
        return None
    return folder
