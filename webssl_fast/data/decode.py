"""JPEG, PNG, WebP, TIFF, GIF, ... bytes to uint8 RGB, one image failing by itself.

nvImageCodec decodes (libjpeg-turbo, OpenCV and libtiff on a CPU). What it cannot read, and what it reads otherwise than
Pillow does, goes to Pillow: GIF, AVIF, ICO, CMYK JPEGs, PNM, samples wider than 16 bits. The pixel limit is checked on
the header, before anything is allocated. Alpha is dropped, colour profiles are ignored, 16-bit samples lose their low
byte, of an animation the first frame counts. (`apply_exif_orientation: false` does not reach TIFFs that Pillow decodes:
it always turns these.)

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from webssl_fast.config.schema import DecodeConfig
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

_INSTALL = "pip install 'webssl_fast[dali]'"


@dataclass(frozen=True)
class BadImage:
    """What stands in the place of an image that could not be decoded."""

    reason: str


class Decoder(Protocol):
    """Thread-safe; decodes on the calling thread."""

    name: str

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        """uint8 [H, W, 3] for each image (contiguous, on the CPU), or the reason why there is none."""
        ...


def make_decoder(config: DecodeConfig) -> Decoder:
    """The decoder that the config asks for.

    `backend: auto` takes nvImageCodec, or, with a warning, Pillow where it is not installed.
    Raises UserError for `backend: nvimgcodec` where it is missing, and for `device: gpu`.
    """
    if config.device == "gpu":
        raise UserError(
            "data.decode.device: gpu is not available in this version (images are decoded on the host); "
            "set data.decode.device=cpu"
        )
    if config.backend == "pillow":
        return PillowDecoder(config)
    try:
        return NvImageCodecDecoder(config)
    except ImportError as error:
        if config.backend == "nvimgcodec":
            raise UserError(
                f"data.decode.backend: nvimgcodec is not installed ({error}): {_INSTALL}, or set "
                f"data.decode.backend=pillow"
            ) from error
        logger.warning(
            "nvImageCodec does not import (%s): decoding with Pillow, about a third slower. For the faster one: %s",
            error,
            _INSTALL,
        )
        return PillowDecoder(config)


class PillowDecoder:
    name = "pillow"

    def __init__(self, config: DecodeConfig):
        self._config = config
        # Our own limit stands in front; Pillow's must not warn or raise below it.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, config.max_pixels)

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        return [self.decode_one(data)[0] for data in encoded]

    def decode_one(self, data: bytes) -> tuple[Tensor | BadImage, str]:
        """The image, and its kind ("GIF (P)", format and mode; empty where no format was recognised)."""
        if not data:
            return BadImage("the file is empty"), ""
        kind = ""
        try:
            with Image.open(io.BytesIO(data)) as file:
                kind = f"{file.format} ({file.mode})"
                if too_large := _above_limit(file.height, file.width, self._config):
                    return too_large, kind
                file.load()
                return _to_rgb(ImageOps.exif_transpose(file) if self._config.apply_exif_orientation else file), kind
        except Image.UnidentifiedImageError:
            return BadImage(f"not an image of a known format (it starts with {data[:8]!r})"), kind
        except Exception as error:  # plugins raise all sorts (SyntaxError, struct.error, ...) on damaged files
            return BadImage(f"{type(error).__name__}: {error}"), kind


class NvImageCodecDecoder:
    name = "nvimgcodec"

    def __init__(self, config: DecodeConfig):
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it prints each bad image; bad_samples.jsonl lists them
        import nvidia.nvimgcodec as nvimgcodec

        self._codec = nvimgcodec
        self._config = config
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=config.apply_exif_orientation, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self._pillow = PillowDecoder(config)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self.num_by_pillow: dict[str, int] = {}  # images that Pillow decoded instead, by kind

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        results: list[Tensor | BadImage | None] = []
        streams = []
        for data in encoded:
            stream = self._codec.CodeStream(data) if data else None
            result, readable = self._look_at_header(stream)
            results.append(result)
            if readable:
                streams.append((len(results) - 1, stream))
        if streams:
            images = self._decoder().decode([stream for _, stream in streams], params=self._params)
            for (i, _), image in zip(streams, images, strict=True):
                results[i] = None if image is None else torch.from_numpy(np.asarray(image))
        return [self._second_chance(data) if r is None else r for data, r in zip(encoded, results, strict=True)]

    def _look_at_header(self, stream) -> tuple[BadImage | None, bool]:
        """(refusal, may be decoded here) from the header alone."""
        if stream is None:
            return None, False
        try:
            codec, wide = stream.codec_name, np.dtype(stream.dtype) not in (np.uint8, np.uint16)
            height = max(stream.height, stream.tile_height or 0)
            width = max(stream.width, stream.tile_width or 0)
        except RuntimeError:  # not a format of its own, or a damaged header
            return None, False
        if too_large := _above_limit(height, width, self._config):
            return too_large, False
        # Measured against Pillow: CMYK JPEGs without Adobe's marker come out inverted, 12-bit PNM dark.
        return None, not (wide or codec == "pnm" or (codec == "jpeg" and stream.num_channels == 4))

    def _decoder(self):
        # One decoder with one thread for each thread of ours: 1.4 times as fast as one decoder with a pool of its own.
        if not hasattr(self._thread, "decoder"):
            backends = [self._codec.Backend(self._codec.CPU_ONLY)]
            self._thread.decoder = self._codec.Decoder(
                device_id=self._codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends
            )
        return self._thread.decoder

    def _second_chance(self, data: bytes) -> Tensor | BadImage:
        image, kind = self._pillow.decode_one(data)
        if isinstance(image, Tensor):
            with self._lock:
                first = kind not in self.num_by_pillow
                self.num_by_pillow[kind] = self.num_by_pillow.get(kind, 0) + 1
            if first:
                logger.warning(
                    "nvImageCodec does not read %s images rightly: Pillow decodes them (said once a kind). Where they "
                    "are many, converting them to RGB JPEG, PNG or WebP makes loading faster.",
                    kind,
                )
        return image


def _above_limit(height: int, width: int, config: DecodeConfig) -> BadImage | None:
    if height * width <= config.max_pixels:
        return None
    return BadImage(
        f"its header claims {width} x {height} = {height * width} pixels, above data.decode.max_pixels = "
        f"{config.max_pixels}"
    )


def _to_rgb(image: Image.Image) -> Tensor | BadImage:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: all that is bright becomes white.
        samples = np.asarray(image)
        if image.mode == "F" or samples.min(initial=0) < 0 or samples.max(initial=0) > 0xFFFF:
            return BadImage(f"samples of mode {image.mode!r} have no defined range; convert the image to 8 or 16 bits")
        return torch.from_numpy(np.repeat((samples >> 8).astype(np.uint8)[:, :, None], 3, axis=2))
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))
