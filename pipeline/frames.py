"""Encoded frames: what they are, whether they are whole, their pixels, and how they are kept in an episode shard.

What an image is, its first bytes say; what a spec says about it is not believed. Shrinking decodes a JPEG straight to the
smallest DCT scale that is still large enough and finishes with an antialiased bicubic: twice as fast as decoding every pixel
and, at 256 to 80 pixels, 40 dB from area averaging (a box filter after DCT scaling: 32 dB).
"""

import functools
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.errors import BadEpisodeError, ConfigError, DamagedEpisodeError
from pipeline.image_scan import looks_whole
from pipeline.recipe import DataConfig, FrameEncoding

# Points of a thumbnail along each side.
THUMBNAIL_SIDE = 16
MAX_PIXELS = 50_000_000
MAX_ENCODED_BYTES = 64 << 20
_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_CROP_MARGIN = 1.25
_TURBO_COLOURS = ("YCbCr", "Gray", "RGB")  # what simplejpeg decodes to RGB; print colours go through Pillow


class MadeFrame(bytes):
    """An encoded frame that was made of pixels just now, and remembers a few of them.

    It spares `pipeline.quality` the decoding. Everywhere else it is bytes like any other.

    Attributes:
        thumbnail: See `thumbnail`.
        pixels: All of them, (H, W, 3) uint8, before they were encoded; None but where `FrameForm.keep` was told to.
    """

    thumbnail: np.ndarray
    pixels: np.ndarray | None = None


class _Header(NamedTuple):
    """What an image's header says; parsed once, since it costs a hundredth of decoding a frame."""

    kind: Literal["jpeg", "png"]
    size: tuple[int, int]
    colours: str


def sniff(data: bytes) -> Literal["jpeg", "png"]:
    """What kind of image `data` is, by its first bytes.

    Raises:
        BadEpisodeError: It is neither JPEG nor PNG, or larger than any frame should be.
    """
    if len(data) > MAX_ENCODED_BYTES:
        raise BadEpisodeError(f"image of {len(data)} bytes, the limit is {MAX_ENCODED_BYTES}")
    if data.startswith(_JPEG_START):
        return "jpeg"
    if data.startswith(_PNG_START):
        return "png"
    raise DamagedEpisodeError(f"image is neither JPEG nor PNG; it starts with {bytes(data[:8])!r}")


def _header(data: bytes) -> _Header:
    kind, colours = sniff(data), ""
    if kind == "png":
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise DamagedEpisodeError("PNG without a header")
        height, width = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    else:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise DamagedEpisodeError(f"JPEG header is damaged: {error}") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise BadEpisodeError(f"image of {height} x {width} pixels, the limit is {MAX_PIXELS} in all")
    return _Header(kind, (height, width), colours)


def dimensions(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        BadEpisodeError: The header is damaged, or states more pixels than any frame should have.
    """
    return _header(data).size


def decode(data: bytes) -> np.ndarray:
    """The pixels of a JPEG or PNG, (H, W, 3) uint8, RGB.

    Raises:
        BadEpisodeError: The image is damaged, too large, or no 8-bit image.
    """
    return _decode(data, _header(data), None)


def _decode(data: bytes, header: _Header, least: tuple[int, int] | None) -> np.ndarray:
    """The pixels; with `least` (height, width) a JPEG may come out at the smallest DCT scale that is no smaller."""
    try:
        if header.colours in _TURBO_COLOURS:
            height, width = least or (0, 0)
            return simplejpeg.decode_jpeg(data, min_height=height, min_width=width)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.mode.startswith(("I", "F")):
                raise BadEpisodeError(f"image has {image.mode} pixels, not 8-bit colour: is it a depth camera?")
            return np.array(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedEpisodeError(f"image is damaged: {error}") from error


def _decode_at(data: bytes, header: _Header, size: tuple[int, int]) -> np.ndarray:
    """The pixels shrunk to `size` (height, width)."""
    pixels = _decode(data, header, size)
    return shrink(pixels, size, _extent(header.size, pixels.shape[:2]))


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


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A regular grid of points of a picture, (16, 16, 3) uint8; no averages, which would cost 20 times as much.

    Args:
        pixels: (H, W, 3) uint8.
    """
    return pixels.take(_points(*pixels.shape[:2]))


@functools.lru_cache
def _points(height: int, width: int) -> np.ndarray:
    """Where in the flat numbers of a picture of that size the numbers of its thumbnail are, (16, 16, 3)."""
    rows, columns = _places(height), _places(width)
    return (rows[:, None, None] * width + columns[:, None]) * 3 + np.arange(3)


def _places(side: int) -> np.ndarray:
    """`THUMBNAIL_SIDE` of `side` places, evenly spaced and in the middle; some of them repeated where there are fewer."""
    if side < THUMBNAIL_SIDE:
        return np.arange(THUMBNAIL_SIDE) * side // THUMBNAIL_SIDE
    step = side // THUMBNAIL_SIDE
    return (side - step * (THUMBNAIL_SIDE - 1)) // 2 + step * np.arange(THUMBNAIL_SIDE)


def decode_small(data: bytes, side: int) -> np.ndarray:
    """The pixels of a JPEG at the smallest DCT scale with both sides no smaller than `side`; a PNG comes out as it is.

    Raises:
        BadEpisodeError: See `decode`.
    """
    return _decode(data, _header(data), (side, side))


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
            data: JPEG or PNG.
            swap: Whether red and blue are swapped in it. Repair needs new bytes: PNG under `source`, so that nothing is lost.
            checksummed: Whether `data` agreed with a checksum of the file it comes from. A JPEG that did not is decoded even
                where its bytes stay as they are.
            with_pixels: Whether a frame that is made anew remembers all its pixels, for whoever would decode it otherwise.

        Returns:
            The bytes, and (height, width).

        Raises:
            BadEpisodeError: The image is damaged or too large.
        """
        header = _header(data)
        size = header.size if self.short_side is None else shrunk_size(*header.size, self.short_side)
        as_is = self.encoding == "source" or (self.encoding == header.kind and size == header.size)
        if as_is and not swap:
            if not looks_whole(data) or not (checksummed or header.kind == "png"):
                _decode(data, header, None)
            return data, header.size
        return self._made(_decode_at(data, header, size), swap, with_pixels), size

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
