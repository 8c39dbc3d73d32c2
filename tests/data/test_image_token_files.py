"""Image tokens on disk: each record's own, bit for bit in bf16, and what is missing is known."""

from __future__ import annotations

import numpy as np
import torch

from webssl_fast.data import image_token_files
from webssl_fast.data.image_token_files import ImageTokenFiles

IDS = np.array([2, 3, 7, 11, 20])


def files(folder, ids=IDS, **identity) -> ImageTokenFiles:
    return ImageTokenFiles(folder, {"encoder": "a", **identity}, ids, num_tokens=4, width=3)


def test_each_record_finds_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(image_token_files, "SHARD_RECORDS", 2)
    tokens = torch.randn(5, 4, 3)
    written = files(tmp_path)
    assert written.missing() == [0, 1, 2]
    written.write(0, IDS[:2], tokens[:2])
    written.write(2, IDS[4:], tokens[4:])
    assert files(tmp_path).missing() == [1], "what an interrupted computation left is kept"
    written.write(1, IDS[3:4], tokens[3:4])  # the image of record 7 could not be used
    read = files(tmp_path)
    assert read.missing() == [] and read.read(7) is None
    for place in (0, 1, 3, 4):
        assert torch.equal(read.read(int(IDS[place])), tokens[place].bfloat16())


def test_a_shard_may_hold_nothing(tmp_path):
    written = files(tmp_path)
    written.write(0, IDS[:0], torch.empty(0, 4, 3))
    assert written.read(2) is None and written.missing() == []


def test_other_encoders_and_records_have_other_files(tmp_path):
    assert len({files(tmp_path).folder, files(tmp_path, encoder="b").folder, files(tmp_path, IDS[:4]).folder}) == 3
