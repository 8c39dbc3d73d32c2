"""CLIP and SigLIP by the command line: trained on captioned photographs, judged by the names of the classes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.recipes.captioned import DESCRIPTIONS, caption_tiles
from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.methods import build_method
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.recipes.convert import convert
from webssl_fast.recipes.encoder_source import load_encoder, load_method
from webssl_fast.recipes.evaluate import evaluate
from webssl_fast.recipes.pretrain import pretrain

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke"
COLORS = {"light_red": (220, 60, 60), "blue": (60, 60, 220)}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, of which class `light_red` has captions that say so."""
    folder = tmp_path_factory.mktemp("captioned")
    rng = np.random.default_rng(0)
    for label, color in COLORS.items():
        (folder / label).mkdir()
        for i in range(12):
            pixels = np.clip(np.array(color) + rng.normal(0, 20, (60, 70, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.jpg")
            (folder / label / f"{i}.txt").write_text(f"a photo of a {label.replace('_', ' ')} wall {i}")
    return folder


@pytest.fixture(scope="module")
def runs(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides that name a short run of each method: CLIP's on a folder, SigLIP's on a shard."""
    shard = tmp_path_factory.mktemp("shards") / "pairs.tar"
    with tarfile.open(shard, "w") as tar:
        for path in sorted(captioned.glob("*/*")):
            tar.add(path, f"{path.parent.name}-{path.name}")
    found = {}
    for name, source in (("clip", captioned), ("siglip", shard)):
        overrides = [f"data.source={source}", f"output_dir={tmp_path_factory.mktemp('runs') / name}"]
        overrides += ["train.num_steps=80", "optim.base_lr=0.02", "train.device=cpu", "train.checkpoint_every=80"]
        pretrain(SMOKE / f"{name}.yaml", overrides)
        found[name] = overrides
    return found


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_trained_run_knows_the_classes_by_their_names(runs, captioned: Path, tmp_path: Path, name: str):
    (tmp_path / "templates").write_text("a photo of a {}\n\na {} wall\n")
    settings = [f"eval.zero_shot.source={captioned}", f"eval.zero_shot.templates={tmp_path / 'templates'}"]
    scores = evaluate(SMOKE / f"{name}.yaml", [*runs[name], *settings])
    assert scores["zero_shot"]["top1"] > 0.9
    output_dir = Path(runs[name][1].partition("=")[2])
    written = json.loads((output_dir / "eval" / "zero_shot.json").read_text())
    assert written["data"] == {"images": 24, "classes": 2, "templates": 2}
    # Names the wrong way round: the same images are now wrong.
    (tmp_path / "names").write_text("light red\nblue\n")  # the folders are blue, light_red
    scores = evaluate(SMOKE / f"{name}.yaml", [*runs[name], *settings, f"eval.zero_shot.class_names={tmp_path}/names"])
    assert scores["zero_shot"]["top1"] < 0.1


def test_the_vision_tower_goes_to_hugging_face(runs, tmp_path: Path):
    """As a Dinov2Model: CLIPModel has neither SwiGLU nor LayerScale."""
    output_dir = runs["clip"][1].partition("=")[2]
    convert([output_dir], "hf", tmp_path / "hf")
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (load_encoder(source)(images) for source in (output_dir, tmp_path / "hf"))
    torch.testing.assert_close(theirs.cls_token, ours.cls_token, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.patch_tokens, ours.patch_tokens, rtol=1e-5, atol=1e-5)


def test_an_own_run_starts_another(runs, tmp_path: Path):
    output_dir = runs["clip"][1].partition("=")[2]
    overrides = [runs["clip"][0], f"output_dir={tmp_path}", f"method.init_from={output_dir}", "train.num_steps=1"]
    pretrain(SMOKE / "clip.yaml", [*overrides, "train.device=cpu", "optim.base_lr=1e-9"])
    before, after = load_method(output_dir), load_method(tmp_path)
    for (key, weight), other in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, other, msg=key)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["class_names=no_such_file"], ConfigError, "class_names = 'no_such_file' cannot be read"),
        (["class_names={three}"], ConfigError, "has 3 lines, but .* has 2 classes"),
        (["templates={three}"], ConfigError, "the line 'red' must have {} once"),
    ],
)
def test_rejects_names_and_templates_that_do_not_fit(runs, captioned, tmp_path, settings, error, message):
    (tmp_path / "three").write_text("red\ngreen\nblue\n")
    settings = [f"eval.zero_shot.{text.format(three=tmp_path / 'three')}" for text in settings]
    with pytest.raises(error, match=message):
        evaluate(SMOKE / "clip.yaml", [*runs["clip"], f"eval.zero_shot.source={captioned}", *settings])


def test_a_run_of_another_method_knows_no_texts(captioned: Path, tmp_path: Path):
    overrides = [f"data.source={captioned}", f"output_dir={tmp_path}", "train.device=cpu", "train.num_steps=2"]
    pretrain(SMOKE / "dinov2.yaml", overrides)
    with pytest.raises(UserError, match="needs a run of clip or siglip, .* was trained by dinov2"):
        evaluate(SMOKE / "dinov2.yaml", [*overrides, f"eval.zero_shot.source={captioned}"])


# ---------------------------------------------------------------- learning


def recall_at_1(method: ImageTextMethod, source: Path, config: RunConfig) -> float:
    """Mean share of images that pick their caption, and of captions that pick their image, in galleries of one held-out
    tile of each of the 16 photographs; chance is 1 / 16."""
    index = Index.open(str(source))
    preprocessing = method.encoder().preprocessing
    found: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    with torch.no_grad():
        for images, labels, ids in EvalLoader(index, config.data, preprocessing=preprocessing, batch_size=64):
            captions = [Path(source / index.name(int(i))).with_suffix(".txt").read_text() for i in ids]
            image_BD = method.joint(method.backbone([images])[0].cls_token, None)[0]
            for i, label, *pair in zip(ids, labels.tolist(), image_BD, method.embed_texts(captions), strict=True):
                found.setdefault(int(Path(index.name(int(i))).stem), {})[label] = tuple(pair)
    right = []
    for gallery in found.values():
        image_ND, text_ND = (torch.stack([gallery[label][k] for label in range(16)]) for k in (0, 1))
        similarity_NN, label_N = image_ND @ text_ND.T, torch.arange(16)
        right += [(similarity_NN.argmax(dim) == label_N).float().mean().item() for dim in (0, 1)]
    return float(np.mean(right))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_to_find_held_out_pairs(tmp_path: Path, name: str, seed: int):
    caption_tiles(tmp_path / "tiles")
    assert len(DESCRIPTIONS) == 16
    overrides = [
        f"data.source={tmp_path}/tiles/train",
        f"output_dir={tmp_path}/run",
        f"seed={seed}",
        "train={device: cpu, num_threads: 1, num_steps: 400, global_batch_size: 64}",
        "train={log_every: 50, checkpoint_every: 400}",
        "method={text: {preset: text_nano, context_length: 24}, joint_dim: 64, embed_batch_size: null}",
        "method.crops={scale: [0.4, 1.0], flip_probability: 0.5}",
        "optim={base_lr: 2.0e-3, warmup_steps: 40, weight_decay: [0.2, 0.2], betas: [0.9, 0.98]}",
    ]
    config = resolve(load_config(SMOKE / f"{name}.yaml", overrides), world_size=1, device="cpu")
    untrained = build_method(config)
    untrained.initialize(seed)
    before = recall_at_1(untrained, tmp_path / "tiles" / "test", config)
    pretrain(SMOKE / f"{name}.yaml", overrides)
    after = recall_at_1(load_method(tmp_path / "run"), tmp_path / "tiles" / "test", config)
    print(f"\n{name}, seed {seed}: recall@1 {before:.3f} -> {after:.3f}")
    assert before < 0.2 and after > before + 0.3
