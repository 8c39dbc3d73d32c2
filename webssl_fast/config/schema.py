"""Every setting and its default, in the order in which data flows through a run.

A YAML file holds differences from these defaults. Unknown keys are errors (see load.py). Derived values are written as
`None` here and filled in by `RunConfig.resolved` (so that the saved config.yaml shows what really ran).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Box = tuple[NonNegativeInt, PositiveInt, NonNegativeInt, PositiveInt]  # top, bottom, left, right


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


# ---------------------------------------------------------------- data


class DecodeConfig(Config):
    """JPEG, PNG, WebP, ... bytes to uint8 RGB."""

    backend: Literal["auto", "nvimgcodec", "pillow"] = "auto"  # auto: nvimgcodec (comes with DALI) where it imports
    device: Literal["cpu", "gpu"] = "cpu"  # gpu: JPEGs are decoded there, and images and crops stay there
    hardware_share: Probability = 0.65  # device gpu: of the JPEGs, for the GPU's JPEG engine (DALI's default share)
    max_pixels: PositiveInt = 50_000_000  # read from the header, before anything is decoded
    apply_exif_orientation: bool = True

    @model_validator(mode="after")
    def _decodes_there(self):
        if self.device == "gpu" and self.backend == "pillow":
            raise ValueError("backend pillow decodes on the CPU; with device gpu set backend to auto or nvimgcodec")
        return self


class DataConfig(Config):
    """Where images come from: a folder (any depth), a tar, or a pattern of tars ("shards/{000..127}.tar", "*.tar")."""

    source: str = ""
    decode: DecodeConfig = DecodeConfig()
    num_threads: NonNegativeInt = (
        0  # 0: every core when the loader runs between steps, cores minus compute threads else
    )
    prefetch_batches: NonNegativeInt | None = None  # None: 0 on a CPU (the loader runs between steps), 4 on a GPU
    max_bad_share: Probability = 0.05  # a larger share of undecodable samples stops the run ...
    min_seen_before_stop: NonNegativeInt = 200  # ... once so many samples were seen


# ---------------------------------------------------------------- model


class ModelConfig(Config):
    """A preset of models/presets.py and the departures from it."""

    preset: str = "vit_tiny_patch14"
    image_size_px: PositiveInt = 224  # sets the position embedding's grid
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_scale_init: PositiveFloat = 1e-5  # of presets that have LayerScale
    pos_embed_interpolation: Literal["scale_offset", "size"] = "scale_offset"
    swiglu_pad_multiple: PositiveInt = 1  # >1 pads the SwiGLU hidden size with zero units (FP8: 64 suits every size)


# ---------------------------------------------------------------- method


class HeadConfig(Config):
    hidden_dim: PositiveInt = 2048
    bottleneck_dim: PositiveInt = 256
    num_prototypes: Annotated[int, Field(ge=2)] = 131072


class CropsConfig(Config):
    """One group of crops. Strengths and probabilities as in records.CropRecipe."""

    num: PositiveInt
    size_px: PositiveInt
    scale: tuple[PositiveFloat, PositiveFloat]
    flip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: NonNegativeFloat = 0.4
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    @model_validator(mode="after")
    def _ordered(self):
        if self.scale[0] > self.scale[1] or self.scale[1] > 1:
            raise ValueError(f"scale must be (low, high) with low <= high <= 1, got {self.scale}")
        return self


class DinoV2Config(Config):
    """DINOv2 (arXiv 2304.07193) as Web-SSL trained it (arXiv 2504.01017, App. A)."""

    name: Literal["dinov2"] = "dinov2"
    global_crops: CropsConfig = CropsConfig(num=2, size_px=224, scale=(0.32, 1.0))
    local_crops: CropsConfig = CropsConfig(num=8, size_px=98, scale=(0.05, 0.32))
    # GaussianBlur of Meta's code takes 1-p: "as_trained" is what ran (0.0, 0.9, 0.5 for global 1, global 2, local),
    # "as_written" what the paper's tables say (1.0, 0.1, 0.5).
    blur: Literal["as_trained", "as_written"] = "as_trained"
    solarize_probability: Probability = 0.2  # on the second global crop

    dino_head: HeadConfig = HeadConfig(bottleneck_dim=384)
    ibot_head: HeadConfig = HeadConfig(bottleneck_dim=256)
    dino_weight: NonNegativeFloat = 1.0
    ibot_weight: NonNegativeFloat = 1.0
    koleo_weight: NonNegativeFloat = 0.1
    mask_probability: Probability = 0.5  # share of global crops that carry a mask
    mask_ratio: tuple[Probability, Probability] = (0.1, 0.5)
    fixed_masked_count: bool = False  # pads the masked patches of a pass to their upper bound: every shape is static

    target: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    sinkhorn_iterations: PositiveInt = 3
    center_momentum: Probability = 0.9
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07)  # linear from, to ...
    teacher_temperature_warmup_steps: NonNegativeInt = 37_500  # ... over so many steps
    ema_momentum: tuple[Probability, Probability] = (0.994, 1.0)  # cosine over the run
    freeze_last_layer_steps: NonNegativeInt = 1250

    # Whose weights start this run (continued pre-training): an own checkpoint; an official teacher; [backbone, heads].
    init_from: str | tuple[str, ...] | None = None


class MaeConfig(Config):
    """Masked autoencoders (arXiv 2111.06377) as Web-SSL trained them (arXiv 2504.01017, App. A). One crop of
    model.image_size_px an image, flipped at times, and nothing else."""

    name: Literal["mae"] = "mae"
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.2, 1.0)  # of the image's area
    flip_probability: Probability = 0.5
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # of the patches; the encoder sees the others alone
    decoder_width: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_num_heads: PositiveInt = 16
    normalize_pixels: bool = True  # the target is each patch with its own mean and variance taken out

    init_from: str | tuple[str, ...] | None = None  # an own checkpoint whose weights start this run


MethodConfig = DinoV2Config | MaeConfig


# ---------------------------------------------------------------- optimisation


class OptimConfig(Config):
    """AdamW with the schedules of DINOv2: the peak lr is base_lr, scaled to global_batch_size by `lr_scaling`."""

    # torchao_8bit: moments in 8 bits with a scale a block (Dettmers et al., arXiv 2110.02861), quantised by torchao.
    implementation: Literal["torch", "apex", "torchao_8bit"] = "torch"
    base_lr: PositiveFloat = 2e-4
    # sqrt: base_lr * sqrt(global_batch_size / 1024) (DINOv2); linear: base_lr * global_batch_size / 256 (MAE)
    lr_scaling: Literal["sqrt", "linear"] = "sqrt"
    min_lr: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt = 100_000
    weight_decay: tuple[NonNegativeFloat, NonNegativeFloat] = (0.04, 0.2)  # cosine from, to
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip_grad_norm: PositiveFloat | None = 3.0  # of each trained module by itself
    layerwise_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    patch_embed_lr_factor: PositiveFloat = 0.2


# ---------------------------------------------------------------- training


class ShardingConfig(Config):
    """How several ranks share the weights (FSDP2). One process holds everything, and these say nothing."""

    num_replicas: PositiveInt = 1  # HSDP where > 1: so many copies of the weights, each sharded over ranks / replicas
    # False keeps the student's gathered weights from its forward until its backward: less traffic, more memory. The
    # teacher has no backward, and always gives them up.
    reshard_after_forward: bool = True
    prefetch_blocks: NonNegativeInt = 1  # blocks gathered ahead of the one that computes; 0: torch's own order


class WatchdogConfig(Config):
    """Seconds that a phase may last on a rank before it prints all its stacks and ends itself; None: for ever."""

    step_s: PositiveFloat | None = 480  # loading, computing, logging, each; under nccl's own 600, which shows no stacks
    first_step_s: PositiveFloat | None = 3600  # torch.compile
    evaluation_s: PositiveFloat | None = 14_400
    checkpoint_s: PositiveFloat | None = 3600


class TrainConfig(Config):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    fp8: Literal["none", "teacher", "both"] = "none"  # the blocks' linear layers, by torchao; wants compile_blocks
    fp8_scaling: Literal["rowwise", "tensorwise"] = "rowwise"  # rowwise keeps the weights' gradients in bf16
    # bf16 rounds stochastically at each update, since rounding to nearest loses small ones: a bf16 EMA stands still.
    student_weights: Literal["fp32", "bf16"] = "fp32"  # bf16 needs optim.implementation=torchao_8bit
    teacher_weights: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # selective recomputes what is no GEMM
    compile_blocks: bool = False  # torch.compile, block by block
    sharding: ShardingConfig = ShardingConfig()
    num_steps: PositiveInt = 625_000
    global_batch_size: PositiveInt = 3072
    # Images per rank and pass; None: global_batch_size / ranks. Fewer accumulate gradients over several passes, which
    # is another objective: Sinkhorn-Knopp balances the prototypes over the images of one pass (of all ranks), not over
    # global_batch_size. KoLeo, mask ratios and drop-path go by group_size, and stay as they are.
    micro_batch_size: PositiveInt | None = None
    group_size: PositiveInt | None = None  # images over which KoLeo, mask ratios and drop-path are defined; None: micro
    num_threads: NonNegativeInt = 0  # compute threads; 0: every core
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 1000
    async_checkpoint: bool = True  # written beside training, from a copy of this rank's shards in host memory
    keep_checkpoints: PositiveInt = 3
    keep_every: PositiveInt | None = None  # checkpoints at multiples of this step are never removed
    max_nonfinite_steps: PositiveInt = 20  # so many skipped steps in a row stop the run
    tensorboard: bool = False
    watchdog: WatchdogConfig = WatchdogConfig()


# ---------------------------------------------------------------- evaluation


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
    cache_dir: str = ""  # where features are kept and shared between evaluations; empty: output_dir/feature_cache
    knn: KnnConfig = KnnConfig()
    linear_probe: LinearProbeConfig = LinearProbeConfig()
    logistic_regression: LogisticRegressionConfig = LogisticRegressionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    depth: DepthConfig = DepthConfig()


class RunConfig(Config):
    output_dir: str = "runs/default"
    seed: NonNegativeInt = 0
    ops: Literal["auto", "reference"] = "auto"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: Annotated[MethodConfig, Field(discriminator="name")] = DinoV2Config()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_method(cls, tree: Any) -> Any:
        """`method:` without a name is DINOv2."""
        method = tree.get("method") if isinstance(tree, dict) else None
        return {**tree, "method": {"name": "dinov2", **method}} if isinstance(method, dict) else tree
