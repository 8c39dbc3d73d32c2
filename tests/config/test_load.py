import pytest

from webssl_fast.config.load import changed_keys, load_config, save_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


def test_overrides_beat_file_beats_base_beats_defaults(tmp_path):
    write(tmp_path / "base.yaml", "seed: 1\ntrain: {num_steps: 10, log_every: 3}\n")
    path = write(tmp_path / "run.yaml", "base: base.yaml\ntrain: {num_steps: 20}\n")
    config = load_config(path, ["train.log_every=7", "optim.base_lr=1e-3", "eval.knn.features=[cls]"])
    assert (config.seed, config.train.num_steps, config.train.log_every) == (1, 20, 7)
    assert config.optim.base_lr == 1e-3
    assert config.eval.knn.features == ("cls",)
    assert config.train.precision == RunConfig().train.precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {num_step: 5}", "train.num_step: unknown key; did you mean train.num_steps?"),
        ("num_steps: 5", "did you mean train.num_steps?"),
        ("train: {log_every: abc}", "train.log_every: .*integer.*got 'abc'"),
        ("method: {dino_head: {num_prototypes: 0}}", "method.dino_head.num_prototypes: .*2, got 0"),
        ("method: {blur: strong}", "'as_trained' or 'as_written', got 'strong'"),
        ("data: {decode: {backend: pillow, device: gpu}}", "data.decode: .*set backend to auto or nvimgcodec"),
        ("method: {local_crops: {num: 8, size_px: 98, scale: [0.5, 0.2]}}", "low <= high"),
        ("seed: 1\nseed: 2", "line 2: the key 'seed' stands twice"),
        ("- 1", "must hold a mapping"),
        ("a: [", "not valid YAML"),
        ("base: nowhere.yaml", "no config file .*nowhere.yaml"),
        (
            "method: {name: maee}",
            "method.name: 'maee' is no method; allowed: 'dinov2', 'mae', 'ijepa', 'clip', 'siglip'",
        ),
    ],
)
def test_mistakes_are_explained(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path / "run.yaml", text))


def test_a_mistyped_file_name_suggests_the_near_one(tmp_path):
    write(tmp_path / "quickstart.yaml", "")
    with pytest.raises(ConfigError, match="did you mean .*quickstart.yaml"):
        load_config(tmp_path / "quickstrat.yaml")


def test_override_must_be_an_assignment(tmp_path):
    path = write(tmp_path / "run.yaml", "")
    with pytest.raises(ConfigError, match="key=value"):
        load_config(path, ["train.num_steps"])


def test_saved_config_is_the_effective_one(tmp_path):
    path = write(tmp_path / "run.yaml", "train: {global_batch_size: 24}\n")
    config = resolve(load_config(path), world_size=2, device="cpu")
    save_config(config, tmp_path / "effective.yaml")
    again = load_config(tmp_path / "effective.yaml")
    assert again == config
    assert again.train.micro_batch_size == 12 and again.train.group_size == 12
    assert changed_keys(config, resolve(again, world_size=1, device="cpu")) == []


def test_default_group_does_not_depend_on_the_ranks(tmp_path):
    config = load_config(write(tmp_path / "run.yaml", "train: {global_batch_size: 64}\n"))
    assert {resolve(config, world_size=w, device="cpu").train.group_size for w in (1, 2, 4)} == {16}


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["train.sharding.num_replicas=3"], 4, "num_replicas is 3, which does not divide 4 ranks; allowed: 1, 2, 4"),
        (["train.student_weights=bf16"], 1, "optim.implementation is torch, .*set optim.implementation=torchao_8bit"),
        (["train.teacher_weights=bf16", "train.precision=fp32"], 1, "train.teacher_weights is bf16; set .*precision"),
        (["train.fp8=teacher", "train.precision=fp32"], 1, "train.fp8=teacher stands on bf16"),
        (["train.global_batch_size=30"], 4, "does not divide among 4 ranks; 28 and 32 do"),
        (["train.global_batch_size=32", "train.micro_batch_size=5"], 1, "micro_batch_size is 5.*allowed: 1, 2, 4"),
        (["train.global_batch_size=32", "train.group_size=6"], 1, "group_size is 6.*allowed: 1, 2, 4"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, overrides, world_size, expected):
    config = load_config(write(tmp_path / "run.yaml", ""), overrides)
    with pytest.raises(ConfigError, match=expected):
        resolve(config, world_size=world_size, device="cpu")


def test_decoding_on_a_gpu_needs_computing_there(tmp_path):
    config = load_config(write(tmp_path / "run.yaml", ""), ["data.decode.device=gpu", "train.device=cpu"])
    assert resolve(config, world_size=1, device="cuda").data.decode.device == "gpu"
    with pytest.raises(ConfigError, match="data.decode.device is gpu.*train.device is cpu.*data.decode.device=cpu"):
        resolve(config, world_size=1, device="cpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.segmentation.stride_px=513", "stride_px must be at most crop_px 512"),
        ("eval.segmentation.train_scales=[2, 1]", "train_scales must be"),
        ("eval.segmentation.test_scales=[]", "test_scales must name one at least"),
        ("eval.depth.min_depth_m=10", "min_depth_m must be below max_depth_m 10"),
        ("eval.depth.images_per_loss=3", "global_batch_size must be a multiple of images_per_loss 3"),
        ("eval.depth.test_box_px=[45, 471, 601, 41]", "test_box_px must be"),
    ],
)
def test_dense_settings_that_cannot_run_are_refused(tmp_path, override, message):
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml", [override])
