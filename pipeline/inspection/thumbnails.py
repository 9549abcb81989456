"""Makes the pictures of a data set for its page: an animation of several episodes side by side, and strips of frames.

Episodes are chosen evenly over the index and read one at a time; only the shown frames are decoded. A picture is encoded with
lower quality, and then smaller, until it fits its size budget.
"""

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, ShardError
from pipeline.episodes.frames import decode
from pipeline.episodes.shards import read_sample

# Number of frames decoded per episode, and number of them in a strip.
MOMENTS = 24
STRIP_MOMENTS = 8
_TILE = 96
_GAP = 3
_MOMENT_MS = 110
# Limits of a tile's aspect ratio (width / height); wider or narrower pictures are cropped.
_NARROWEST, _WIDEST = 0.75, 16 / 9
# Larger samples aren't read for a thumbnail.
_MAX_SAMPLE_BYTES = 256 << 20
_QUALITIES = (74, 50, 26)
_SHRINKS = (1, 2, 4)


class Thumbnail(NamedTuple):
    """Small frames of one episode.

    Attributes:
        key: Key of the episode.
        caption: Instruction of the episode; may be empty.
        tiles: Frames evenly spaced over the episode, (24, h, w, 3) uint8.
    """

    key: str
    caption: str
    tiles: np.ndarray


def thumbnails(folder: str, index: pa.Table, count: int) -> Iterator[Thumbnail]:
    """Yield the thumbnails of at most `count` episodes, evenly spread over the index; unreadable episodes are skipped.

    Args:
        folder: Folder of the data set.
        index: Index of the data set.
        count: Number of episodes to choose.
    """
    rows = index.select(["key", "shard", "offset", "size", "language", "height", "width"])
    if not rows.num_rows:
        return
    places = np.unique(np.linspace(0, rows.num_rows - 1, count).round().astype(int))
    chosen = rows.take(places.tolist()).to_pylist()
    aspect = float(np.clip(np.median([row["width"] / max(1, row["height"]) for row in chosen]), _NARROWEST, _WIDEST))
    for row in chosen:
        if row["size"] > _MAX_SAMPLE_BYTES:
            continue
        try:
            episode = read_sample(storage.join(folder, storage.basename(row["shard"])), row["offset"], row["size"])
            moments = np.linspace(0, episode.num_frames - 1, MOMENTS).round().astype(int).tolist()
            size = (_TILE, round(_TILE * aspect))
            shown = {place: _tile(decode(episode.frames[place], episode.stray_bytes), size) for place in set(moments)}
        except (ShardError, BadEpisodeError, OSError, IndexError):
            # The page reports the fault of the shard elsewhere.
            continue
        yield Thumbnail(row["key"], row["language"], np.stack([shown[moment] for moment in moments]))


def _tile(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the middle of a picture (H, W, 3) and scale it to `size` (height, width)."""
    height, width = pixels.shape[:2]
    aspect = size[1] / size[0]
    inner = (min(width, height * aspect), min(height, width / aspect))
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    box = (left, top, left + inner[0], top + inner[1])
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box))


def strip(thumbnail: Thumbnail, budget: int) -> str:
    """Return eight frames of an episode side by side, as the data URI of a picture of at most about `budget` bytes."""
    tiles = thumbnail.tiles[np.linspace(0, MOMENTS - 1, STRIP_MOMENTS).round().astype(int)]
    return _uri([_mosaic(tiles, STRIP_MOMENTS)], budget)


def animation(shown: Sequence[Thumbnail], columns: int, budget: int) -> tuple[str, str]:
    """Return the data URIs of an animation of episodes side by side, and of a still picture for reduced motion.

    Args:
        shown: Thumbnails of the same size, at least one.
        columns: Number of episodes in a row.
        budget: Approximate size limit of the animation in bytes.
    """
    frames = [_mosaic(np.stack([thumbnail.tiles[moment] for thumbnail in shown]), columns) for moment in range(MOMENTS)]
    return _uri(frames, budget), _uri(frames[MOMENTS // 2 :][:1], budget)


def _mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Arrange tiles (N, h, w, 3) in rows of `columns`, with transparent gaps; returns (H, W, 4)."""
    count, height, width = tiles.shape[:3]
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width, :3] = tile
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def _uri(frames: Sequence[np.ndarray], budget: int) -> str:
    images = [Image.fromarray(frame) for frame in frames]
    for shrink, quality in itertools.product(_SHRINKS, _QUALITIES):
        small = [image.reduce(shrink) for image in images]
        buffer = io.BytesIO()
        how = {"save_all": True, "append_images": small[1:], "duration": _MOMENT_MS, "loop": 0} if len(small) > 1 else {}
        small[0].save(buffer, "WEBP", quality=quality, method=4, **how)
        if buffer.tell() <= budget:
            break
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
