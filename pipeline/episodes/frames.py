"""Encoded frames: what they are, whether they are whole, their pixels, and how they are kept in an episode shard.

What an image is, its first bytes say; what a spec says about it is not believed. Shrinking decodes a JPEG straight to the
smallest DCT scale that is still large enough and finishes with an antialiased bicubic: twice as fast as decoding every pixel
and, at 256 to 80 pixels, 40 dB from area averaging (a box filter after DCT scaling: 32 dB).
"""

import functools
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.common.errors import BadEpisodeError, ConfigError, DamagedEpisodeError
from pipeline.config.recipe import DataConfig, FrameEncoding
from pipeline.episodes.image_formats import PILLOW_FORMATS, ImageKind, sniff
from pipeline.episodes.image_integrity import is_truncated, passes_integrity_check
from pipeline.episodes.thumbnails import thumbnail

MAX_PIXELS = 50_000_000
_CROP_MARGIN = 1.25
_TURBO_COLOURS = ("YCbCr", "Gray", "RGB")  # what simplejpeg decodes to RGB; print colours go through Pillow
# libjpeg's warnings that leave the pixels whole: stray bytes before a marker, as webcams leave them, and headers that state
# what it doesn't know. It tells the first warning alone.
_HARMLESS = re.compile(r"(\d+) extraneous bytes before marker|unknown JFIF revision|Unknown Adobe color transform")


class Frame(bytes):
    """An encoded frame, and what was seen on the way; everywhere else it is bytes like any other.

    Attributes:
        tolerated: It decoded with a warning that leaves its pixels whole.
    """

    tolerated: bool = False


class MadeFrame(Frame):
    """An encoded frame that was made of pixels just now, and remembers a few of them.

    It spares `pipeline.episodes.quality` the decoding.

    Attributes:
        thumbnail: See `thumbnail`.
        pixels: All of them, (H, W, 3) uint8, before they were encoded; None but where `FrameForm.keep` was told to.
    """

    thumbnail: np.ndarray
    pixels: np.ndarray | None = None


class _Header(NamedTuple):
    """What an image's header says; parsed once, since it costs a hundredth of decoding a frame."""

    kind: ImageKind
    size: tuple[int, int]
    colours: str


def _header(data: bytes) -> _Header:
    kind, colours = sniff(data), ""
    if kind == "png":
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise DamagedEpisodeError("PNG without a header")
        height, width = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    elif kind != "jpeg":
        if (size := _pillow_size(data)) is None:
            raise DamagedEpisodeError(f"{kind.upper()} header is damaged")
        height, width = size
    else:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            # Pillow decodes what this decoder won't even begin.
            size = _pillow_size(data) if _HARMLESS.search(str(error)) else None
            if size is None:
                raise DamagedEpisodeError(f"JPEG header is damaged: {error}") from error
            height, width = size
    if not 0 < height * width <= MAX_PIXELS:
        raise BadEpisodeError(f"image of {height} x {width} pixels, the limit is {MAX_PIXELS} in all")
    return _Header(kind, (height, width), colours)


def _pillow_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an image by Pillow; None where it doesn't know."""
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            return image.height, image.width
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return None


def dimensions(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        BadEpisodeError: The header is damaged, or states more pixels than any frame should have.
    """
    return _header(data).size


class _Decoded(NamedTuple):
    """Pixels, (H, W, 3) uint8, and whether a warning was passed over for them."""

    pixels: np.ndarray
    tolerated: bool = False


def decode(data: bytes, checksummed: bool = False) -> np.ndarray:
    """The pixels of an encoded image, (H, W, 3) uint8, RGB.

    Args:
        data: Of a kind that `sniff` knows.
        checksummed: See `FrameForm.keep`.

    Raises:
        BadEpisodeError: The image is damaged, too large, or no 8-bit image.
    """
    return _decode(data, _header(data), None, checksummed).pixels


def _decode(data: bytes, header: _Header, least: tuple[int, int] | None, checksummed: bool) -> _Decoded:
    """The pixels; with `least` (height, width) a JPEG may come out at the smallest DCT scale that is no smaller.

    Where no checksum guards the bytes, every warning means damage: stray bytes are what a flipped bit leaves too.
    """
    try:
        if header.colours in _TURBO_COLOURS:
            return _decode_turbo(data, least or (0, 0), checksummed)
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if getattr(image, "is_animated", False):
                raise BadEpisodeError("image is a film of several pictures, not one frame")
            if image.mode.startswith(("I", "F")):
                raise BadEpisodeError(f"image has {image.mode} pixels, not 8-bit colour: is it a depth camera?")
            return _Decoded(np.array(image.convert("RGB")))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedEpisodeError(f"image is damaged: {error}") from error


def _decode_turbo(data: bytes, least: tuple[int, int], checksummed: bool) -> _Decoded:
    height, width = least
    try:
        return _Decoded(simplejpeg.decode_jpeg(data, min_height=height, min_width=width))
    except ValueError as error:
        # Behind the first warning others may hide, which tell of a picture that is cut short.
        found = _HARMLESS.search(str(error))
        if found is None or not checksummed or is_truncated(data, int(found[1] or 0)):
            raise
    return _Decoded(simplejpeg.decode_jpeg(data, min_height=height, min_width=width, strict=False), tolerated=True)


def _decode_at(data: bytes, header: _Header, size: tuple[int, int], checksummed: bool) -> _Decoded:
    """The pixels shrunk to `size` (height, width)."""
    pixels, tolerated = _decode(data, header, size, checksummed)
    return _Decoded(shrink(pixels, size, _extent(header.size, pixels.shape[:2])), tolerated)


@functools.lru_cache
def _extent(size: tuple[int, int], scaled: tuple[int, int]) -> tuple[float, float]:
    """(height, width) that a picture of `size` has in its pixels at a DCT scale, which are `scaled`.

    A scale is n eighths; where that is no whole number of pixels, the last row and column reach beyond the picture.
    """
    height, width = size
    eighths = next(n for n in range(8, 0, -1) if -(-height * n // 8) <= scaled[0] and -(-width * n // 8) <= scaled[1])
    return height * eighths / 8, width * eighths / 8


def shrunk_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after shrinking the short side to `short_side`, aspect kept; unchanged where it is small enough."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def shrunk_to(form: Mapping[str, Any], short_sides: Iterable[int]) -> int | None:
    """The short side to which episodes were shrunk; None where all are as large as their source has them.

    Args:
        form: A `FrameForm` as a record has it.
        short_sides: Of the episodes' frames, in pixels.
    """
    side = form.get("short_side")
    return side if side is not None and side in set(short_sides) else None


def require_detail(shrunk: int | None, side: int, where: str) -> None:
    """Refuse to enlarge to `side` pixels what was shrunk below that, since its source has more to show.

    Args:
        shrunk: See `shrunk_to`.
        side: Of the square frames that are wanted, in pixels.
        where: The shard or data set, for the message.

    Raises:
        ConfigError: It was.
    """
    if shrunk is not None and shrunk < side:
        raise ConfigError(
            f"{where}: frames were shrunk to {shrunk} pixels when they were ingested, fewer than the {side} that are wanted "
            f"here: ingest again with --data.resolution {side}, with --overwrite or into another folder"
        )


def shrink(pixels: np.ndarray, size: tuple[int, int], extent: tuple[float, float] | None = None) -> np.ndarray:
    """Shrink pixels with an antialiased filter.

    Args:
        pixels: (H, W, 3) uint8.
        size: (height, width) of the result; where that is the size of `pixels`, it is returned as it is.
        extent: (height, width) of the part of `pixels`, from its top left, that is the picture; by default all of it.
    """
    height, width = extent or pixels.shape[:2]
    if pixels.shape[:2] == size == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(0, 0, width, height)))


def decode_small(data: bytes, side: int) -> tuple[np.ndarray, bool]:
    """The pixels of a JPEG at the smallest DCT scale with both sides no smaller than `side`; a PNG comes out as it is.

    Returns:
        The pixels, and whether a warning that leaves them whole was passed over.

    Raises:
        BadEpisodeError: See `decode`.
    """
    return _decode(data, _header(data), (side, side), True)


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG at full colour resolution (4:4:4)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class FrameForm:
    """In which form frames are kept.

    Attributes:
        encoding: `source`, `jpeg` or `png`.
        short_side: To which `jpeg` and `png` shrink the short side, in pixels; None keeps the size. Nothing is enlarged.
        quality: Of JPEG.
    """

    encoding: FrameEncoding = "jpeg"
    short_side: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.encoding == "source" and self.short_side is not None:
            raise ValueError("frames that are left as they are keep their size")

    @classmethod
    def of(cls, data: DataConfig) -> "FrameForm":
        """The form that a recipe asks for: a short side of 1.25 x its resolution, so that crops of 0.8 need no upsampling."""
        if data.frames == "source":
            return cls("source")
        return cls(data.frames, math.ceil(_CROP_MARGIN * data.resolution), data.jpeg_quality)

    def keep(
        self, data: bytes, swap: bool = False, checksummed: bool = True, with_pixels: bool = False
    ) -> tuple[bytes, tuple[int, int]]:
        """An encoded image in this form.

        `source` returns the bytes as they are; so does `jpeg` for a JPEG that is small enough, since a second
        compression would only cost quality.

        Args:
            data: Of a kind that `sniff` knows.
            swap: Whether red and blue are swapped in it. Repair needs new bytes: PNG under `source`, so that nothing is lost.
            checksummed: Whether `data` agreed with a checksum of the file it comes from. A JPEG that did not is decoded even
                where its bytes stay as they are, and each of the decoder's warnings means damage.
            with_pixels: Whether a frame that is made anew remembers all its pixels, for whoever would decode it otherwise.

        Returns:
            The bytes, a `Frame` where something was seen of them, and (height, width).

        Raises:
            BadEpisodeError: The image is damaged or too large.
        """
        header = _header(data)
        size = header.size if self.short_side is None else shrunk_size(*header.size, self.short_side)
        as_is = self.encoding == "source" or (self.encoding == header.kind and size == header.size)
        if as_is and not swap:
            seen = not passes_integrity_check(data) or not (checksummed or header.kind == "png")
            if seen and _decode(data, header, None, checksummed).tolerated:
                data = Frame(data)
                data.tolerated = True
            return data, header.size
        pixels, tolerated = _decode_at(data, header, size, checksummed)
        made = self._made(pixels, swap, with_pixels)
        made.tolerated = tolerated
        return made, size

    def keep_pixels(self, pixels: np.ndarray, swap: bool = False) -> tuple[bytes, tuple[int, int]]:
        """Pixels in this form; `source` keeps them as PNG.

        Args:
            pixels: (H, W, 3) uint8.
            swap: Whether red and blue are swapped in it.

        Returns:
            The bytes, a `MadeFrame`, and (height, width).
        """
        height, width = pixels.shape[:2]
        size = (height, width) if self.short_side is None else shrunk_size(height, width, self.short_side)
        return self._made(shrink(np.ascontiguousarray(pixels), size), swap), size

    def _made(self, pixels: np.ndarray, swap: bool, with_pixels: bool = False) -> MadeFrame:
        """Pixels of the size that they are kept in, encoded; `source` has them as PNG."""
        if swap:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        frame = MadeFrame(encode_jpeg(pixels, self.quality) if self.encoding == "jpeg" else encode_png(pixels))
        frame.thumbnail = thumbnail(pixels)
        if with_pixels:
            frame.pixels = pixels
        return frame
