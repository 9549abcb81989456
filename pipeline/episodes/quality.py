"""Measures the quality of an episode's images: stillness, uniform frames, hashes, colour balance.

It uses thumbnails of 16 x 16 points, which cost about a hundredth of decoding, shrinking and encoding a frame. If frames were
decoded on the way into a shard, every frame counts. If their bytes were kept, it decodes a few at a small scale for the rest,
and `measured_frames` gives their number. Four frames per episode, the anchors, are measured as a whole, from the pixels before
encoding or decoded again. The numbers are for selecting episodes, not for judging one frame: an object smaller than the
distance of two points may move unseen.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c
import numpy as np
from PIL import Image

from pipeline.episodes.frames import MadeFrame, decode_small
from pipeline.episodes.thumbnails import THUMBNAIL_SIDE, thumbnail

# Smallest change in levels (of 255) that is more than noise of a camera or of JPEG.
MOVED = 12
# Largest number of changed values, of 768 (a point has three), in a static pair of frames.
_MOVED_NUMBERS = 3
# Largest spread of each channel, in levels, in a frame of one colour; also for placeholder cameras in `rlds`.
UNIFORM = 8
# Brightest level of a black frame.
BLACK = 16
# Smallest difference of red and blue, in levels, at which a point counts as coloured.
_COLOURED = 12
# Smallest difference, in levels, between a cell and its mean over the episode that counts as motion.
_MOTION = 4
# Smallest difference of neighbouring cells, in levels, so that equal cells don't give random bits.
_EVEN = 2
_ANCHORS = 4
# Frames per sampled pair in an episode with kept bytes; at most one pair per anchor.
_FRAMES_PER_PAIR = 40
_BLOCK = 2048
_DIGITS = 4
# Cells along each side of a frame, for colour and layout.
_CELLS = 8


@dataclass(frozen=True)
class Quality:
    """Measured quality of an episode's images; the fields are columns of the index.

    Attributes:
        measured_frames: Number of frames whose pixels were measured.
        static_share: Fraction of the pairs of neighbouring frames in which nothing moves; None if no pair was measured.
        repeated_share: Fraction of the frames whose encoded bytes equal those of an earlier frame.
        uniform_share: Fraction of the frames that are black or of one colour.
        swap_score: -1 if all coloured points are warm (red above blue), +1 if all are cold, 0 without colour. Most scenes are
            warm,
            above all skin and wood, so a high score suggests swapped channels; it is no proof, since a scene may be blue.
        content_hash: Equal for episodes whose encoded frames are equal, byte for byte.
        perceptual_hash: Hash of layout and motion, 142 hex digits; close for episodes that look alike. See `hamming`.
    """

    measured_frames: int
    static_share: float | None
    repeated_share: float
    uniform_share: float
    swap_score: float
    content_hash: str
    perceptual_hash: str


class MeasuredQuality(NamedTuple):
    """What `measure_frames` returns: the quality, and whether a decoded frame has stray bytes (see `Episode.stray_bytes`)."""

    quality: Quality
    stray_bytes: bool


COLUMNS = tuple(field.name for field in dataclasses.fields(Quality))


def measure(frames: Sequence[bytes]) -> Quality:
    """Returns the quality of one episode; see `measure_frames`."""
    return measure_frames(frames).quality


def measure_frames(frames: Sequence[bytes]) -> MeasuredQuality:
    """Measures an episode.

    Args:
        frames: Encoded frames in time order, at least one. Only some of those that are not a `MadeFrame` are decoded.

    Raises:
        BadEpisodeError: A frame can't be decoded.
    """
    count = len(frames)
    places = anchors(count)
    grids = [frame.thumbnail for frame in frames if isinstance(frame, MadeFrame)]
    if len(grids) == count:
        measured, pairs = np.arange(count), np.arange(count - 1)
        pixels_of = {index: _pixels(frames[index]) for index in dict.fromkeys(places.tolist())}
    else:
        measured, pairs = sample_frames(count)
        pixels_of = {index: _pixels(frames[index]) for index in measured.tolist()}
        grids = [thumbnail(pixels_of[index][0]) for index in measured.tolist()]
    thumbnails = np.concatenate(grids).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    at_anchors = np.stack([cells(pixels_of[index][0]) for index in places.tolist()])
    content_hash, repeated = _of_bytes(frames)
    quality = Quality(
        measured_frames=len(measured),
        static_share=_share(static_pairs(thumbnails, np.searchsorted(measured, pairs))),
        repeated_share=round(repeated / count, _DIGITS),
        uniform_share=_share(uniform_frames(thumbnails)) or 0.0,
        swap_score=swap_score(at_anchors),
        content_hash=content_hash,
        perceptual_hash=perceptual_hash(at_anchors),
    )
    return MeasuredQuality(quality, any(stray for _, stray in pixels_of.values()))


def anchors(count: int) -> np.ndarray:
    """Returns the indexes of four evenly spaced frames of `count`; repeats some in an episode with fewer."""
    return np.arange(_ANCHORS) * max(0, count - 2) // (_ANCHORS - 1)


def sample_frames(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which frames of an episode with kept bytes to decode, in order, and the first frames of its sampled pairs.

    These are the anchors, and the successors of some of them: more in longer episodes, those in the middle first.
    """
    places = anchors(count)
    pair_count = min(max(1, count // _FRAMES_PER_PAIR), _ANCHORS) if count > 1 else 0
    pairs = np.unique(places[[1, 2, 0, 3][:pair_count]])
    return np.union1d(places, pairs + 1), pairs


def _pixels(frame: bytes) -> tuple[np.ndarray, bool]:
    """Returns a frame's pixels at some size, (H, W, 3) uint8, and whether it has stray bytes; decodes it if necessary."""
    known = frame.pixels if isinstance(frame, MadeFrame) else None
    return decode_small(frame, THUMBNAIL_SIDE) if known is None else (known, False)


def cells(pixels: np.ndarray) -> np.ndarray:
    """Returns a picture's mean colours, (8, 8, 3) uint8; pixels (H, W, 3) uint8."""
    return np.asarray(Image.fromarray(pixels).resize((_CELLS, _CELLS), Image.Resampling.BOX))


def static_pairs(thumbnails: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Whether nothing moves from thumbnail `first[i]` to the next one, (P,) bool.

    Args:
        thumbnails: (T, 16, 16, 3) uint8.
        first: (P,) indexes of the earlier thumbnails.
    """
    static = [np.zeros(0, bool)]
    for start in range(0, len(first), _BLOCK):
        places = first[start : start + _BLOCK]
        earlier, later = thumbnails[places], thumbnails[places + 1]
        moved = np.maximum(earlier, later) - np.minimum(earlier, later) >= MOVED
        static.append(np.count_nonzero(moved.reshape(len(places), -1), axis=1) <= _MOVED_NUMBERS)
    return np.concatenate(static)


def uniform_frames(thumbnails: np.ndarray) -> np.ndarray:
    """Whether each thumbnail is black or of one colour, (T,) bool; thumbnails (T, 16, 16, 3) uint8."""
    points = thumbnails.reshape(len(thumbnails), -1, 3)
    green = points[:, :, 1]
    # Checking one channel first rejects most frames.
    uniform = (green.max(axis=1) <= BLACK) | (green.max(axis=1) - green.min(axis=1) <= UNIFORM)
    candidates = points[uniform]
    black = candidates.max(axis=(1, 2)) <= BLACK
    uniform[uniform] = black | ((candidates.max(axis=1) - candidates.min(axis=1)).max(axis=1) <= UNIFORM)
    return uniform


def swap_score(colours: np.ndarray) -> float:
    """Returns whether colours are warm (-1) or cold (+1); swapping red and blue changes the sign.

    Args:
        colours: (.., 3) uint8.
    """
    difference = colours[..., 2].astype(np.int64) - colours[..., 0]
    coloured = difference[np.abs(difference) >= _COLOURED]
    return round(float(coloured.sum() / np.abs(coloured).sum()), _DIGITS) if coloured.size else 0.0


def perceptual_hash(colours: np.ndarray) -> str:
    """Returns a hash of layout and motion that survives another encoding and size, one bit per cell.

    Its bits say which cells of the mean frame are brighter than their right neighbour, and which are brighter or darker at each
    anchor than on average: episodes of a fixed camera differ by what moves in front of it.

    Args:
        colours: `cells` of the anchors, (4, 8, 8, 3) uint8.
    """
    levels = colours.astype(np.int64).sum(axis=3)
    # Mean of the three channels, times 12 to stay an integer.
    total = levels.sum(axis=0)
    layout = total[:, :-1] - total[:, 1:] > 12 * _EVEN
    change = levels * _ANCHORS - total
    motion = np.stack([change > 12 * _MOTION, change < -12 * _MOTION])
    return np.packbits(np.concatenate([layout.ravel(), motion.ravel()])).tobytes().hex()


def hamming(one: str, other: str) -> int:
    """Returns the number of bits in which two perceptual hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _of_bytes(frames: Sequence[bytes]) -> tuple[str, int]:
    """Returns the content hash, and the number of frames that repeat an earlier one.

    Hashes the CRC-32C and length of all frames: enough to tell episodes apart except by chance, at a tenth of the cost of a
    cryptographic hash over all bytes.
    """
    marks = [(len(frame), google_crc32c.value(frame)) for frame in frames]
    digest = hashlib.blake2b(np.array(marks, "<u8").tobytes(), digest_size=16)
    return digest.hexdigest(), len(marks) - len(set(marks))


def _share(found: np.ndarray) -> float | None:
    return round(float(found.mean()), _DIGITS) if found.size else None
