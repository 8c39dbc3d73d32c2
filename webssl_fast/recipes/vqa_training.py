"""The two stages of `webssl vqa`: an adapter, then adapter and language model, by the engine that pre-trains."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.config.vqa import AdapterStageConfig, ConversationsConfig, LanguageStageConfig, VqaConfig
from webssl_fast.data.conversation_images import open_images
from webssl_fast.data.conversation_loader import ConversationLoader, ConversationSource
from webssl_fast.data.conversation_order import ConversationOrder
from webssl_fast.data.conversations import BadRecord, ConversationIndex
from webssl_fast.data.decode import make_decoder
from webssl_fast.data.image_token_files import ImageTokenFiles
from webssl_fast.engine import loop, sharding
from webssl_fast.engine.checkpoint import METHOD_PREFIX, load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import Interrupted, UserError
from webssl_fast.methods.vision_language import VisionLanguage
from webssl_fast.models.chat import ChatFormat
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.init import assign
from webssl_fast.models.language import describe_causal_model, load_causal_model
from webssl_fast.models.lora import add_lora, initialize_lora, merged, plain_name
from webssl_fast.models.square_images import square_image
from webssl_fast.models.vision_language import Adapter, LanguageSide, VisionLanguageModel, image_tokens
from webssl_fast.models.vision_language_files import (
    ADAPTER,
    EncoderIdentity,
    read_adapter,
    save_adapter,
    save_vision_language,
)

logger = logging.getLogger(__name__)

MODEL = "model"  # the folder in output_dir
_HERE = Distributed(torch.device("cpu"))


@dataclass(frozen=True)
class Frozen:
    """What both stages stand on."""

    encoder: Encoder
    identity: EncoderIdentity
    chat: ChatFormat


def train_adapter(config: VqaConfig, frozen: Frozen, ranks: Distributed) -> Path:
    """Stage 1: the adapter alone. Returns its file; where that is there already, nothing is done."""
    folder = Path(config.output_dir) / "stage1"
    path = folder / ADAPTER
    if not ranks.gather(path.is_file())[0]:
        _train("stage1", config.stage1, config, frozen, ranks, folder, first_adapter=None)
        if ranks.is_main:
            save_adapter(_trained_adapter(config, frozen, folder, _language_width(config)), path, frozen.identity)
        ranks.barrier()
    return path


def train_language(config: VqaConfig, frozen: Frozen, ranks: Distributed, first_adapter: Path | None) -> Path:
    """Stage 2: adapter and language model, from an adapter (None: an untrained one). Returns the folder of the whole
    model; where that is there already, nothing is done."""
    output_dir = Path(config.output_dir)
    model_dir = output_dir / MODEL
    if not ranks.gather(model_dir.is_dir())[0]:
        folder = output_dir / "stage2"
        _train("stage2", config.stage2, config, frozen, ranks, folder, first_adapter)
        if ranks.is_main:
            save_vision_language(_trained_model(config, frozen, folder), model_dir, frozen.identity)
        ranks.barrier()
    return model_dir


# ---------------------------------------------------------------- a stage


def _train(
    name: str,
    stage: AdapterStageConfig,
    config: VqaConfig,
    frozen: Frozen,
    ranks: Distributed,
    folder: Path,
    first_adapter: Path | None,
) -> None:
    trains_language = isinstance(stage, LanguageStageConfig)
    language = _language_side(config, trained=trains_language)
    with torch.device("meta"):
        adapter = _adapter(config, frozen.encoder.width, language.width)
    source, ids = _conversations(name, stage.data, config, frozen, ranks, folder, adapter.num_places)
    batch_size = config.train.global_batch_size
    order = ConversationOrder(config.seed, ids, source.index.has_image[ids], source.index.lengths[ids], batch_size)
    train_config = _train_config(config, stage, order, ranks)
    if stage.data.precompute:
        files = _computed_image_tokens(name, stage.data, config, frozen, source, ids, ranks)
        source.precomputed = files.read
    fill = partial(_fill, config=config, frozen=frozen, first_adapter=first_adapter)
    method = VisionLanguage(None if stage.data.precompute else frozen.encoder, adapter, language, fill)
    sharding.materialize(method, config.seed, ranks, train_config)
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        _announce(name, stage, train_config, source, ids, method, ranks)
    ranks.barrier()
    assert train_config.micro_batch_size is not None
    with ConversationLoader(
        source,
        order,
        global_batch_size=batch_size,
        micro_batch_size=train_config.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_bad_share=stage.data.max_bad_share,
        min_seen_before_stop=stage.data.min_seen_before_stop,
        prefetch_steps=stage.data.prefetch_steps,
        num_threads=stage.data.num_threads,
        output_dir=str(folder),
        pin_memory=ranks.device.type == "cuda",
    ) as loader:
        result = loop.train(
            method,
            loader,
            ranks,
            train_config=train_config,
            optim_config=_optim_config(stage, train_config.num_steps),
            output_dir=folder,
            seed=config.seed,
            facts={
                "seed": config.seed,
                "data": f"{len(ids)} of {len(source.index)} conversations",
                "encoder": frozen.identity.sha256,
                "language_model": config.language_model.source,
            },
            data_values=lambda samples_seen: {"epoch": order.epochs(samples_seen // batch_size)},
        )
    if result.interrupted_by is not None:
        signal_name = signal.Signals(result.interrupted_by).name
        raise Interrupted(f"{signal_name} at step {result.step} of {name}: saved; the same command goes on from there")


def _train_config(
    config: VqaConfig, stage: AdapterStageConfig, order: ConversationOrder, ranks: Distributed
) -> TrainConfig:
    train = config.train
    num_steps = stage.num_steps or max(1, round(stage.epochs * order.steps_per_epoch))
    micro_batch_size = train.micro_batch_size or train.global_batch_size // ranks.world_size
    update = {"num_steps": num_steps, "micro_batch_size": micro_batch_size}
    resolved = train.model_copy(update=update)
    loop.micro_steps(resolved, ranks.world_size)  # says what is wrong, if something is
    return resolved


def _optim_config(stage: AdapterStageConfig, num_steps: int) -> OptimConfig:
    return stage.optim.model_copy(update={"warmup_steps": round(stage.optim.warmup_share * num_steps)})


def _conversations(
    name: str,
    data: ConversationsConfig,
    config: VqaConfig,
    frozen: Frozen,
    ranks: Distributed,
    folder: Path,
    image_places: int,
) -> tuple[ConversationSource, np.ndarray]:
    """What a stage trains on, and the ids of those records that are not left out. The main rank makes the indexes."""
    opened = None
    for is_turn in (ranks.is_main, not ranks.is_main):
        if is_turn:
            index = ConversationIndex.open(data.conversations, data.index)
            images = open_images(data.images, str(folder / "image_keys.index")) if data.images else None
            opened = index, images
        ranks.barrier()
    assert opened is not None
    index, images = opened
    ids = index.kept(data.exclude_prefixes, _listed_names(name, data.exclude_images))
    if ranks.is_main and len(ids) < len(index):
        logger.info("%s: %s of %s conversations are left out", name, f"{len(index) - len(ids):,}", f"{len(index):,}")
    source = ConversationSource(
        index,
        images,
        frozen.chat,
        make_decoder(data.decode),
        partial(square_image, encoder=frozen.encoder),
        image_places=image_places,
        max_tokens=config.language_model.max_tokens,
    )
    return source, ids


def _listed_names(name: str, path: str) -> frozenset[str]:
    if not path:
        return frozenset()
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{name}.data.exclude_images: there is no file {path!r}; it lists images' names, one a line")
    return frozenset(file.read_text(encoding="utf-8").split("\n")) - {""}


def _announce(
    name: str,
    stage: AdapterStageConfig,
    train: TrainConfig,
    source: ConversationSource,
    ids: np.ndarray,
    method: VisionLanguage,
    ranks: Distributed,
) -> None:
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    logger.info(
        "%s: %s M of %s M parameters on %s conversations (%s with an image) of %s, %s steps of %s, %s on %d x %s",
        name,
        f"{trained / 1e6:,.1f}",
        f"{sum(p.numel() for p in method.parameters()) / 1e6:,.1f}",
        f"{len(ids):,}",
        f"{int(source.index.has_image[ids].sum()):,}",
        stage.data.conversations,
        f"{train.num_steps:,}",
        train.global_batch_size,
        train.precision,
        ranks.world_size,
        ranks.device.type,
    )


# ---------------------------------------------------------------- networks


def _language_side(config: VqaConfig, trained: bool) -> LanguageSide:
    """On the meta device."""
    llm = describe_causal_model(config.language_model.source).requires_grad_(trained)
    if trained and (lora := config.stage2.lora) is not None:
        with torch.device("meta"):
            llm = add_lora(llm, lora.rank, lora.alpha)
    return LanguageSide(llm)


def _adapter(config: VqaConfig, vision_width: int, language_width: int) -> Adapter:
    return Adapter(vision_width, language_width, config.adapter.num_image_tokens, config.adapter.image_newline)


def _language_width(config: VqaConfig) -> int:
    return LanguageSide(describe_causal_model(config.language_model.source)).width


@torch.no_grad()
def _fill(method: VisionLanguage, seed: int, *, config: VqaConfig, frozen: Frozen, first_adapter: Path | None) -> None:
    """The language model's published weights, and the adapter of the stage before, or an untrained one."""
    if first_adapter is None:
        method.adapter.initialize(seed, "adapter")
    else:
        parameters = dict(method.adapter.named_parameters())
        for name, tensor in read_adapter(first_adapter, method.adapter, frozen.encoder, frozen.identity.sha256).items():
            assign(parameters[name], tensor)
    llm = method.language.llm
    llm.tie_weights()  # what allocating has parted
    published = load_causal_model(config.language_model.source)
    tensors = {**dict(published.named_parameters(remove_duplicate=False)), **dict(published.named_buffers())}
    for name, target in [*llm.named_parameters(), *llm.named_buffers()]:
        if (plain := plain_name(name)) in tensors:
            assign(target, tensors[plain].to(target.dtype))
    initialize_lora(llm, seed, "language")


def _trained_adapter(config: VqaConfig, frozen: Frozen, stage_dir: Path, language_width: int) -> Adapter:
    adapter = _adapter(config, frozen.encoder.width, language_width)
    load_weights(stage_dir, adapter, _HERE, prefix=f"{METHOD_PREFIX}adapter.")
    return adapter


def _trained_model(config: VqaConfig, frozen: Frozen, stage_dir: Path) -> VisionLanguageModel:
    """On the CPU, whole, the language model in the precision that it was trained in."""
    llm = load_causal_model(config.language_model.source, torch.float32)
    if (lora := config.stage2.lora) is not None:
        llm = add_lora(llm, lora.rank, lora.alpha)
    language = LanguageSide(llm)
    load_weights(stage_dir, language, _HERE, prefix=f"{METHOD_PREFIX}language.")
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    llm = nn.Module.to(merged(llm), dtype)
    return VisionLanguageModel(
        frozen.encoder, _trained_adapter(config, frozen, stage_dir, language.width), llm, frozen.chat
    )


# ---------------------------------------------------------------- image tokens computed beforehand


def _computed_image_tokens(
    name: str,
    data: ConversationsConfig,
    config: VqaConfig,
    frozen: Frozen,
    source: ConversationSource,
    ids: np.ndarray,
    ranks: Distributed,
) -> ImageTokenFiles:
    num_tokens = config.adapter.num_image_tokens
    identity = {
        "encoder": frozen.identity.sha256,
        "images": [str(Path(data.images).expanduser().resolve()), source.index.image_names_sha256()],
        "num_image_tokens": num_tokens,
        "decode": data.decode.model_dump(mode="json"),
        "precision": config.train.precision,
    }
    with_image = ids[source.index.has_image[ids]]
    folder = Path(config.output_dir) / "image_tokens"
    files = ImageTokenFiles(folder, identity, with_image, num_tokens, frozen.encoder.width)
    missing = ranks.gather(files.missing())[0]
    encode = _encoder_of(config, frozen.encoder, num_tokens, ranks)
    with ThreadPoolExecutor(data.num_threads) as pool:
        own = missing[ranks.rank :: ranks.world_size]
        for shard in tqdm(own, f"image tokens of {name}", disable=not ranks.is_main):
            images = list(pool.map(partial(_image_or_none, source), files.shard_ids(shard).tolist()))
            usable = [i for i, image in enumerate(images) if image is not None]
            tokens = [encode(torch.stack([images[i] for i in part])) for part in _parts(usable, 32)]  # type: ignore[misc]
            empty = torch.empty(0, num_tokens, frozen.encoder.width)
            files.write(shard, files.shard_ids(shard)[usable], torch.cat([empty, *tokens]))
    ranks.barrier()
    return files


def _image_or_none(source: ConversationSource, sample_id: int) -> Tensor | None:
    try:
        return source.image(sample_id)
    except BadRecord:  # listed with its reason when training meets it
        return None


def _parts(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _encoder_of(config: VqaConfig, encoder: Encoder, num_tokens: int, ranks: Distributed) -> Callable[[Tensor], Tensor]:
    def encode(images_I3SS: Tensor) -> Tensor:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            return image_tokens(encoder, images_I3SS.to(ranks.device), num_tokens).cpu()

    return encode
