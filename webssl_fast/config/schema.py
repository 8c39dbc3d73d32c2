"""Every setting and its default, in the order in which data flows through a run.

A YAML file holds differences from these defaults. Unknown keys are errors (see load.py). Derived values are written as
`None` here and filled in by `RunConfig.resolved` (so that the saved config.yaml shows what really ran).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from webssl_fast.config.evaluation import AlignmentConfig as AlignmentConfig
from webssl_fast.config.evaluation import DepthConfig as DepthConfig
from webssl_fast.config.evaluation import EvalConfig as EvalConfig
from webssl_fast.config.evaluation import KnnConfig as KnnConfig
from webssl_fast.config.evaluation import LinearProbeConfig as LinearProbeConfig
from webssl_fast.config.evaluation import LogisticRegressionConfig as LogisticRegressionConfig
from webssl_fast.config.evaluation import SegmentationConfig as SegmentationConfig
from webssl_fast.config.evaluation import ZeroShotConfig as ZeroShotConfig
from webssl_fast.config.executor import ExecutorConfig as ExecutorConfig
from webssl_fast.config.fields import Config, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability

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


class ReadConfig(Config):
    """How images are read and decoded, and how many of them may be bad."""

    decode: DecodeConfig = DecodeConfig()
    remote_reads: PositiveInt = 32  # requests to an object store under way at once, on each rank
    read_attempts: PositiveInt = 8  # of a remote read, each later than the one before; then the sample counts as bad
    read_timeout_s: PositiveFloat = 60  # of each attempt
    max_bad_share: Probability = 0.05  # a larger share of undecodable samples stops the run ...
    min_seen_before_stop: NonNegativeInt = 200  # ... once so many samples were seen


class SourceConfig(Config):
    """One of several sources; `weight` is relative to the others'."""

    source: str
    weight: PositiveFloat = 1.0
    subset: str = ""


class DataConfig(ReadConfig):
    """Where images come from: a folder (any depth), a tar, a pattern of tars ("shards/{000..127}.tar", "*.tar",
    "s3://bucket/{000..127}.tar"), Parquet files, or an index of such that `webssl data index` wrote."""

    source: str = ""
    subset: str = ""  # a file of `webssl data subset`: train on these samples of source, which must be an index
    sources: tuple[SourceConfig, ...] = ()  # several with weights, instead of source; each runs through its own epochs
    # Neighbours in storage that are read one after another; 1: none. More spare a disk or an object store seeks and
    # requests, and leave about global_batch_size / shuffle_run independent draws in a batch where neighbours are alike.
    shuffle_run: PositiveInt = 1
    num_threads: NonNegativeInt = (
        0  # 0: every core when the loader runs between steps, cores minus compute threads else
    )
    prefetch_batches: NonNegativeInt | None = None  # None: 0 on a CPU (the loader runs between steps), 4 on a GPU

    @model_validator(mode="after")
    def _one_way_to_name_sources(self):
        if self.sources and (self.source or self.subset):
            raise ValueError("data.sources stands instead of data.source and data.subset: set the one or the other")
        return self


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


class IJepaConfig(Config):
    """I-JEPA (arXiv 2301.08243). One crop of model.image_size_px an image, and no other augmentation. Scales are shares
    of the crop's area, aspects height / width."""

    name: Literal["ijepa"] = "ijepa"
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.3, 1.0)  # of the image's area
    flip_probability: Probability = 0.0
    num_target_blocks: PositiveInt = 4
    target_scale: tuple[PositiveFloat, PositiveFloat] = (0.15, 0.2)  # of each block whose features are predicted
    target_aspect: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.5)
    context_scale: tuple[PositiveFloat, PositiveFloat] = (0.85, 1.0)  # of the square that the encoder sees ...
    # ... less the target blocks, and of the rest so many of all patches (methods/multiblock.py).
    context_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    predictor_width: PositiveInt = 384
    predictor_depth: PositiveInt = 12
    predictor_num_heads: PositiveInt = 12  # the paper: as many as the encoder has
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"  # the authors' code; l2: the paper's section 3
    ema_momentum: tuple[Probability, Probability] = (0.996, 1.0)  # linear over the run

    init_from: str | None = None  # the checkpoint of a run by the same method, whose weights start this one


class TextConfig(Config):
    """The text tower of CLIP and SigLIP: a causal transformer over byte pairs."""

    preset: str = "text_small"  # of models/presets.py
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    # A folder or hub id with a tokenizer of transformers; empty: CLIP's byte pairs (models/tokenizer.py).
    tokenizer: str = ""
    vocabulary_size: PositiveInt = 49_408  # CLIP's; of another tokenizer, at least its own
    context_length: Annotated[int, Field(ge=3)] = 77  # tokens of a text, its start and end among them; longer is cut


class ImageTextConfig(Config):
    """What CLIP and SigLIP share: pairs of an image and its caption, brought together in one space."""

    # One crop an image; webpages' images are cropped a little and not distorted (OpenCLIP's augmentation).
    crops: CropsConfig = CropsConfig(
        num=1,
        size_px=224,
        scale=(0.9, 1.0),
        flip_probability=0.0,
        jitter_probability=0.0,
        grayscale_probability=0.0,
    )
    text: TextConfig = TextConfig()
    joint_dim: PositiveInt = 512  # of the space in which images and texts are compared
    # Pairs that go through the towers at once; None: all of a pass. Fewer need less memory and one more forward, and
    # change nothing else: the loss sees every pair of the pass (gradient caching, arXiv 2101.06983).
    embed_batch_size: PositiveInt | None = None
    max_logit_scale: PositiveFloat = 100.0
    init_from: str | None = None  # the checkpoint of a run by the same method, whose weights start this one


class ClipConfig(ImageTextConfig):
    """CLIP (arXiv 2103.00020), the language-supervised baseline of Web-SSL (arXiv 2504.01017, section 2)."""

    name: Literal["clip"] = "clip"
    init_logit_scale: PositiveFloat = 1 / 0.07


class SigLipConfig(ImageTextConfig):
    """SigLIP (arXiv 2303.15343): each pair of an image and a text is judged by itself."""

    name: Literal["siglip"] = "siglip"
    init_logit_scale: PositiveFloat = 10.0
    init_logit_bias: float = -10.0


MethodConfig = DinoV2Config | MaeConfig | IJepaConfig | ClipConfig | SigLipConfig


# ---------------------------------------------------------------- optimisation


class OptimConfig(Config):
    """AdamW with the schedules of DINOv2: the peak lr is base_lr, scaled to global_batch_size by `lr_scaling`."""

    # torchao_8bit: moments in 8 bits with a scale a block (Dettmers et al., arXiv 2110.02861), quantised by torchao.
    implementation: Literal["torch", "apex", "torchao_8bit"] = "torch"
    base_lr: PositiveFloat = 2e-4
    # sqrt: base_lr * sqrt(global_batch_size / 1024) (DINOv2); linear: base_lr * global_batch_size / 256 (MAE);
    # none: base_lr
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
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
