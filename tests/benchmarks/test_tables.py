"""The documents' tables say what the result lines say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables


@pytest.mark.parametrize("path", tables.documents(), ids=lambda p: p.name)
def test_tables_are_up_to_date(path: Path):
    assert tables.rewritten(path.read_text()) == path.read_text(), "run python -m benchmarks.tables"


def test_the_last_line_of_a_case_counts(tmp_path: Path):
    lines = [
        {"case": "train_step", "preset": "a", "ms": 1},
        {"case": "train_step", "preset": "b", "ms": 2},
        {"case": "other", "preset": "a", "ms": 3},
        {"case": "train_step", "preset": "a", "ms": 4},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [line["ms"] for line in tables.result_lines("train_step", ("preset",), tmp_path)] == [4, 2]


def test_a_typed_in_figure_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tables.TABLES, "speed", lambda: "measured\n")
    text = "before\n<!-- table: speed -->\ntyped in\n<!-- /table -->\nafter\n"
    assert tables.rewritten(text) == "before\n<!-- table: speed -->\nmeasured\n<!-- /table -->\nafter\n"


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError, match="nothing"):
        tables.rewritten("<!-- table: nothing -->\n<!-- /table -->")
