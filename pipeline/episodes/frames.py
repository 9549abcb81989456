"""Encoded frames: their kind, integrity and pixels, and their form in an episode shard.

The first bytes of an image decide its kind; a spec may be wrong. Shrinking decodes a JPEG at the smallest DCT scale that is
large enough, then applies an antialiased bicubic filter: twice as fast as decoding every pixel and, from 256 to 80 pixels, 40
dB from area averaging (a box filter after DCT scaling: 32 dB).
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
# libjpeg's warnings that leave the pixels intact: stray bytes before a marker, as from webcams, and unknown header values. It
# reports only the first warning.
_HARMLESS = re.compile(r"(\d+) extraneous bytes before marker|unknown JFIF revision|Unknown Adobe color transform")


class Frame(bytes):
    """An encoded frame with the result of its integrity check; otherwise plain bytes.

    Attributes:
        tolerated: The decoder gave a warning that leaves all pixels intact.
    """

    tolerated: bool = False


class MadeFrame(Frame):
    """A frame just encoded from pixels that keeps some of them, so `pipeline.episodes.quality` need not decode it.

    Attributes:
        thumbnail: Thumbnail of the pixels; see `thumbnail`.
        pixels: All pixels before encoding, (H, W, 3) uint8; None unless `FrameForm.keep` got `with_pixels`.
    """

    thumbnail: np.ndarray
    pixels: np.ndarray | None = None


class _Header(NamedTuple):
    """Facts from an image's header, parsed once: parsing costs a hundredth of decoding."""

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
            # Pillow decodes some images that this decoder refuses.
            size = _pillow_size(data) if _HARMLESS.search(str(error)) else None
            if size is None:
                raise DamagedEpisodeError(f"JPEG header is damaged: {error}") from error
            height, width = size
    if not 0 < height * width <= MAX_PIXELS:
        raise BadEpisodeError(f"image of {height} x {width} pixels, the limit is {MAX_PIXELS} in all")
    return _Header(kind, (height, width), colours)


def _pillow_size(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width) of an image according to Pillow; None if Pillow can't tell."""
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            return image.height, image.width
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return None


def dimensions(data: bytes) -> tuple[int, int]:
    """Returns (height, width) in pixels, from the header alone.

    Raises:
        BadEpisodeError: The header is damaged, or the image has more than `MAX_PIXELS` pixels.
    """
    return _header(data).size


class _Decoded(NamedTuple):
    """Pixels, (H, W, 3) uint8, and whether a decoder warning was tolerated."""

    pixels: np.ndarray
    tolerated: bool = False


def decode(data: bytes, checksummed: bool = False) -> np.ndarray:
    """Returns the pixels of an encoded image, (H, W, 3) uint8, RGB.

    Args:
        data: An image of a kind that `sniff` knows.
        checksummed: As in `FrameForm.keep`.

    Raises:
        BadEpisodeError: The image is damaged, too large, or not an 8-bit image.
    """
    return _decode(data, _header(data), None, checksummed).pixels


def _decode(data: bytes, header: _Header, min_size: tuple[int, int] | None, checksummed: bool) -> _Decoded:
    """Returns the pixels; with `min_size` (height, width), those of a JPEG at the smallest DCT scale of at least that size.

    Without a checksum every decoder warning means damage, because a flipped bit may look like stray bytes.
    """
    try:
        if header.colours in _TURBO_COLOURS:
            return _decode_turbo(data, min_size or (0, 0), checksummed)
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            if getattr(image, "is_animated", False):
                raise BadEpisodeError("image is a film of several pictures, not one frame")
            if image.mode.startswith(("I", "F")):
                raise BadEpisodeError(f"image has {image.mode} pixels, not 8-bit colour: is it a depth camera?")
            return _Decoded(np.array(image.convert("RGB")))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedEpisodeError(f"image is damaged: {error}") from error


def _decode_turbo(data: bytes, min_size: tuple[int, int], checksummed: bool) -> _Decoded:
    height, width = min_size
    try:
        return _Decoded(simplejpeg.decode_jpeg(data, min_height=height, min_width=width))
    except ValueError as error:
        # The first warning may hide others, about a truncated picture.
        found = _HARMLESS.search(str(error))
        if found is None or not checksummed or is_truncated(data, int(found[1] or 0)):
            raise
    return _Decoded(simplejpeg.decode_jpeg(data, min_height=height, min_width=width, strict=False), tolerated=True)


def _decode_at(data: bytes, header: _Header, size: tuple[int, int], checksummed: bool) -> _Decoded:
    """Returns the pixels shrunk to `size` (height, width)."""
    pixels, tolerated = _decode(data, header, size, checksummed)
    return _Decoded(shrink(pixels, size, _extent(header.size, pixels.shape[:2])), tolerated)


@functools.lru_cache
def _extent(size: tuple[int, int], scaled: tuple[int, int]) -> tuple[float, float]:
    """Returns (height, width) of a picture of `size` within its pixels at a DCT scale, whose shape is `scaled`.

    A scale is n eighths. If that is not a whole number of pixels, the last row and column reach beyond the picture.
    """
    height, width = size
    eighths = next(n for n in range(8, 0, -1) if -(-height * n // 8) <= scaled[0] and -(-width * n // 8) <= scaled[1])
    return height * eighths / 8, width * eighths / 8


def shrunk_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) after shrinking the short side to `short_side`; keeps the aspect and never enlarges."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def shrunk_to(form: Mapping[str, Any], short_sides: Iterable[int]) -> int | None:
    """Returns the short side to which episodes were shrunk; None if all have the size of their source.

    Args:
        form: A `FrameForm` as the manifest stores it.
        short_sides: Short sides of the episodes' frames in pixels.
    """
    side = form.get("short_side")
    return side if side is not None and side in set(short_sides) else None


def require_detail(shrunk: int | None, side: int, where: str) -> None:
    """Refuses to enlarge frames to `side` pixels if ingest shrank them below that, because the source has more detail.

    Args:
        shrunk: Result of `shrunk_to`.
        side: Required side of the square frames in pixels.
        where: The shard or data set, for the message.

    Raises:
        ConfigError: The frames were shrunk below `side`.
    """
    if shrunk is not None and shrunk < side:
        raise ConfigError(
            f"{where}: frames were shrunk to {shrunk} pixels when they were ingested, fewer than the {side} needed "
            f"here: ingest again with --data.resolution {side}, with --overwrite or into another folder"
        )


def shrink(pixels: np.ndarray, size: tuple[int, int], extent: tuple[float, float] | None = None) -> np.ndarray:
    """Shrinks pixels with an antialiased filter.

    Args:
        pixels: (H, W, 3) uint8.
        size: (height, width) of the result; `pixels` of that size are returned unchanged.
        extent: (height, width) of the picture within `pixels`, from the top left; by default all of it.
    """
    height, width = extent or pixels.shape[:2]
    if pixels.shape[:2] == size == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(0, 0, width, height)))


def decode_small(data: bytes, side: int) -> tuple[np.ndarray, bool]:
    """Decodes a JPEG at the smallest DCT scale with both sides at least `side`; a PNG at full size.

    Returns:
        The pixels, and whether a decoder warning that leaves them intact was tolerated.

    Raises:
        BadEpisodeError: As in `decode`.
    """
    return _decode(data, _header(data), (side, side), True)


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as JPEG with full colour resolution (4:4:4)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class FrameForm:
    """The form in which a shard stores frames.

    Attributes:
        encoding: `source`, `jpeg` or `png`.
        short_side: Largest short side in pixels, for `jpeg` and `png`; None keeps the size. Nothing is enlarged.
        quality: JPEG quality.
    """

    encoding: FrameEncoding = "jpeg"
    short_side: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.encoding == "source" and self.short_side is not None:
            raise ValueError("frames with the encoding `source` keep their size: short_side must be None")

    @classmethod
    def of(cls, data: DataConfig) -> "FrameForm":
        """Returns the form of a recipe: a short side of 1.25 x its resolution, so that crops of 0.8 need no upsampling."""
        if data.frames == "source":
            return cls("source")
        return cls(data.frames, math.ceil(_CROP_MARGIN * data.resolution), data.jpeg_quality)

    def keep(
        self, data: bytes, swap: bool = False, checksummed: bool = True, with_pixels: bool = False
    ) -> tuple[bytes, tuple[int, int]]:
        """Returns an encoded image in this form.

        `source` keeps the bytes. `jpeg` keeps the bytes of a JPEG that is small enough, since compressing twice costs quality.

        Args:
            data: An image of a kind that `sniff` knows.
            swap: Red and blue are swapped in it. The repair encodes again, as PNG under `source`, so that nothing is lost.
            checksummed: The source file has a checksum that matched `data`. Without one, a JPEG is decoded even if its bytes
                are kept,
                and every decoder warning means damage.
            with_pixels: A newly encoded frame keeps all its pixels, for readers that would decode it again.

        Returns:
            The bytes, a `Frame` if its check found something, and (height, width).

        Raises:
            BadEpisodeError: The image is damaged or too large.
        """
        header = _header(data)
        size = header.size if self.short_side is None else shrunk_size(*header.size, self.short_side)
        unchanged = self.encoding == "source" or (self.encoding == header.kind and size == header.size)
        if unchanged and not swap:
            must_decode = not passes_integrity_check(data) or not (checksummed or header.kind == "png")
            if must_decode and _decode(data, header, None, checksummed).tolerated:
                data = Frame(data)
                data.tolerated = True
            return data, header.size
        pixels, tolerated = _decode_at(data, header, size, checksummed)
        made = self._made(pixels, swap, with_pixels)
        made.tolerated = tolerated
        return made, size

    def keep_pixels(self, pixels: np.ndarray, swap: bool = False) -> tuple[bytes, tuple[int, int]]:
        """Encodes pixels in this form; `source` uses PNG.

        Args:
            pixels: (H, W, 3) uint8.
            swap: Red and blue are swapped in them.

        Returns:
            The bytes, a `MadeFrame`, and (height, width).
        """
        height, width = pixels.shape[:2]
        size = (height, width) if self.short_side is None else shrunk_size(height, width, self.short_side)
        return self._made(shrink(np.ascontiguousarray(pixels), size), swap), size

    def _made(self, pixels: np.ndarray, swap: bool, with_pixels: bool = False) -> MadeFrame:
        """Encodes pixels that have their final size; `source` uses PNG."""
        if swap:
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        frame = MadeFrame(encode_jpeg(pixels, self.quality) if self.encoding == "jpeg" else encode_png(pixels))
        frame.thumbnail = thumbnail(pixels)
        if with_pixels:
            frame.pixels = pixels
        return frame
