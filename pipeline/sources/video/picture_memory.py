"""Limits the memory of a video's decoder: ends a video that would need too much.

A decoder keeps reference pictures, up to 17 for H.264 and H.265 at any size: at 8K they take 1.2 GiB. Each codec states this
number in its own way. But FFmpeg reuses picture buffers, so the number of distinct buffer addresses seen, plus the pictures
still waiting in the decoder, is exact (checked for H.264 and H.265 with and without B-frames, VP9, FFV1 and MJPEG).
"""

from collections.abc import Callable

import av

from pipeline.common.errors import BadEpisodeError

_GIB = 1 << 30
MAX_BYTES = _GIB
# Bytes per pixel that FFmpeg's decoders store besides colours (motion vectors, reference indexes); measured for H.264: 0.7.
_EXTRA_BYTES = 0.75
CopyBytes = Callable[[int, int], int]


class PictureMemory:
    """Counts the pictures that a decoder holds."""

    def __init__(self, copy_bytes: CopyBytes) -> None:
        """See the class.

        Args:
            copy_bytes: Returns the bytes that the consumer needs for its copies of a picture of (height, width).
        """
        self._copy_bytes = copy_bytes
        self._form: tuple[int, int, str] | None = None
        self._buffers: set[int] = set()  # buffer addresses of pictures of this form

    def take(self, frame: av.VideoFrame, waiting: int) -> None:
        """Count a decoded frame.

        Args:
            frame: The decoded frame.
            waiting: Number of pictures still waiting in the decoder.

        Raises:
            BadEpisodeError: One more picture would need too much memory.
        """
        form = frame.height, frame.width, frame.format.name
        if form != self._form:
            self._form = form
            self._buffers.clear()
        self._buffers.add(frame.planes[0].buffer_ptr)
        count = len(self._buffers) + waiting + 1
        pixel = frame.format.padded_bits_per_pixel / 8 + _EXTRA_BYTES
        needed = int(count * pixel * frame.height * frame.width) + self._copy_bytes(frame.height, frame.width)
        if needed > MAX_BYTES:
            raise BadEpisodeError(
                f"decoding it takes {count} pictures of {frame.width} x {frame.height} ({frame.format.name}) at a time and so "
                f"needs {needed / _GIB:.2f} GiB, above {MAX_BYTES / _GIB:g} GiB. Encode it with smaller pictures or with fewer "
                "reference frames"
            )
