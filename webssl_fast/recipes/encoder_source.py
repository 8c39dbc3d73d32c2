"""From what a user names to a frozen encoder or its weights: by what the source is, and a refusal where that is not
clear.

  an own run        its output_dir, its `checkpoints` folder, or one checkpoint
  authors' files    webssl_<name>.pth, ..._ssl_teacher.pth; where weights are read also a backbone and ..._ssl_heads.pth
  Hugging Face      a folder with a config.json; an id of the hub, as owner/name
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine.checkpoint import METHOD_PREFIX, find_checkpoint, load_weights, read_state
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.sharding import set_weight_dtypes
from webssl_fast.errors import UserError
from webssl_fast.methods.base import Method
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.models.checkpoint_layouts import HEADS, Weights, from_authors
from webssl_fast.models.convert import CONFIG, read_authors, read_hugging_face
from webssl_fast.models.encoders import BackboneEncoder, Encoder
from webssl_fast.models.hf_encoders import HuggingFaceEncoder, load_hugging_face
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.models.weight_files import read_pth
from webssl_fast.recipes.setup import describe_method

logger = logging.getLogger(__name__)

EXPECTED = (
    "expected a run's output_dir or a checkpoint in it, a .pth file of the Web-SSL authors, a Hugging Face folder with "
    "a config.json, or an id of the Hugging Face hub like facebook/webssl-dino1b-full2b-224"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HERE = Distributed(torch.device("cpu"))


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """A frozen encoder on `device`, in eval mode, in fp32; of an own run what its method judges (the teacher).

    source  as the module says, anything of it

    Raises UserError, naming the source, what was found and what is expected.
    """
    encoder: BackboneEncoder | HuggingFaceEncoder
    kind, path = _kind(source)
    if kind == "authors":
        encoder = BackboneEncoder.from_weights(from_authors({str(path): read_pth(path)}))
    elif kind in ("hugging_face", "hub"):
        encoder = load_hugging_face(path if kind == "hugging_face" else source)
    else:
        encoder = _own_encoder(path, torch.device(device))
    encoder.to(device).eval().requires_grad_(False)
    assert isinstance(encoder, Encoder)
    if encoder.cls_source != "cls_token":
        logger.warning(
            "%s has no trained class token; %s stands in its place",
            encoder.name,
            _STANDS_IN[encoder.cls_source],
        )
    return encoder


_STANDS_IN = {"pooled": "its own pooling of the last block", "patch_mean": "the mean of its patch tokens"}


def load_method(source: str | Path, device: torch.device | str = "cpu") -> Method:
    """The method of an own run with all its weights in fp32, on `device`, in eval mode. UserError where the source is
    no own run."""
    kind, path = _kind(source)
    if kind != "own":
        raise UserError(
            f"{source} is no run of ours, of which alone a whole method can be had; name a run's output_dir"
        )
    checkpoint, _, method = _open_run(path)
    assert isinstance(method, nn.Module)
    method.to_empty(device=device)
    load_weights(checkpoint, method, _HERE)
    return method.float().eval().requires_grad_(False)


def untrained_twin(encoder: Encoder, seed: int) -> BackboneEncoder:
    """A fresh network of the architecture of one of ours, on the same device."""
    assert isinstance(encoder, BackboneEncoder)
    backbone = type(encoder.backbone)(encoder.backbone.config)
    backbone.initialize(seed, "backbone")
    twin = BackboneEncoder(backbone, f"{encoder.name} untrained", trained_cls_token=encoder.trained_cls_token)
    return twin.to(encoder.backbone.cls_token.device).eval().requires_grad_(False)


def read_weights(sources: Sequence[str | Path]) -> Weights:
    """The weights of one Web-DINO or Web-MAE network, with its heads where the sources have them.

    sources  one as the module says (an own run: its teacher), or the authors' files of a backbone and of its heads

    Raises UserError as `load_encoder` does, and for a network of another kind.
    """
    kinds = [_kind(source) for source in sources]
    if {kind for kind, _ in kinds} == {"authors"}:
        return read_authors([path for _, path in kinds])
    if len(kinds) != 1:
        raise UserError(f"got {' and '.join(map(str, sources))}; several sources must all be .pth files of the authors")
    kind, path = kinds[0]
    if kind == "hub":
        raise UserError(
            f"{sources[0]} is not on this machine; fetch it first: hf download {sources[0]} --local-dir FOLDER"
        )
    return read_hugging_face(path) if kind == "hugging_face" else _own_weights(path)


def _kind(source: str | Path) -> tuple[str, Path]:
    """What the source is: "authors", "hugging_face", "own" or "hub"."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".pth":
            return "authors", path
        raise UserError(f"{path} is a file, but not one that ends in .pth; {EXPECTED}")
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "hugging_face", path
        return "own", path
    # A path of which a part is there is a path with a mistake, not an id to be asked of the hub.
    if _HUB_ID.fullmatch(str(source)) and not path.parent.is_dir():
        return "hub", path
    raise UserError(f"there is no {source}; {EXPECTED}")


# ---------------------------------------------------------------- own runs


def _open_run(source: Path) -> tuple[Path, RunConfig, Method]:
    """The checkpoint that `source` means, its run's config, and its method on the meta device."""
    checkpoint = _find(source)
    config_path = checkpoint.parent.parent / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{checkpoint} is a checkpoint without its run's config; put that back at {config_path}")
    config = load_config(config_path)
    # Of the device that it was trained on: nothing is computed or decoded by this config here.
    config = resolve(config, world_size=1, device=config.train.device)
    method = describe_method(config)
    set_weight_dtypes(method, config.train)
    return checkpoint, config, method


def _find(source: Path) -> Path:
    try:
        return find_checkpoint(source)
    except FileNotFoundError:
        found = ", ".join(sorted(path.name for path in source.iterdir())[:5]) or "nothing"
        raise UserError(f"{source} holds no checkpoint, but {found}; {EXPECTED}") from None


def _own_encoder(source: Path, device: torch.device) -> BackboneEncoder:
    checkpoint, _, method = _open_run(source)
    encoder = method.encoder()
    assert isinstance(encoder, BackboneEncoder)
    encoder.to_empty(device=device)
    load_weights(checkpoint, encoder.backbone, _HERE, prefix=f"{METHOD_PREFIX}{_backbone_name(method)}.")
    encoder.name = f"{checkpoint.parent.parent.resolve().name}/{checkpoint.name}"
    return encoder.float()


def _own_weights(source: Path) -> Weights:
    checkpoint, config, method = _open_run(source)
    if isinstance(method, ImageTextMethod):  # its vision tower is such a network; the text tower has no place there
        vision, model = _own_encoder(source, torch.device("cpu")).backbone, config.model
        return Weights(str(source), model.preset, model.image_size_px, vision.unpadded_state_dict(), {})
    assert isinstance(method, nn.Module)
    prefix = judged_prefix(method)
    networks = method.get_submodule(prefix.removeprefix(METHOD_PREFIX).removesuffix("."))
    backbone = networks.get_submodule("backbone")
    assert isinstance(backbone, VisionTransformer)
    if not read_state(checkpoint).get("converted", {"heads": True})["heads"]:
        networks = nn.ModuleDict({"backbone": backbone})
    networks.to_empty(device="cpu")
    load_weights(checkpoint, networks, _HERE, prefix=prefix)
    heads = {name: tensor for name, tensor in networks.state_dict().items() if name.startswith(HEADS)}
    model = config.model
    return Weights(str(source), model.preset, model.image_size_px, backbone.unpadded_state_dict(), heads)


def judged_prefix(method: Method) -> str:
    """What stands before `backbone.` in a checkpoint's names of the network that the method judges."""
    return METHOD_PREFIX + _backbone_name(method).removesuffix("backbone")


def _backbone_name(method: Method) -> str:
    """Of the network that the method judges, within the method."""
    encoder = method.encoder()
    assert isinstance(method, nn.Module) and isinstance(encoder, BackboneEncoder)
    return next(name for name, module in method.named_modules() if module is encoder.backbone)


def is_own_training(source: str | Path) -> bool:
    """Whether the source is a checkpoint that training wrote, with everything that the method holds: not a published
    network, nor one in our form that `webssl convert` made (a teacher without a student)."""
    kind, path = _kind(source)
    return kind == "own" and "converted" not in read_state(_find(path))
