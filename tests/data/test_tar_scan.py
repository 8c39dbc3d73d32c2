"""Whatever the bytes of a shard are, scanning it ends, and what it finds lies within the file."""

import random

import pytest

from tests.data.image_files import write_tar
from webssl_fast.data.storage import Storage
from webssl_fast.data.tar_scan import TAR_BLOCK, scan_shard


def write_shard(path, tar_format):
    members = {
        f"{'long' * 40 if i % 3 == 0 else 'x'}/{i}.{e}": b"7" * (90 * i) for i in range(8) for e in ("jpg", "cls")
    }
    return write_tar(path, members, format=tar_format).read_bytes()


def check(path, size):
    scan = scan_shard(str(path), Storage())
    columns = (scan.blocks, scan.sizes, scan.leads, scan.labels, scan.key_hashes)
    assert len({len(column) for column in columns}) == 1
    assert all(b * TAR_BLOCK + s <= size for b, s in zip(scan.blocks, scan.sizes, strict=True))
    assert all(lead <= block for block, lead in zip(scan.blocks, scan.leads, strict=True))
    return scan


@pytest.mark.parametrize("tar_format", [1, 2], ids=["gnu", "pax"])
def test_flipped_bytes_never_raise(tmp_path, tar_format):
    whole = write_shard(tmp_path / "x.tar", tar_format)
    draws = random.Random(tar_format)
    num_damaged = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draws.choice([1, 3, 30])):
            data[draws.randrange(len(data) // 2)] = draws.randrange(256)
        (tmp_path / "bad.tar").write_bytes(data)
        num_damaged += any(problem.kind == "damaged" for problem in check(tmp_path / "bad.tar", len(data)).problems)
    assert num_damaged > 20


def checksummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(2**40), 2**33, 2**62])
def test_a_header_that_lies_about_its_size_ends_the_shard_there(tmp_path, size):
    """In base 256, as GNU tar writes sizes that eight octal digits cannot hold."""
    whole = bytearray(write_tar(tmp_path / "x.tar", {"a.jpg": b"1" * 600, "b.jpg": b"2" * 600}).read_bytes())
    second = bytearray(whole[1536:2048])
    assert second[:5] == b"b.jpg"
    second[124:136] = bytes([0xFF if size < 0 else 0x80]) + (size % 256**11).to_bytes(11, "big")
    whole[1536:2048] = checksummed(second)
    (tmp_path / "x.tar").write_bytes(whole)
    scan = check(tmp_path / "x.tar", len(whole))
    assert len(scan.blocks) == 1 and [problem.kind for problem in scan.problems] == ["damaged"]
