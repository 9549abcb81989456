"""The frames of a video stream in runs without a fault.

A broken place costs the frames up to the next keyframe, since those in between are built on broken ones. A decoder that hides a
fault says so in the frame (`is_corrupt`), and that frame is broken too. VP8, VP9 and H.265 don't notice most wrong bytes. In a
broken Matroska, AVI or FLV file FFmpeg goes on behind the place without a word; but it skips bytes and time at once.
"""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
from av.video.frame import PictureType

from pipeline.sources.video.picture_memory import PictureMemory
from pipeline.sources.video.timestamps import AHEAD

# A demuxer that fails so often in a row gets no further.
_TRIES = 16
# Demuxers that go on behind a broken place without a word. Headers of a few bytes lie between two packets of theirs.
_SKIPPING = re.compile("matroska|avi|flv")
_HEADER_BYTES = 64
_AVI_HEADER = 8
_NEAR = 2  # packets


@dataclass(frozen=True)
class Fault:
    """Packets or frames are broken or lost.

    Attributes:
        reason: What is wrong.
        sound: Pts of packets that the decoder had before; it may still hold frames of theirs.
        broken: Pts of a packet that is no good, whatever the decoder makes of it.
    """

    reason: str
    sound: frozenset[int] = frozenset()
    broken: int | None = None


class SoundFrames:
    """Decodes a stream run by run.

    Attributes:
        fault: What ended the last run; None where it was the end of the stream, or another run has begun.
        skipped: Frames that were passed over before the current run.
        ended: Whether there are no more runs.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, memory: PictureMemory, most_held: int = AHEAD
    ) -> None:
        """See the class.

        Args:
            container: Of the video.
            stream: Of the container.
            memory: Ends the video where it would need too much.
            most_held: Frames that wait until the one on which they may be built is known to be sound.
        """
        self.fault: Fault | None = None
        self.skipped = 0
        self.ended = False
        self._container = container
        self._stream = stream
        self._memory = memory
        self._most_held = most_held
        # Pts of the last packets that are keyframes by what the container says. Behind a fault AV1's decoder calls other frames
        # so too; most containers of other codecs needn't say it.
        av1 = "av1" in stream.codec_context.name
        self._keys: collections.deque[int | None] | None = collections.deque(maxlen=2 * AHEAD) if av1 else None
        self._spoilt: set[int] = set()  # pts of which no run may begin
        self._sent: collections.deque[int] = collections.deque(maxlen=2 * AHEAD)  # pts of the decoder's last packets
        self._items: Iterator[av.VideoFrame | Fault] = self._decoded()

    def run(self) -> Iterator[av.VideoFrame]:
        """The frames up to the next fault; after one, from the next sound keyframe on."""
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
                # A broken frame without a packet to blame may be the base of those shown just before it.
                yield from held if item.sound else []
                yield from self._before(item)
                return
            else:
                if waiting:
                    waiting, self.fault = False, None
                    self._spoilt.clear()
                held.append(item)
                if item.pict_type != PictureType.B or len(held) > self._most_held:
                    yield from held
                    held.clear()
        yield from held
        self.ended = True

    def _before(self, fault: Fault) -> Iterator[av.VideoFrame]:
        """The frames that come before a fault, though the decoder gives them after it, and perhaps after others."""
        for item in self._items if fault.sound else ():
            if isinstance(item, av.VideoFrame) and _precedes(item.pts, fault):
                yield item
            elif isinstance(item, Fault) and item.sound:
                self._note(item)
            else:
                self._items = itertools.chain([item], self._items)
                return

    def _note(self, fault: Fault) -> None:
        """Let no run begin with what came before a fault, as what follows would be built on broken frames."""
        self._spoilt |= fault.sound
        if fault.broken is not None:
            self._spoilt.add(fault.broken)

    def _begins(self, frame: av.VideoFrame | Fault) -> bool:
        """Whether a frame can be the first one after a fault."""
        if isinstance(frame, Fault) or not frame.key_frame:
            return False
        if self._keys is not None and frame.pts not in self._keys:
            return False
        return frame.pts is None or frame.pts not in self._spoilt

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
        """The stream's packets, the faults between them, and None at the end, where the decoder has to give what it holds."""
        doubtful: list[av.Packet] = []
        kind = self._container.format.name
        listed = self._stream.index_entries if "avi" in kind else ()
        skips = _Skips(self._sent, listed) if _SKIPPING.search(kind) else None
        for packet in self._demuxed(every_stream=skips is not None):
            if isinstance(packet, Fault):
                yield packet
                continue
            if not packet.size:
                continue
            ours = packet.stream_index == self._stream.index
            if skips is not None and (fault := skips.passed(packet, ours)) is not None:
                yield fault
            if not ours:
                continue
            if not doubtful and not packet.is_corrupt:
                yield packet
                continue
            # The demuxer of transport streams marks a packet near the place. Just before a keyframe it may be where one
            # recording was joined to another, so that nothing is missing; else the decoder will notice.
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
        """Packets, and a fault wherever the container can't be read."""
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
    """Whether a frame was coded and is shown before a fault."""
    return pts in fault.sound and (fault.broken is None or pts is None or pts < fault.broken)


class _Skips:
    """Finds where a demuxer skipped bytes without saying so, and frames with them."""

    def __init__(self, sent: collections.deque[int], listed: Iterable[Any]) -> None:
        """See the class.

        Args:
            sent: Pts of the decoder's last packets.
            listed: The container's own list of the video's packets, by the places of their headers; empty where it has none.
        """
        self._sent = sent
        self._listed = listed
        self._lost = False  # whether what was skipped is listed
        self._end: int | None = None  # of the last packet, in bytes
        self._largest = _HEADER_BYTES  # between two packets, where nothing was lost
        self._dts: int | None = None
        self._step: int | None = None
        self._skipped = 0  # bytes, lately
        self._sound: frozenset[int] = frozenset()  # what had been sent then
        self._patience = 0  # packets until they are forgotten

    def passed(self, packet: av.Packet, of_video: bool) -> Fault | None:
        """Note a packet; a fault where others are missing before it."""
        if packet.pos is None:
            return None
        if self._end is not None:
            hole = packet.pos - self._end
            if hole > 2 * self._largest:
                self._skipped, self._sound, self._patience = hole, frozenset(self._sent), AHEAD
                # AVI numbers packets as they come, so that time shows nothing.
                self._lost = any(self._end <= one.pos < packet.pos - _AVI_HEADER for one in self._listed)
            else:
                self._largest = max(self._largest, hole)
        self._end = packet.pos + packet.size
        return self._video_passed(packet.dts) if of_video and packet.dts is not None else None

    def _video_passed(self, dts: int) -> Fault | None:
        step = None if self._dts is None else dts - self._dts
        # Where frames are reordered, dts are made from the pts of later packets, so the gap may show some packets later.
        gap = bool(step and self._step and 2 * step > 3 * self._step)
        lost = bool(self._skipped and (self._lost or gap))
        fault = Fault(f"{self._skipped} bytes of the container can't be read", self._sound) if lost else None
        self._patience -= 1
        if not lost and self._patience == 0:
            self._largest = max(self._largest, self._skipped)
        if lost or self._patience <= 0:
            self._skipped = 0
        self._dts = dts
        self._step = step or self._step
        return fault
