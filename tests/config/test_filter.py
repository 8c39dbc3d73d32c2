import pytest

from webssl_fast.config.filter import FilterConfig, OcrConfig, VlmConfig
from webssl_fast.config.load import load_config_of, save_config
from webssl_fast.errors import ConfigError


def load(tmp_path, text: str, *overrides: str) -> FilterConfig:
    (tmp_path / "filter.yaml").write_text(text)
    return load_config_of(FilterConfig, tmp_path / "filter.yaml", overrides)


def test_a_judge_is_chosen_by_its_name(tmp_path):
    assert load(tmp_path, "").judge == OcrConfig()
    assert load(tmp_path, "judge: {max_side_px: 500}").judge == OcrConfig(max_side_px=500)
    assert load(tmp_path, "judge: {name: vlm}", "judge.batch_size=4").judge == VlmConfig(batch_size=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("judge: {max_size_px: 5}", "judge.max_size_px: unknown key; did you mean judge.max_side_px?"),
        (
            "judge: {name: vlm, max_side_px: 5}",
            "judge.max_side_px: unknown key; .*judge.max_side_px|allowed here: .*model",
        ),
        ("judge: {thresholds: {confidense: 0.5}}", "did you mean judge.thresholds.confidence?"),
        ("judge: {thresholds: {confidence: 0.99}}", "judge.thresholds.confidence: .*0.95, got 0.99"),
        ("judge: {name: clip}", "judge.name: 'clip' is no judge; allowed: 'ocr', 'vlm'"),
        ("data: {sorce: x}", "did you mean data.source?"),
        ("data: {shuffle_run: 4}", "data.shuffle_run: unknown key; allowed here: .*source"),
        ("data: {decode: {device: gpu}}", "data: decode.device=gpu is for training"),
        ("samples_per_part: 0", "samples_per_part: .*greater than 0, got 0"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, text)


def test_a_saved_config_is_the_same_one(tmp_path):
    config = load(tmp_path, "judge: {name: vlm, thresholds: {light: 0.3}}", "data.source=photos")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config_of(FilterConfig, tmp_path / "saved.yaml") == config
