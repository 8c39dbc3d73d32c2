"""The published rows: complete, in the tables' columns, and as the paper prints them."""

from webssl_fast.report.measures import MEASURES
from webssl_fast.report.published import published_rows


def test_rows_are_in_the_columns_of_the_table():
    rows = published_rows()
    assert len(rows) == 13 and sum(row.encoder.startswith("Web-DINO") for row in rows) == 9
    names = [measure.name for measure in MEASURES]
    for row in rows:
        assert set(row.printed) <= set(names) and "imagenet1k_linear_probe" in row.printed and row.source
        assert all((float(value) < 1) == name.startswith("nyud") for name, value in row.printed.items())


def test_figures_keep_their_digits():
    by_name = {(row.encoder, row.detail): row for row in published_rows()}
    row = by_name["Web-DINO ViT-7B", "8 B images seen, 224 px"]
    assert list(row.printed.values()) == ["86.52", "42.14", "52.55", "0.491", "0.376"]
    assert by_name["Web-DINO ViT-1B", "2 B images seen, 224 px"].printed["imagenet1k_linear_probe"] == "84.70"
    assert by_name["SigLIP", "384 px"].printed == {"imagenet1k_linear_probe": "87.3"}
