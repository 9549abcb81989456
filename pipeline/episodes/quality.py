"""What is measured of an episode's pictures: how much of it stands still or shows nothing, its hashes, its colour balance.

All of it comes from thumbnails of 16 x 16 points, which cost about a hundredth of decoding, shrinking and encoding a frame.
Where frames were decoded on the way into a shard every one of them counts; where their bytes went through untouched, a few are
decoded at a small scale and stand for the rest, and `measured_frames` says how many. Four frames an episode, the anchors, are
looked at as a whole: at the pixels that they remember from before they were encoded, else they are decoded for it. Numbers are
for choosing episodes, not for judging one frame: an object smaller than the distance of two points may move unseen.
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

# Levels (of 255) by which a number changes at least before that is more than noise of a camera or of JPEG.
MOVED = 12
# Numbers of 768 (a point has three) that may change so in a pair of frames that still counts as static.
_MOVED_NUMBERS = 3
# A frame whose channels spread over no more levels shows one colour; as `rlds` tells placeholder cameras.
UNIFORM = 8
# A frame without a brighter level is black.
BLACK = 16
# Levels between red and blue from which on a point has a colour to judge.
_COLOURED = 12
# Levels by which a cell of a frame differs from that of the episode's mean frame to count as motion.
_MOTION = 4
# By which neighbouring cells differ, so that equal ones don't fall here or there by chance.
_EVEN = 2
_ANCHORS = 4
# An untouched episode has a pair of frames looked at for so many frames, at most one pair an anchor.
_FRAMES_PER_PAIR = 40
_BLOCK = 2048
_DIGITS = 4
# Cells of a frame along each side, of which colour and layout are told.
_CELLS = 8


@dataclass(frozen=True)
class Quality:
    """What is known of an episode's pictures; the fields are columns of the index.

    Attributes:
        measured_frames: Frames whose pixels were looked at.
        static_share: Share of the pairs of neighbouring frames in which nothing moves; None where no pair was looked at.
        repeated_share: Share of the frames whose encoded bytes are those of an earlier frame.
        uniform_share: Share of the frames that are black or of one colour.
        swap_score: -1 where all coloured points are warm (red above blue), +1 where all are cold, 0 without colour. Most
            scenes, skin and wood above all, are warm, so a high score is a reason to suspect swapped channels; no proof,
            since a blue scene looks just so.
        content_hash: Equal for episodes whose encoded frames are equal, byte for byte.
        perceptual_hash: Of layout and motion, 142 hex digits; close for episodes that look alike. See `hamming`.
    """

    measured_frames: int
    static_share: float | None
    repeated_share: float
    uniform_share: float
    swap_score: float
    content_hash: str
    perceptual_hash: str


class Measurement(NamedTuple):
    """What `measure_frames` returns: the quality, and whether a decoded frame has stray bytes (see `Episode.stray_bytes`)."""

    quality: Quality
    stray_bytes: bool


COLUMNS = tuple(field.name for field in dataclasses.fields(Quality))


def measure(frames: Sequence[bytes]) -> Quality:
    """The quality of an episode alone; see `measure_frames`."""
    return measure_frames(frames).quality


def measure_frames(frames: Sequence[bytes]) -> Measurement:
    """Measure an episode.

    Args:
        frames: Encoded, in time order, at least one. Those that are no `MadeFrame` are looked at here and there only.

    Raises:
        BadEpisodeError: A frame that is looked at can't be decoded.
    """
    count = len(frames)
    places = anchors(count)
    made = [frame.thumbnail for frame in frames if isinstance(frame, MadeFrame)]
    if len(made) == count:
        looked, pairs = np.arange(count), np.arange(count - 1)
        seen = {index: _pixels(frames[index]) for index in dict.fromkeys(places.tolist())}
    else:
        looked, pairs = sample_frames(count)
        seen = {index: _pixels(frames[index]) for index in looked.tolist()}
        made = [thumbnail(seen[index][0]) for index in looked.tolist()]
    thumbnails = np.concatenate(made).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    at_anchors = np.stack([cells(seen[index][0]) for index in places.tolist()])
    content_hash, repeated = _of_bytes(frames)
    quality = Quality(
        measured_frames=len(looked),
        static_share=_share(static_pairs(thumbnails, np.searchsorted(looked, pairs))),
        repeated_share=round(repeated / count, _DIGITS),
        uniform_share=_share(uniform_frames(thumbnails)) or 0.0,
        swap_score=swap_score(at_anchors),
        content_hash=content_hash,
        perceptual_hash=perceptual_hash(at_anchors),
    )
    return Measurement(quality, any(stray for _, stray in seen.values()))


def anchors(count: int) -> np.ndarray:
    """Which of `count` frames stand for the whole episode: four, evenly spaced, repeated in an episode that has fewer."""
    return np.arange(_ANCHORS) * max(0, count - 2) // (_ANCHORS - 1)


def sample_frames(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of an untouched episode are decoded, in order, and the first ones of the neighbours among them.

    The anchors, and the successors of as many of them as the episode's length pays for, those in its middle first.
    """
    places = anchors(count)
    wanted = min(max(1, count // _FRAMES_PER_PAIR), _ANCHORS) if count > 1 else 0
    pairs = np.unique(places[[1, 2, 0, 3][:wanted]])
    return np.union1d(places, pairs + 1), pairs


def _pixels(frame: bytes) -> tuple[np.ndarray, bool]:
    """The pixels of a frame at some size, (H, W, 3) uint8, and whether it has stray bytes; decoded where it remembers none."""
    known = frame.pixels if isinstance(frame, MadeFrame) else None
    return decode_small(frame, THUMBNAIL_SIDE) if known is None else (known, False)


def cells(pixels: np.ndarray) -> np.ndarray:
    """A picture's mean colours, (8, 8, 3) uint8; pixels (H, W, 3) uint8."""
    return np.asarray(Image.fromarray(pixels).resize((_CELLS, _CELLS), Image.Resampling.BOX))


def static_pairs(thumbnails: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Whether nothing moves from thumbnail `first[i]` to the one after it, (P,) bool.

    Args:
        thumbnails: (T, 16, 16, 3) uint8.
        first: (P,) places of the earlier ones.
    """
    found = [np.zeros(0, bool)]
    for start in range(0, len(first), _BLOCK):
        places = first[start : start + _BLOCK]
        one, other = thumbnails[places], thumbnails[places + 1]
        moved = np.maximum(one, other) - np.minimum(one, other) >= MOVED
        found.append(np.count_nonzero(moved.reshape(len(places), -1), axis=1) <= _MOVED_NUMBERS)
    return np.concatenate(found)


def uniform_frames(thumbnails: np.ndarray) -> np.ndarray:
    """Whether each thumbnail is black or of one colour, (T,) bool; thumbnails (T, 16, 16, 3) uint8."""
    points = thumbnails.reshape(len(thumbnails), -1, 3)
    green = points[:, :, 1]
    # Few frames pass the first look, at one channel.
    found = (green.max(axis=1) <= BLACK) | (green.max(axis=1) - green.min(axis=1) <= UNIFORM)
    left = points[found]
    black = left.max(axis=(1, 2)) <= BLACK
    found[found] = black | ((left.max(axis=1) - left.min(axis=1)).max(axis=1) <= UNIFORM)
    return found


def swap_score(colours: np.ndarray) -> float:
    """Whether colours are warm (-1) or cold (+1); swapping red and blue turns its sign.

    Args:
        colours: (.., 3) uint8.
    """
    difference = colours[..., 2].astype(np.int64) - colours[..., 0]
    coloured = difference[np.abs(difference) >= _COLOURED]
    return round(float(coloured.sum() / np.abs(coloured).sum()), _DIGITS) if coloured.size else 0.0


def perceptual_hash(colours: np.ndarray) -> str:
    """A hash that survives another encoding and size: layout and motion, a bit a cell.

    Which cells of the mean frame are brighter than their right neighbour, and which are brighter or darker at each anchor than
    on average: where a camera stands still, episodes differ by what moves before it.

    Args:
        colours: `cells` at the anchors, (4, 8, 8, 3) uint8.
    """
    levels = colours.astype(np.int64).sum(axis=3)
    # Means of the three channels, times 12 to stay whole.
    total = levels.sum(axis=0)
    layout = total[:, :-1] - total[:, 1:] > 12 * _EVEN
    change = levels * _ANCHORS - total
    motion = np.stack([change > 12 * _MOTION, change < -12 * _MOTION])
    return np.packbits(np.concatenate([layout.ravel(), motion.ravel()])).tobytes().hex()


def hamming(one: str, other: str) -> int:
    """In how many bits two perceptual hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _of_bytes(frames: Sequence[bytes]) -> tuple[str, int]:
    """The content hash, and how many frames repeat an earlier one.

    CRC-32C and length of every frame together, hashed: what tells two episodes apart by chance alone, at a tenth of the cost
    of a cryptographic hash over all bytes.
    """
    marks = [(len(frame), google_crc32c.value(frame)) for frame in frames]
    digest = hashlib.blake2b(np.array(marks, "<u8").tobytes(), digest_size=16)
    return digest.hexdigest(), len(marks) - len(set(marks))


def _share(found: np.ndarray) -> float | None:
    return round(float(found.mean()), _DIGITS) if found.size else None
