"""`method.init_from`: runs go on from official weights, bit for bit, and say what does not fit."""

import logging
import subprocess
import sys

import pytest
import torch

from tests.methods.tiny import tiny_method
from tests.models.published import NANO, assert_same_bits, authors_shapes, random_heads, random_state, random_teacher
from tests.recipes.test_encoder_source import make_run
from webssl_fast.cli import main
from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import HeadConfig
from webssl_fast.engine.checkpoint import load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.methods import build_method
from webssl_fast.recipes.initial_weights import start_from

HERE = Distributed(torch.device("cpu"))
FLAT = random_state(authors_shapes(NANO, 56, chunked=False))
HEADS = {
    "dino_head": HeadConfig(hidden_dim=32, bottleneck_dim=24, num_prototypes=64),
    "ibot_head": HeadConfig(hidden_dim=32, bottleneck_dim=16, num_prototypes=64),
}


@pytest.fixture
def teacher(tmp_path):
    torch.save(random_teacher(), tmp_path / "x_ssl_teacher.pth")
    return str(tmp_path / "x_ssl_teacher.pth")


def networks(method):
    for each in (method.teacher, method.student):
        heads = {name: p for name, p in each.state_dict().items() if "head." in name}
        yield each.backbone.unpadded_state_dict(), heads


def test_teacher_and_student_take_up_an_official_teacher(teacher):
    method = tiny_method(**HEADS)
    start_from(teacher, method, HERE)
    for backbone, heads in networks(method):
        assert_same_bits(backbone, FLAT)
        assert_same_bits(heads, random_heads())
    assert method.student.backbone.norm.weight.requires_grad and not method.teacher.backbone.norm.weight.requires_grad


def test_a_pair_of_files_does_the_same(tmp_path):
    torch.save(random_state(authors_shapes(NANO, 56)), tmp_path / "x.pth")
    torch.save({"teacher": random_heads()}, tmp_path / "x_ssl_heads.pth")
    method = tiny_method(**HEADS)
    start_from((str(tmp_path / "x_ssl_heads.pth"), str(tmp_path / "x.pth")), method, HERE)
    for backbone, heads in networks(method):
        assert_same_bits(backbone, FLAT)
        assert_same_bits(heads, random_heads())


def test_a_backbone_alone_starts_with_fresh_heads_loudly(tmp_path, caplog):
    torch.save(random_state(authors_shapes(NANO, 56)), tmp_path / "x.pth")
    method, untouched = tiny_method(**HEADS), tiny_method(**HEADS)
    with caplog.at_level(logging.WARNING):
        start_from(str(tmp_path / "x.pth"), method, HERE)
    assert "NO HEADS in" in caplog.text and "_ssl_heads" in caplog.text
    for (backbone, heads), (_, fresh) in zip(networks(method), networks(untouched), strict=True):
        assert_same_bits(backbone, FLAT)
        assert_same_bits(heads, fresh)


def test_sizes_that_differ_are_named_and_nothing_changes(teacher):
    method = tiny_method()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with pytest.raises(
        UserError, match=r"x_ssl_teacher\.pth is of other sizes .* method\.dino_head\.bottleneck_dim=24 \(now 16\)"
    ):
        start_from(teacher, method, HERE)
    assert_same_bits(method.state_dict(), before)


def test_an_own_run_gives_everything(tmp_path):
    trained = make_run(tmp_path / "mine")
    config = resolve(load_config(tmp_path / "mine/config.yaml"), world_size=1, device="cuda")
    method = build_method(config)
    method.initialize(5)
    start_from(str(tmp_path / "mine"), method, HERE)
    assert_same_bits(method.state_dict(), trained.state_dict())


def test_a_method_without_a_published_form_says_so(teacher):
    class Other:
        name = "other"

    with pytest.raises(UserError, match="init_from is .* but other cannot start from published weights"):
        start_from(teacher, Other(), HERE)


@pytest.mark.parametrize("form", ["official", "native"])
def test_trains_on_from_official_weights(teacher, tmp_path, photos, form):
    """The first step of a warm-up has a learning rate of zero, so what it saves is what it started from; the second
    moves the student."""
    if form == "native":
        assert main(["convert", teacher, "--to", "native", "-o", str(tmp_path / "native")]) == 0
        teacher = tmp_path / "native"
    overrides = [f"data.source={photos}/train", f"method.init_from={teacher}", f"output_dir={tmp_path}/run"]
    overrides += ["method.dino_head.bottleneck_dim=24", "train.num_steps=2", "train.checkpoint_every=1"]
    assert main(["train", "configs/smoke/dinov2.yaml", *overrides, "model.swiglu_pad_multiple=64"]) == 0
    config = resolve(load_config(tmp_path / "run/config.yaml"), world_size=1, device="cpu")
    after_first, after_second = build_method(config), build_method(config)
    for step, method in ((1, after_first), (2, after_second)):
        load_weights(tmp_path / f"run/checkpoints/step_{step:08d}", method, HERE)
    for backbone, heads in networks(after_first):
        assert_same_bits(backbone, FLAT)
        assert_same_bits(heads, random_heads())
    moved = next(networks(after_second))[0]
    assert not torch.equal(moved["blocks.0.attn.qkv.weight"], FLAT["blocks.0.attn.qkv.weight"])


@pytest.mark.nightly
def test_two_ranks_start_from_the_same_weights_in_shards(teacher, tmp_path, photos):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "webssl_fast"]
    command += ["train", "configs/smoke/dinov2.yaml", f"data.source={photos}/train", f"method.init_from={teacher}"]
    command += ["method.dino_head.bottleneck_dim=24", "train.num_steps=1", f"output_dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    method = build_method(resolve(load_config(tmp_path / "run/config.yaml"), world_size=2, device="cpu"))
    load_weights(tmp_path / "run", method, HERE)
    for backbone, heads in networks(method):
        assert_same_bits(backbone, FLAT)
        assert_same_bits(heads, random_heads())
