import io
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.data.image_files import claiming_65000x65000, encode, exif, picture, png_16_bit_rgb
from webssl_fast.config.schema import DecodeConfig
from webssl_fast.data.decode import BadImage, PillowDecoder, make_decoder
from webssl_fast.errors import UserError

PICTURE = picture()
RGB = Image.fromarray(PICTURE)
RGBA = Image.fromarray(
    np.dstack([PICTURE, np.linspace(0, 255, PICTURE.size // 3).reshape(PICTURE.shape[:2]).astype(np.uint8)])
)
OTHER = Image.fromarray(picture(seed=1))
SAMPLES_16 = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)


@pytest.fixture(params=["nvimgcodec", "pillow"])
def backend(request):
    if request.param == "nvimgcodec":
        pytest.importorskip("nvidia.nvimgcodec")
    return request.param


@pytest.fixture
def decoder(backend):
    return make_decoder(DecodeConfig(backend=backend))


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def without_adobe_marker(jpeg):
    start = jpeg.find(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


GOOD = {
    "jpeg": encode(RGB),
    "jpeg 4:4:4": encode(RGB, subsampling=0),
    "jpeg progressive": encode(RGB, progressive=True),
    "jpeg gray": encode(RGB.convert("L")),
    "jpeg cmyk": encode(RGB.convert("CMYK"), quality=95),
    "jpeg cmyk not inverted": without_adobe_marker(encode(RGB.convert("CMYK"), quality=95)),
    "jpeg 1x1": encode(RGB.crop((0, 0, 1, 1))),
    "jpeg 1x7": encode(RGB.crop((0, 0, 7, 1))),
    "png": encode(RGB, "PNG"),
    "png alpha": encode(RGBA, "PNG"),
    "png gray alpha": encode(RGBA.convert("LA"), "PNG"),
    "png palette": encode(RGB.quantize(64), "PNG"),
    "png palette transparent": encode(RGB.quantize(64), "PNG", transparency=3),
    "png 1 bit": encode(RGB.convert("1"), "PNG"),
    "png animated": encode(RGB, "PNG", save_all=True, append_images=[OTHER]),
    "gif": encode(RGB.quantize(128), "GIF"),
    "gif animated": encode(RGB.quantize(128), "GIF", save_all=True, append_images=[OTHER.quantize(128)]),
    "webp": encode(RGB, "WEBP"),
    "webp alpha": encode(RGBA, "WEBP", lossless=True),
    "webp animated": encode(RGB, "WEBP", save_all=True, append_images=[OTHER]),
    "bmp": encode(RGB, "BMP"),
    "bmp palette": encode(RGB.quantize(64), "BMP"),
    "tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff cmyk": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff palette": encode(RGB.quantize(64), "TIFF"),
    "tiff fax": encode(RGB.convert("1"), "TIFF", compression="group4"),
    "tiff pages": encode(RGB, "TIFF", save_all=True, append_images=[OTHER]),
    "ppm": encode(RGB, "PPM"),
    "jpeg 2000": encode(RGB, "JPEG2000"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_equals_pillow(decoder, kind):
    (image,) = decoder.decode([GOOD[kind]])
    assert image.dtype == torch.uint8 and image.is_contiguous()
    expected = by_pillow(GOOD[kind])
    assert image.shape == expected.shape
    assert np.abs(image.numpy().astype(int) - expected).max() == 0


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_an_option(backend, format_name, orientation):
    data = encode(RGB, format_name, exif=exif(orientation))
    (turned,) = make_decoder(DecodeConfig(backend=backend)).decode([data])
    (stored,) = make_decoder(DecodeConfig(backend=backend, apply_exif_orientation=False)).decode([data])
    assert np.array_equal(turned, by_pillow(data))
    if format_name != "TIFF":  # which Pillow always turns
        assert np.array_equal(stored, by_pillow(encode(RGB, format_name)))


def test_16_bit_loses_the_low_byte(decoder):
    """Pillow's own conversion of 16-bit grayscale clips instead, so the expectation is written out."""
    gray = Image.fromarray(SAMPLES_16)
    pgm = b"P5\n50 40\n65535\n" + SAMPLES_16.astype(">u2").tobytes()
    expected = (SAMPLES_16 >> 8).astype(int)[:, :, None]
    for data in (encode(gray, "PNG"), encode(gray, "TIFF"), pgm, png_16_bit_rgb(np.dstack([SAMPLES_16] * 3))):
        (image,) = decoder.decode([data])
        assert image.shape == (40, 50, 3) and np.abs(image.numpy() - expected).max() <= 1


BAD = {
    "empty": b"",
    "garbage": np.random.default_rng(0).bytes(3000),
    "jpeg magic, then garbage": b"\xff\xd8\xff" + np.random.default_rng(0).bytes(3000),
    "web page": b"<html><body>404 not found</body></html>",
    "jpeg half": encode(RGB)[: len(encode(RGB)) // 2],
    "jpeg header only": encode(RGB)[:100],
    "jpeg progressive half": encode(RGB, progressive=True)[:-400],
    "png half": GOOD["png"][: len(GOOD["png"]) // 2],
    "gif half": GOOD["gif"][: len(GOOD["gif"]) // 2],
    "webp half": GOOD["webp"][: len(GOOD["webp"]) // 2],
    "bmp half": GOOD["bmp"][: len(GOOD["bmp"]) // 2],
    "float samples": encode(Image.fromarray(SAMPLES_16.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_fails_alone_with_a_reason(decoder, kind):
    first, bad, last = decoder.decode([GOOD["jpeg"], BAD[kind], GOOD["png"]])
    assert isinstance(bad, BadImage) and len(bad.reason) > 10
    assert np.array_equal(first, by_pillow(GOOD["jpeg"])) and np.array_equal(last, PICTURE)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP"])
def test_pixel_limit_is_read_from_the_header(decoder, format_name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (bad,) = decoder.decode([claiming_65000x65000(format_name)])
    assert isinstance(bad, BadImage) and "pixel" in bad.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; decoded it has 12.7 GB


def test_pixel_limit_is_a_setting(backend):
    decoder = make_decoder(DecodeConfig(backend=backend, max_pixels=PICTURE.size // 3 - 1))
    for kind in ("jpeg", "png", "gif", "tiff lzw"):
        (bad,) = decoder.decode([GOOD[kind]])
        assert isinstance(bad, BadImage) and "90 x 60 = 5400 pixels, above data.decode.max_pixels = 5399" in bad.reason


_DECODE_DAMAGED = """
import sys
import numpy as np
from tests.data.image_files import encode, exif, picture
from webssl_fast.config.schema import DecodeConfig
from webssl_fast.data.decode import make_decoder

rng = np.random.default_rng(int(sys.argv[2]))
files = [encode(picture(123, 187), "JPEG", exif=exif(orientation)) for orientation in (1, 2, 3, 6, 7)] * 3
files += [encode(picture(), "JPEG", progressive=True), encode(picture()[:, :, 0], "JPEG")]
files += [encode(picture(), name, exif=exif(6)) for name in ("PNG", "WEBP", "TIFF")]
files += [encode(picture(), name) for name in ("BMP", "GIF", "JPEG2000", "PPM")]
decoder = make_decoder(DecodeConfig(backend=sys.argv[1], max_pixels=1_000_000))
for data in files[1:5]:  # damaged where the orientation stands, and at the end
    damaged = bytearray(data)
    damaged[data.find(b"Exif") + 14], damaged[-1] = 0x79, 0xC7
    decoder.decode([bytes(damaged)] * 5)
for _ in range(int(sys.argv[3])):
    damaged = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 12)):
        damaged[rng.integers(min(len(damaged), 200) if rng.random() < 0.5 else len(damaged))] = rng.integers(256)
    decoder.decode([bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.3 else damaged)])
"""


def test_damaged_files_do_not_end_the_process(backend):
    """Decoders are native code, and a write outside a buffer shows late or never: glibc's checks find it.

    With nvImageCodec turning the images by itself, this fails.
    """
    arguments = [sys.executable, "-W", "ignore", "-c", _DECODE_DAMAGED, backend, "0", "4000"]
    checked = {**os.environ, "LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    process = subprocess.run(arguments, capture_output=True, text=True, env=checked)
    assert process.returncode == 0, process.stderr[-500:]


def test_second_chance_is_said_once_a_kind_and_counted(caplog):
    pytest.importorskip("nvidia.nvimgcodec")
    decoder = make_decoder(DecodeConfig(backend="nvimgcodec"))
    decoder.decode([GOOD["gif"], GOOD["jpeg"], GOOD["gif animated"], GOOD["jpeg cmyk"], BAD["garbage"]])
    assert decoder.num_by_pillow == {"GIF (P)": 2, "JPEG (CMYK)": 1}
    assert len(caplog.records) == 2 and "GIF (P)" in caplog.text


def test_auto_without_nvimgcodec_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert isinstance(make_decoder(DecodeConfig()), PillowDecoder)
    assert "pip install 'webssl_fast[dali]'" in caplog.text
    with pytest.raises(UserError, match="data.decode.backend=pillow"):
        make_decoder(DecodeConfig(backend="nvimgcodec"))


def test_threads_share_a_decoder(decoder):
    data = [GOOD["jpeg"], BAD["jpeg half"], GOOD["gif"], GOOD["webp"]] * 20
    alone = decoder.decode(data[:4])
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(decoder.decode, [data] * 4):
            for result, expected in zip(results, alone * 20, strict=True):
                if isinstance(expected, BadImage):
                    assert result == expected
                else:
                    assert torch.equal(result, expected)
