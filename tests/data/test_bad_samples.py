import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.image_files import write_folder, write_tar
from webssl_fast.data import bad_samples
from webssl_fast.data.bad_samples import BadSampleLog, BadShareLimit
from webssl_fast.data.index import Index
from webssl_fast.errors import UserError


@pytest.fixture
def index(tmp_path):
    return Index.open(str(write_folder(tmp_path / "images", {f"{i}.jpg": b"x" for i in range(50)})))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def test_each_sample_is_listed_once_also_after_a_restart(tmp_path, index):
    log = BadSampleLog(index, str(tmp_path))
    log.add(3, "broken")
    log.add(3, "broken")
    log.add(4, "empty")
    again = BadSampleLog(index, str(tmp_path))
    again.add(4, "empty")
    again.add(5, "torn")
    log.add(5, "torn")  # listed by the other process meanwhile
    found = lines(tmp_path / "bad_samples.jsonl")
    assert [entry["sample_id"] for entry in found] == [3, 4, 5]
    path = str(tmp_path / "images" / "3.jpg")
    assert found[0] == {"sample_id": 3, "name": "3.jpg", "path": path, "offset": 0, "size": -1, "reason": "broken"}


def test_shard_and_offset_are_listed(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 10, "b.jpg": b"y" * 20})
    BadSampleLog(Index.open(str(tar)), str(tmp_path)).add(1, "broken")
    (entry,) = lines(tmp_path / "bad_samples.jsonl")
    assert (entry["name"], entry["path"], entry["offset"], entry["size"]) == ("b", str(tar), 1536, 20)


def test_half_a_line_of_a_killed_process_spoils_nothing(tmp_path, index):
    BadSampleLog(index, str(tmp_path)).add(3, "broken")
    with open(tmp_path / "bad_samples.jsonl", "a") as file:
        file.write('{"sample_id": 4, "na')
    for _ in range(2):
        BadSampleLog(index, str(tmp_path)).add(5, "torn")
    text = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert len(text) == 3 and json.loads(text[0])["sample_id"] == 3 and json.loads(text[2])["sample_id"] == 5


def test_many_processes_and_threads_write_whole_lines(tmp_path, index):
    child = os.fork()
    with ThreadPoolExecutor(8) as pool:
        log = BadSampleLog(index, str(tmp_path))
        list(pool.map(lambda i: log.add(i % 50, "broken " * 20), range(500)))
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert {entry["sample_id"] for entry in lines(tmp_path / "bad_samples.jsonl")} == set(range(50))


def test_without_a_folder_nothing_is_written_but_the_first_is_said(index, caplog):
    log = BadSampleLog(index, None)
    log.add(3, "broken")
    log.add(4, "broken")
    assert len(caplog.records) == 1 and "3.jpg" in caplog.text


def test_the_list_is_bounded(tmp_path, index, monkeypatch, caplog):
    monkeypatch.setattr(bad_samples, "MAX_LISTED", 7)
    for _ in range(2):
        log = BadSampleLog(index, str(tmp_path))
        for sample_id in range(20):
            log.add(sample_id, "broken")
    assert [entry["sample_id"] for entry in lines(tmp_path / "bad_samples.jsonl")] == list(range(7))
    assert "lists 7 samples: further ones are only counted" in caplog.text


def test_limit_waits_for_enough_samples_and_names_the_file():
    limit = BadShareLimit(0.1, 100, "run/bad_samples.jsonl")
    limit.count(90, 90)
    with pytest.raises(UserError, match=r"91 of 100 samples \(91.0%\).*max_bad_share = 10.0%.*run/bad_samples.jsonl"):
        limit.count(10, 1)
    exactly = BadShareLimit(0.1, 100, "")
    exactly.count(100, 10)
