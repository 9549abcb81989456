"""The memory that a video's decoder takes, and the end of a video that would take too much.

A decoder keeps the pictures on which later ones are built, up to 17 of H.264 and H.265, whatever the size: at 8K they take
1.2 GiB. Headers tell of it in a way of each codec's own. But FFmpeg keeps pictures in buffers that it uses again, so those
that have come out, counted by their addresses, with those that wait to come out are all there are (H.264 and H.265 with
and without B-frames, VP9, FFV1 and MJPEG: to the picture).
"""

from collections.abc import Callable

import av

from pipeline.common.errors import BadEpisodeError

_GIB = 1 << 30
MAX_BYTES = _GIB
# What FFmpeg's decoders note of each pixel beside its colours (motion vectors, reference indexes); H.264: 0.7, measured.
_NOTED = 0.75
Besides = Callable[[int, int], int]


class PictureMemory:
    """Counts the pictures that a decoder holds, with those that wait behind it."""

    def __init__(self, besides: Besides) -> None:
        """See the class.

        Args:
            besides: (height, width) of a picture -> bytes that whoever takes it needs for his copies of it.
        """
        self._besides = besides
        self._form: tuple[int, int, str] | None = None
        self._places: set[int] = set()  # in memory, of pictures of this form

    def take(self, frame: av.VideoFrame, waiting: int) -> None:
        """Note a frame that the decoder gave.

        Args:
            frame: As it was decoded.
            waiting: Pictures that the decoder has and gives later.

        Raises:
            BadEpisodeError: With one picture more, too much memory is needed.
        """
        form = frame.height, frame.width, frame.format.name
        if form != self._form:
            self._form = form
            self._places.clear()
        self._places.add(frame.planes[0].buffer_ptr)
        count = len(self._places) + waiting + 1
        pixel = frame.format.padded_bits_per_pixel / 8 + _NOTED
        needed = int(count * pixel * frame.height * frame.width) + self._besides(frame.height, frame.width)
        if needed > MAX_BYTES:
            raise BadEpisodeError(
                f"decoding it takes {count} pictures of {frame.width} x {frame.height} ({frame.format.name}) at a time and so "
                f"needs {needed / _GIB:.2f} GiB, above {MAX_BYTES / _GIB:g} GiB. Encode it with smaller pictures or with fewer "
                "reference frames"
            )
