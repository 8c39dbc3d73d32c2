"""The settings under `eval:`, a section for each evaluation; part of schema.py, in a file of its own for its length."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from webssl_fast.config.fields import (
    Box,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)


class KnnConfig(Config):
    """Weighted k-NN on frozen features (Wu et al. 2018, as DINO uses it)."""

    train_source: str = ""  # folders with one subfolder a class, or tars with .cls; empty: no k-NN
    test_source: str = ""
    k: PositiveInt = 20
    temperature: PositiveFloat = 0.07
    features: tuple[Literal["cls", "patch_mean"], ...] = ("cls", "patch_mean")
    batch_size: PositiveInt = 64


class LinearProbeConfig(Config):
    """Linear heads on frozen features, all trained at once (DINOv2's protocol; Web-SSL's ImageNet-1k column)."""

    train_source: str = ""  # labelled images
    val_source: str = ""  # others, by which the best head is chosen and, without test_source, reported: as the paper
    test_source: str = ""  # further ones, for the chosen head alone
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1,
    )  # fmt: skip  # of 256 images; scaled by batch_size / 256
    num_blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 4)  # class tokens of so many last blocks
    patch_mean: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)  # whether the last one's joins them
    num_steps: PositiveInt = 12_500
    batch_size: PositiveInt = 1024  # images of a step, over all ranks
    encode_batch_size: PositiveInt = 128  # at most so many at once go through the encoder of one rank
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)  # of the training images' area
    save_every: PositiveInt = 500  # steps

    @model_validator(mode="after")
    def _differ(self):
        for name in ("learning_rates", "num_blocks", "patch_mean"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must not repeat a value, got {getattr(self, name)}")
        return self


class LogisticRegressionConfig(Config):
    """One linear classifier on features that are computed once, by L-BFGS: the quick option."""

    train_source: str = ""
    val_source: str = ""  # by which C is chosen and, without test_source, reported
    test_source: str = ""
    features: Annotated[tuple[Literal["cls", "patch_mean"], ...], Field(min_length=1)] = ("cls",)  # joined
    # Inverse strengths of the regularisation, as in scikit-learn.
    C: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    max_iterations: PositiveInt = 200
    batch_size: PositiveInt = 64  # images at once through the encoder


class AlignmentConfig(Config):
    """Mutual k-NN with language models on image-caption pairs (arXiv 2405.07987); Web-SSL: 1024 pairs of WiT."""

    source: str = (
        ""  # images with captions: Parquet files, shards with .txt, a folder with .txt files beside the images
    )
    language_models: tuple[str, ...] = ()  # folders, hub ids or .gguf files
    num_samples: PositiveInt | None = None  # the first so many pairs; None: all
    k: PositiveInt = 10
    clamp: Literal["per_sample", "exact", "none"] = "per_sample"  # of outlying features, at the .95 quantile
    language_precision: Literal["bf16", "fp32"] = "bf16"
    batch_size: PositiveInt = 32


class ZeroShotConfig(Config):
    """Zero-shot classification by a run of CLIP or SigLIP: the class whose texts are closest to an image."""

    source: str = ""  # labelled images; empty: no zero-shot classification
    class_names: str = ""  # a file with the name of class i in line i; empty: the names that the data come with
    templates: str = ""  # a file with one template a line, {} where the name goes; empty: "a photo of a {}."
    batch_size: PositiveInt = 64


class SegmentationConfig(Config):
    """ADE20K by a linear layer on frozen patch tokens. Defaults: DINOv2's "lin.", which Web-SSL follows."""

    source: str = ""  # the folder ADEChallengeData2016; empty: no segmentation
    allow_subset: bool = False  # fewer images than the whole set; the result says so
    num_classes: Annotated[int, Field(ge=2, le=255)] = 150
    num_last_blocks: PositiveInt = 1  # so many last blocks' patch tokens, concatenated
    short_side_px: PositiveInt = 512  # images are resized to it, times a scale ...
    max_long_side_px: PositiveInt | None = 2048  # ... or less, to keep the longer side within this, scaled
    train_scales: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    crop_px: PositiveInt = 512  # of training crops and of the sliding window
    max_class_share: Probability = 0.75  # a training crop with more of one class is drawn again, up to ten times
    test_scales: tuple[PositiveFloat, ...] = (1.0,)
    test_flip: bool = False
    stride_px: PositiveInt = 341  # of the sliding window
    windows_per_pass: PositiveInt = 8
    num_steps: PositiveInt = 40_000
    warmup_steps: NonNegativeInt = 1500
    global_batch_size: PositiveInt = 16
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    num_pictures: NonNegativeInt = 4  # test images saved beside their truth and prediction

    @model_validator(mode="after")
    def _fits(self):
        if self.stride_px > self.crop_px:
            raise ValueError(f"stride_px must be at most crop_px {self.crop_px}, else pixels are left out")
        if self.train_scales[0] > self.train_scales[1] or not self.test_scales:
            raise ValueError("train_scales must be (low, high) with low <= high; test_scales must name one at least")
        return self


class DepthConfig(Config):
    """NYUd v2 by a linear layer on frozen tokens, depth being 256 bins' expectation. Defaults: DINOv2's "lin. 1"."""

    source: str = ""  # the folder with nyu_train.txt and nyu_test.txt; empty: no depth
    allow_subset: bool = False  # fewer images than the whole set; the result says so
    num_blocks: Literal[1, 4] = 1  # 1: the last; 4: spread evenly
    min_depth_m: PositiveFloat = 1e-3
    max_depth_m: PositiveFloat = 10.0
    num_bins: PositiveInt = 256
    train_box_px: Box | None = (45, 472, 43, 608)  # what is used of a training image; None: all of it
    test_box_px: Box | None = (45, 471, 41, 601)  # where a prediction is judged: Eigen's; None: everywhere
    crop_px: tuple[PositiveInt, PositiveInt] = (416, 544)  # height, width
    max_rotation_degrees: NonNegativeFloat = 2.5
    num_steps: PositiveInt = 38_400
    warmup_steps: NonNegativeInt = 12_800
    loss_warmup_steps: NonNegativeInt = 100  # the loss's variance is left out so long
    global_batch_size: PositiveInt = 16
    images_per_loss: PositiveInt = 2  # the loss's mean and variance are taken over so many images
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    clip_grad_norm: PositiveFloat = 35.0
    pick_best_every: PositiveInt | None = None  # keep the head of the lowest abs_rel on the test set; None: the last
    num_pictures: NonNegativeInt = 4  # test images saved beside their truth and prediction

    @model_validator(mode="after")
    def _fits(self):
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(f"min_depth_m must be below max_depth_m {self.max_depth_m}")
        if self.global_batch_size % self.images_per_loss:
            raise ValueError(f"global_batch_size must be a multiple of images_per_loss {self.images_per_loss}")
        for name, box in (("train_box_px", self.train_box_px), ("test_box_px", self.test_box_px)):
            if box is not None and (box[0] >= box[1] or box[2] >= box[3]):
                raise ValueError(f"{name} must be (top, bottom, left, right) with top < bottom and left < right")
        return self


class EvalConfig(Config):
    checkpoint: str = ""  # a run, a checkpoint, an official .pth, a Hugging Face folder or id; empty: output_dir
    every: PositiveInt | None = None  # steps between evaluations during training; None: only when asked for
    image_size_px: PositiveInt | None = None  # None: the encoder's own
    compile_encoder: bool = False  # torch.compile: worth its minutes where many images follow
    cache_dir: str = ""  # where features are kept and shared between evaluations; empty: output_dir/feature_cache
    knn: KnnConfig = KnnConfig()
    linear_probe: LinearProbeConfig = LinearProbeConfig()
    logistic_regression: LogisticRegressionConfig = LogisticRegressionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    depth: DepthConfig = DepthConfig()
