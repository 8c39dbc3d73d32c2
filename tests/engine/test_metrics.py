import json
import resource

import pytest
import torch

from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.jsonl import JsonLines, cut_back
from webssl_fast.engine.metrics import Clock, MetricsWindow, model_flops_share

CPU = Distributed(torch.device("cpu"))


def fill(window, values, found_inf=0.0):
    window.add({"loss": torch.tensor(values[0]), "koleo": torch.tensor(values[1])}, 0.5)
    window.add({"loss": torch.tensor(values[0] + 2), "koleo": torch.tensor(values[1])}, 0.5, num_bad=1)
    window.add({"grad_norm/head": torch.tensor(1.0)})
    window.close_step(torch.tensor(found_inf))


def test_window_averages_over_steps_and_micro_batches():
    window = MetricsWindow(CPU)
    fill(window, (1.0, 5.0))
    fill(window, (3.0, 7.0))
    assert window.read() == ({"loss": 3.0, "koleo": 6.0, "grad_norm/head": 1.0}, 2)
    fill(window, (7.0, 1.0))
    assert window.read() == ({"loss": 8.0, "koleo": 1.0, "grad_norm/head": 1.0}, 1)


def test_skipped_steps_are_left_out_of_the_averages():
    window = MetricsWindow(CPU)
    fill(window, (1.0, 5.0))
    fill(window, (float("nan"), float("inf")), found_inf=1.0)
    values, num_bad = window.read()
    assert values == {"loss": 2.0, "koleo": 5.0, "grad_norm/head": 1.0}
    assert num_bad == 2  # replaced all the same
    fill(window, (float("nan"), 1.0), found_inf=1.0)
    assert str(window.read()[0]["loss"]) == "nan"


def test_window_goes_on_exactly_from_its_state():
    whole, first = MetricsWindow(CPU), MetricsWindow(CPU)
    for window in (whole, first):
        fill(window, (0.1, 0.2))
    second = MetricsWindow(CPU)
    second.restore(json.loads(json.dumps(first.state())))
    for window in (whole, second):
        fill(window, (0.3, 0.7))
    assert whole.read() == second.read()


def test_window_of_other_ranks_keeps_its_average():
    state = {"names": ["loss"], "sums": [[1.0, 2.0], [5.0, 2.0]], "num_bad": [1, 3]}
    window = MetricsWindow(CPU)
    window.restore(state)
    assert window.read() == ({"loss": 1.5}, 4)


def test_changing_metric_names_are_an_error():
    window = MetricsWindow(CPU)
    fill(window, (1.0, 1.0))
    window.add({"other": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="same names at every step"):
        window.close_step(torch.tensor(0.0))


def test_lines_are_cut_back_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).append([{"step": step, "loss": 0.5} for step in (0, 10, 20, 30)])
    with open(path, "a") as file:
        file.write('{"step": 15, "lo')
    cut_back(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 10, 20]
    cut_back(path, 20)
    cut_back(tmp_path / "absent.jsonl", 20)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_numbers_that_json_lacks_become_null(tmp_path):
    JsonLines(tmp_path / "x.jsonl").append([{"step": 1, "loss": float("nan"), "koleo": float("inf"), "lr": 1e-4}])
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1, "loss": null, "koleo": null, "lr": 0.0001}\n'


def test_clock_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()
    for _ in range(4):
        now[0] += 0.5
        clock.tick()
    with clock.paused():
        now[0] += 1000
    assert clock.read(16, data_wait_s=0.5) == {"samples_per_second": 32.0, "data_wait_share": 0.25}
    now[0] += 1.0
    clock.tick()
    assert clock.read(16, data_wait_s=0.75) == {"samples_per_second": 16.0, "data_wait_share": 0.25}


def test_model_flops_share_of_a_known_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    two = Distributed(torch.device("cuda", 0), world_size=2)
    assert model_flops_share(1e12, 989.4, two) == pytest.approx(0.5)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert model_flops_share(1e12, 756.0, two) == pytest.approx(0.5)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Some GPU")
    assert model_flops_share(1e12, 1.0, two) is None
    assert model_flops_share(1e12, 1.0, CPU) is None


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path, caplog):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"step": 1}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # room for half of the next line
    try:
        lines.append([{"step": 2}])
        lines.append([{"step": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1}\n'
    assert caplog.text.count("cannot be written") == 1
    lines.append([{"step": 4}])
    assert [json.loads(line)["step"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
