import json
import time
from pathlib import Path

import pytest

from benchmarks import harness


def test_rivals_take_turns():
    calls: list[str] = []
    harness.time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert "".join(calls) == "ab" * 5


def test_percentiles_and_processor_time():
    naps = iter([0.0, 0.004, 0.012, 0.008])  # the first is the warm-up
    timing = harness.time_interleaved({"nap": lambda: time.sleep(next(naps))}, repeats=3)["nap"]
    assert 4 <= timing.p20_ms < timing.p50_ms < timing.p80_ms
    assert 8 <= timing.p50_ms < 12
    assert timing.cpu_ms < 4, "sleep costs no processor time"


def test_emits_a_line_that_says_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.emit("case", record="lines", size=3, ms=1.23456789)
    line = json.loads(capsys.readouterr().out)
    assert line == json.loads((tmp_path / "lines.jsonl").read_text())
    assert (line["case"], line["size"], line["ms"], line["device"]) == ("case", 3, 1.235, "cpu")
    assert {"cpu", "cores", "torch", "commit", "date"} <= line.keys()


def test_ceilings_are_rates():
    assert harness.gemm_tflop_per_s((64, 64, 64), repeats=1, device="cpu") > 0
