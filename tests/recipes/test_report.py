"""`webssl report` of one directory and of several."""

from tests.report.evaluations import write_result
from webssl_fast.cli import main


def test_directories_of_evaluations(tmp_path, capsys):
    first, second = write_result(tmp_path / "a", "nyud_lin1"), write_result(tmp_path / "b", "ade20k_linear")
    assert main(["report", str(first), str(second), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "a/eval/depth.json" in page and "b/eval/segmentation.json" in page
    assert (tmp_path / "page_tables.csv").is_file() and not (first / "report.html").exists()
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().out


def test_a_directory_that_is_none(tmp_path, capsys):
    write_result(tmp_path / "a", "nyud_lin1")
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "empty")]) == 1
    assert "empty is not a run: it has no config.yaml and no eval folder" in capsys.readouterr().err
    assert not (tmp_path / "a" / "report.html").exists()
