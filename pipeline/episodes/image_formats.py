"""Detects the kind of an encoded image by its first bytes."""

import re
from collections.abc import Mapping
from typing import Literal

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError

MAX_ENCODED_BYTES = 64 << 20
ImageKind = Literal["jpeg", "png", "webp", "gif", "bmp"]
_STARTS: Mapping[ImageKind, re.Pattern[bytes]] = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a.{7}", re.DOTALL),
    "bmp": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
}
PILLOW_FORMATS = tuple(kind.upper() for kind in _STARTS)


def sniff(data: bytes) -> ImageKind:
    """Returns the kind of an image, by its first bytes.

    Raises:
        BadEpisodeError: The kind is unknown, or the image is larger than `MAX_ENCODED_BYTES`.
    """
    if len(data) > MAX_ENCODED_BYTES:
        raise BadEpisodeError(f"image of {len(data)} bytes, the limit is {MAX_ENCODED_BYTES}")
    for kind, start in _STARTS.items():
        if start.match(data):
            return kind
    raise DamagedEpisodeError(f"image is neither JPEG nor PNG, nor WebP, GIF or BMP; it starts with {bytes(data[:8])!r}")
