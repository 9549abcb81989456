"""Decodes the frames of a video stream in runs without a fault.

Damage loses all frames up to the next keyframe, because they depend on damaged frames. If a decoder conceals a fault, it marks
the frame (`is_corrupt`), and this frame is lost too. Decoders of VP8, VP9 and H.265 don't notice most wrong bytes. In a damaged
Matroska, AVI or FLV file FFmpeg continues after the damage without an error, but it skips bytes and time together.
"""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import av
from av.video.frame import PictureType

from pipeline.sources.video.picture_memory import PictureMemory
from pipeline.sources.video.timestamps import AHEAD

# Number of consecutive errors after which a demuxer is given up.
_TRIES = 16
# Demuxers that continue after damage without an error. Their packets are separated by headers of a few bytes.
_SKIPPING = re.compile("matroska|avi|flv")
_HEADER_BYTES = 64
_AVI_HEADER = 8
_NEAR = 2  # packets


@dataclass(frozen=True)
class Fault:
    """Damaged or lost packets or frames.

    Attributes:
        reason: What is wrong.
        intact: Pts of earlier packets, whose frames the decoder may still hold.
        broken: Pts of a damaged packet, whose frame isn't used.
    """

    reason: str
    intact: frozenset[int] = frozenset()
    broken: int | None = None


class IntactFrames:
    """Decodes a stream run by run.

    Attributes:
        fault: The fault that ended the last run; None at the end of the stream, or after another run has begun.
        skipped: Number of frames skipped before the current run.
        ended: Whether there are no more runs.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, memory: PictureMemory, most_held: int = AHEAD
    ) -> None:
        """See the class.

        Args:
            container: Container of the video.
            stream: Stream of the container.
            memory: Ends the video if it would need too much memory.
            most_held: Largest number of frames that wait until the frame they may depend on is known to be intact.
        """
        self.fault: Fault | None = None
        self.skipped = 0
        self.ended = False
        self._container = container
        self._stream = stream
        self._memory = memory
        self._most_held = most_held
        # Pts of the last packets that the container marks as keyframes. After a fault, AV1's decoder marks other frames as
        # keyframes too. Containers needn't mark the keyframes of other codecs.
        av1 = "av1" in stream.codec_context.name
        self._keys: collections.deque[int | None] | None = collections.deque(maxlen=2 * AHEAD) if av1 else None
        self._unusable: set[int] = set()  # pts with which no run may begin
        self._sent: collections.deque[int] = collections.deque(maxlen=2 * AHEAD)  # pts of the last packets sent to the decoder
        self._items: Iterator[av.VideoFrame | Fault] = self._decoded()

    def run(self) -> Iterator[av.VideoFrame]:
        """Yield the frames up to the next fault; after a fault, start at the next intact keyframe."""
        self.skipped = 0
        waiting = self.fault is not None
        held: list[av.VideoFrame] = []
        for item in self._items:
            if waiting and isinstance(item, Fault):
                self._note(item)
            elif waiting and not self._begins(item):
                self.skipped += 1
            elif isinstance(item, Fault):
                self.fault = item
                self._note(item)
                # If the damaged packet is unknown, the frames shown just before may depend on the damaged frame.
                yield from held if item.intact else []
                yield from self._before(item)
                return
            else:
                if waiting:
                    waiting, self.fault = False, None
                    self._unusable.clear()
                held.append(item)
                if item.pict_type != PictureType.B or len(held) > self._most_held:
                    yield from held
                    held.clear()
        yield from held
        self.ended = True

    def _before(self, fault: Fault) -> Iterator[av.VideoFrame]:
        """Yield the frames before a fault that the decoder returns after it, possibly after other frames."""
        for item in self._items if fault.intact else ():
            if isinstance(item, av.VideoFrame) and _precedes(item.pts, fault):
                yield item
            elif isinstance(item, Fault) and item.intact:
                self._note(item)
            else:
                self._items = itertools.chain([item], self._items)
                return

    def _note(self, fault: Fault) -> None:
        """Forbid runs that begin with a frame before the fault, because later frames would depend on damaged ones."""
        self._unusable |= fault.intact
        if fault.broken is not None:
            self._unusable.add(fault.broken)

    def _begins(self, frame: av.VideoFrame | Fault) -> bool:
        """Whether a run can begin with this frame after a fault."""
        if isinstance(frame, Fault) or not frame.key_frame:
            return False
        if self._keys is not None and frame.pts not in self._keys:
            return False
        return frame.pts is None or frame.pts not in self._unusable

    def _decoded(self) -> Iterator[av.VideoFrame | Fault]:
        for packet in self._packets():
            if isinstance(packet, Fault):
                yield packet
                continue
            if packet is not None and packet.is_keyframe and self._keys is not None:
                self._keys.append(packet.pts)
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.error.FFmpegError as error:
                pts = None if packet is None else packet.pts
                yield Fault(f"the video can't be decoded: {error.strerror}", frozenset(self._sent), pts)
                continue
            finally:
                if packet is not None and packet.pts is not None:
                    self._sent.append(packet.pts)
            for frame in frames:
                self._memory.take(frame, self._stream.codec_context.reorder_depth)
                yield Fault("a frame is damaged", broken=frame.pts) if frame.is_corrupt else frame

    def _packets(self) -> Iterator[av.Packet | Fault | None]:
        """Yield the stream's packets, the faults between them, and None at the end, which flushes the decoder."""
        doubtful: list[av.Packet] = []
        kind = self._container.format.name
        listed = self._stream.index_entries if "avi" in kind else ()
        skips = _SkipDetector(self._sent, listed) if _SKIPPING.search(kind) else None
        for packet in self._demuxed(every_stream=skips is not None):
            if isinstance(packet, Fault):
                yield packet
                continue
            if not packet.size:
                continue
            ours = packet.stream_index == self._stream.index
            if skips is not None and (fault := skips.check(packet, ours)) is not None:
                yield fault
            if not ours:
                continue
            if not doubtful and not packet.is_corrupt:
                yield packet
                continue
            # The demuxer of transport streams marks a packet near the damage. Just before a keyframe, two recordings may have
            # been joined and nothing is missing; otherwise the decoder notices.
            doubtful.append(packet)
            joined = len(doubtful) > 1 and packet.is_keyframe
            if not joined and len(doubtful) > _NEAR:
                yield Fault("packets are missing", frozenset(self._sent), doubtful[0].pts)
            if joined or len(doubtful) > _NEAR:
                yield from doubtful
                doubtful = []
        yield from doubtful
        yield None

    def _demuxed(self, every_stream: bool) -> Iterator[av.Packet | Fault]:
        """Yield packets, and a fault wherever the container can't be read."""
        tries = 0
        while True:
            try:
                for packet in self._container.demux(*([] if every_stream else [self._stream])):
                    tries = 0
                    yield packet
                return
            except av.error.FFmpegError as error:
                tries += 1
                yield Fault(f"the container is damaged: {error.strerror}")
                if tries == _TRIES:
                    return


def _precedes(pts: int | None, fault: Fault) -> bool:
    """Whether a frame was coded before a fault and is shown before it."""
    return pts in fault.intact and (fault.broken is None or pts is None or pts < fault.broken)


class _IndexEntry(Protocol):
    """A packet in a container's index."""

    pos: int


class _SkipDetector:
    """Detects where a demuxer skipped bytes, and frames with them, without an error."""

    def __init__(self, sent: collections.deque[int], listed: Iterable[_IndexEntry]) -> None:
        """See the class.

        Args:
            sent: Pts of the last packets sent to the decoder.
            listed: The container's index of the video's packets, with the positions of their headers; empty without an index.
        """
        self._sent = sent
        self._listed = listed
        self._lost = False  # whether the skipped bytes held an indexed packet
        self._end: int | None = None  # end of the last packet in bytes
        self._largest = _HEADER_BYTES  # largest gap between two packets without a loss, in bytes
        self._dts: int | None = None
        self._step: int | None = None
        self._skipped = 0  # number of bytes skipped recently
        self._intact: frozenset[int] = frozenset()  # pts sent before the skip
        self._patience = 0  # number of packets until the skip is forgotten

    def check(self, packet: av.Packet, of_video: bool) -> Fault | None:
        """Record a packet; return a fault if packets before it are missing."""
        if packet.pos is None:
            return None
        if self._end is not None:
            hole = packet.pos - self._end
            if hole > 2 * self._largest:
                self._skipped, self._intact, self._patience = hole, frozenset(self._sent), AHEAD
                # AVI numbers packets in the order it reads them, so timestamps don't show the loss.
                self._lost = any(self._end <= entry.pos < packet.pos - _AVI_HEADER for entry in self._listed)
            else:
                self._largest = max(self._largest, hole)
        self._end = packet.pos + packet.size
        return self._check_video(packet.dts) if of_video and packet.dts is not None else None

    def _check_video(self, dts: int) -> Fault | None:
        step = None if self._dts is None else dts - self._dts
        # With reordered frames, dts are computed from the pts of later packets, so the gap may show some packets later.
        gap = bool(step and self._step and 2 * step > 3 * self._step)
        lost = bool(self._skipped and (self._lost or gap))
        fault = Fault(f"{self._skipped} bytes of the container can't be read", self._intact) if lost else None
        self._patience -= 1
        if not lost and self._patience == 0:
            self._largest = max(self._largest, self._skipped)
        if lost or self._patience <= 0:
            self._skipped = 0
        self._dts = dts
        self._step = step or self._step
        return fault
