"""Storage and decoding on paper, against the same arithmetic by hand."""

from __future__ import annotations

import pytest

from benchmarks import data_needs
from benchmarks.plan_tables import planned


def test_rates_follow_the_plan():
    header, *rows = data_needs.needs(50, decode_ms=1.0, loader_ms=3.0, requests_per_image={1: 1.0, 16: 0.0625})
    assert len(rows) == 2 and all(len(row) == len(header) for row in rows)
    plan = planned(data_needs.CONFIGS[0], 256)
    rate = plan.config.train.global_batch_size / plan.seconds_per_step
    cells = dict(zip(header, rows[0], strict=True))
    assert cells["images/s (a GPU)"] == f"{rate:,.0f} ({rate / 256:,.0f})"
    assert float(cells["storage, GB/s (a node of 8)"].split()[0]) == pytest.approx(rate * 100e3 / 1e9, rel=0.01)
    assert cells["requests/s, `shuffle_run` 16"] == f"{rate / 16:,.0f}"
    # An image of 100 KB takes 2 ms to decode where one of 50 KB takes 1 ms, and 2 ms for the rest.
    assert float(cells["cores a GPU, decode"]) == pytest.approx(rate / 256 * 2e-3, abs=0.006)
    assert float(cells["cores a GPU, decode and crops"]) == pytest.approx(rate / 256 * 4e-3, abs=0.006)


def test_two_billion_images():
    assert data_needs.stored(12.0)[1] == ["2,000,000,000", "100 KB", "200 TB", "24 GB"]
