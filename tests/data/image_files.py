"""Image files for the tests, good ones and nasty ones, made on the fly."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    """Smooth colours with a little noise, uint8 [H, W, 3]: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)
    waves = np.stack(
        [np.sin(x / 23 + y / 31 + phase[0]), np.cos(x / 17 - y / 41 + phase[1]), np.sin((x + y) / 29 + phase[2])]
    )
    return np.clip(128 + 90 * waves.transpose(1, 2, 0) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format_name: str = "JPEG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x112] = orientation
    return result


def png_16_bit_rgb(samples: np.ndarray) -> bytes:
    """Pillow writes no 16-bit RGB."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + _png_chunk(b"IDAT", zlib.compress(rows))
        + _png_chunk(b"IEND", b"")
    )


def claiming_65000x65000(format_name: str) -> bytes:
    """A small file whose header claims 65000 x 65000 pixels."""
    data = bytearray(encode(picture(), format_name))
    if format_name == "PNG":
        header = b"IHDR" + struct.pack(">II", 65000, 65000) + bytes(data[24:29])
        data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    elif format_name == "JPEG":
        frame = data.find(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    elif format_name == "GIF":
        data[6:10] = struct.pack("<HH", 65000, 65000)
    elif format_name == "WEBP":  # whose plain form ends at 16383 pixels: the canvas of an extended one claims more
        canvas = struct.pack("<I", 65000 - 1)[:3]
        chunks = b"WEBP" + b"VP8X" + struct.pack("<II", 10, 0) + canvas * 2 + bytes(data[12:])
        data[:] = b"RIFF" + struct.pack("<I", len(chunks)) + chunks
    return bytes(data)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
