"""Which column a result belongs to, and what keeps it from being compared."""

import pytest

from tests.report.evaluations import CONFIGS_OF, content_of
from webssl_fast.report.measures import MEASURES
from webssl_fast.report.result_files import Result

BY_NAME = {measure.name: measure for measure in MEASURES}


def columns_of(result):
    return {name: measure.value(result) for name, measure in BY_NAME.items() if measure.value(result) is not None}


@pytest.mark.parametrize("config", [config for configs in CONFIGS_OF.values() for config in configs])
def test_each_config_fills_its_own_column_without_departures(config):
    result = Result.model_validate(content_of(config))
    value = {"ade": 45.678, "nyu": 0.36549, "ima": 84.321}[config[:3]]
    assert columns_of(result) == {config: pytest.approx(value)}
    assert BY_NAME[config].departures(result) == []


def test_imagenet_takes_the_test_images_where_there_are_some():
    content = content_of("linear_probe")
    assert columns_of(Result.model_validate(content)) == {"imagenet1k_linear_probe": pytest.approx(84.321)}
    content["scores"] = content["scores"] | {"best_on_val/test_top1": 0.5}
    assert columns_of(Result.model_validate(content)) == {"imagenet1k_linear_probe": 50.0}


@pytest.mark.parametrize("evaluation", ["knn", "logistic_regression", "alignment"])
def test_what_the_paper_does_not_tell_has_no_column(evaluation):
    assert columns_of(Result.model_validate(content_of(evaluation))) == {}


def test_departures_are_told_with_both_values():
    content = content_of("ade20k_linear")
    content["config"] |= {"num_steps": 20, "test_flip": True, "num_pictures": 9, "source": "x", "allow_subset": True}
    content["data"] = {"train_images": 40, "complete": False}
    assert BY_NAME["ade20k_linear"].departures(Result.model_validate(content)) == [
        "a subset of the data",
        "40 train images instead of 20,210",
        "an unknown number of test images instead of 2,000",
        "test_flip true instead of false",
        "num_steps 20 instead of 40000",
    ]


def test_the_last_depth_head_is_not_the_published_choice():
    content = content_of("nyud_lin4")
    content["config"]["pick_best_every"] = None
    assert BY_NAME["nyud_lin4"].departures(Result.model_validate(content)) == ["pick_best_every null instead of 800"]


def test_other_classes_and_shorter_training_are_no_imagenet():
    measure = BY_NAME["imagenet1k_linear_probe"]
    assert measure.departures(Result.model_validate(content_of("linear_probe"))) == []
    digits = {"train_images": 1197, "val_images": 300, "classes": 10}
    config = {"num_steps": 12, "encode_batch_size": 32, "val_source": "digits/val"}
    assert measure.departures(Result.model_validate(content_of("linear_probe", data=digits, config=config))) == [
        "1,197 train images instead of 1,281,167",
        "300 val images instead of 50,000",
        "10 classes instead of 1,000",
        "num_steps 12 instead of 12500",
    ]


def test_odd_settings_do_no_harm():
    for config in ({"test_scales": 5}, {"test_scales": None}, {}):
        assert "ade20k_multiscale" not in columns_of(Result.model_validate(content_of("segmentation", config=config)))
    assert columns_of(Result.model_validate(content_of("depth", config={}))) == {}
