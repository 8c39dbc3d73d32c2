"""The settings of the 16 VQA benchmarks; part of schema.py, in a file of its own for its length."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from webssl_fast.config.fields import Config, PositiveInt

BenchmarkName = Literal[
    "mme", "mmbench", "seed", "gqa",
    "scienceqa", "mmmu", "mathvista", "ai2d",
    "chartqa", "ocrbench", "textvqa", "docvqa",
    "mmvp", "realworldqa", "cv_bench_2d", "cv_bench_3d",
]  # fmt: skip


class VqaBenchmarksConfig(Config):
    """The 16 benchmarks of Web-SSL under the Cambrian protocol (docs/vqa_benchmarks.md)."""

    root: str = ""  # a folder with one folder a data set: root/mme, ..., root/cv_bench; what is not there: hub's cache
    paths: dict[BenchmarkName, str] = {}  # folders of single benchmarks that lie elsewhere
    download: bool = False  # into the hub's cache, what is neither there nor in a folder
    names: tuple[BenchmarkName, ...] = ()  # which to run; empty: all 16, which the average needs
    limit: PositiveInt | None = None  # the first so many questions of each, for a quick look; the result says so
    allow_subset: bool = False  # data with fewer questions than the whole benchmark; the result says so
    # MME's points that enter the average, divided by 20. Web-SSL labels its column MME-P (perception, at most 2000),
    # but its 1694 to 1896 points look like totals (at most 2800): a stronger model, Cambrian-1-8B, has 1380 points of
    # perception and 1700 in total with the same script.
    mme_in_average: Literal["total", "perception"] = "total"
    docvqa_split: Literal["validation", "test"] = "validation"  # test, as in the paper: judged by its server alone ...
    # ... whose score, in percent, goes here when it is known.
    docvqa_test_score: Annotated[float, Field(ge=0, le=100)] | None = None

    @model_validator(mode="after")
    def _fits(self):
        if self.docvqa_test_score is not None and self.docvqa_split != "test":
            raise ValueError("docvqa_test_score is the test split's: set docvqa_split=test with it")
        return self
