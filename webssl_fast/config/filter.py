"""Every setting of `webssl filter` and its default: which images contain text (Web-SSL, arXiv 2504.01017, App. A)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from webssl_fast.config.executor import ExecutorConfig
from webssl_fast.config.fields import Config, NonNegativeInt, PositiveInt, Probability
from webssl_fast.config.schema import ReadConfig

# A line whose confidence reaches this ends the reading of an image, so a threshold above it would not be met.
SURE_CONFIDENCE = 0.95


class FilterDataConfig(ReadConfig):
    """The images to judge. A source that is no index yet is indexed into output_dir/source.index first."""

    source: str = ""  # as data.source of a training run
    subset: str = ""  # judge these samples of source, which must be an index
    num_threads: NonNegativeInt = 1  # that read and decode ahead in each worker; 0: it reads when the judge is done

    @model_validator(mode="after")
    def _decodes_on_host(self):
        if self.decode.device == "gpu":
            raise ValueError("decode.device=gpu is for training; judges take images on the CPU, so set it to cpu")
        return self


class OcrThresholds(Config):
    """light: a line of at least two characters was read with this confidence. heavy, a PROXY of charts, tables and
    documents: light, and so many lines or so much of the image's area is text."""

    confidence: Annotated[float, Field(ge=0, le=SURE_CONFIDENCE)] = 0.5
    heavy_num_lines: PositiveInt = 5
    heavy_area_share: Probability = 0.2


class OcrConfig(Config):
    """PP-OCRv4 by rapidocr-onnxruntime, whose package carries the weights. Runs on the CPU."""

    name: Literal["ocr"] = "ocr"
    max_side_px: PositiveInt = 960  # for the detector larger images are reduced to it ...
    min_side_px: PositiveInt = 640  # ... and then smaller ones enlarged until their shorter side has this
    max_lines_read: PositiveInt = 8  # the largest ones, until one is read for sure
    num_threads: PositiveInt = 1  # of onnxruntime, in each worker
    thresholds: OcrThresholds = OcrThresholds()


class VlmThresholds(Config):
    """Probability of yes against no from which on the answer is yes."""

    light: Probability = 0.5
    heavy: Probability = 0.5


class VlmConfig(Config):
    """Any image-text-to-text model of transformers. The questions are the paper's, word for word."""

    name: Literal["vlm"] = "vlm"
    model: str = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"  # a folder or hub id; the paper names SmolVLM2 without a size
    revision: str = "main"  # of a hub id: a branch, tag or commit
    light_question: str = "Does this image contain any readable text? Answer only yes or no."
    heavy_question: str = (
        "Please think carefully before answering. Does this image contain charts, tables, or documents with readable "
        "text? Answer only yes or no."
    )
    # first_token: probability of yes against no as the answer's first token; generated: the answer is written out, and
    # yes where it starts with yes.
    answer: Literal["first_token", "generated"] = "first_token"
    max_new_tokens: PositiveInt = 8  # of a generated answer
    batch_size: PositiveInt = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    num_threads: NonNegativeInt = 0  # of torch on the CPU, in each worker; 0: torch's own choice
    thresholds: VlmThresholds = VlmThresholds()


JudgeConfig = OcrConfig | VlmConfig


class FilterConfig(Config):
    output_dir: str = "runs/filter"
    data: FilterDataConfig = FilterDataConfig()
    judge: Annotated[JudgeConfig, Field(discriminator="name")] = OcrConfig()
    samples_per_part: PositiveInt = 512  # judged as one task, into a file: what a kill loses, and progress counts by
    executor: ExecutorConfig = ExecutorConfig()  # who judges

    @model_validator(mode="before")
    @classmethod
    def _default_judge(cls, tree: Any) -> Any:
        """`judge:` without a name is the OCR."""
        judge = tree.get("judge") if isinstance(tree, dict) else None
        return {**tree, "judge": {"name": "ocr", **judge}} if isinstance(judge, dict) else tree
