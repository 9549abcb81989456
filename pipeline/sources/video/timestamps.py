"""Computes when each frame of a video is shown, from timestamps that may be wrong.

A decoded frame has two timestamps: its own (pts), and that of the packet that pushed it out of the decoder (dts). Usually pts
is right. But some containers, such as AVI, store only the coding order, so with B-frames pts goes back and forth while dts
increases. FFmpeg counts how often each fails to increase, and uses the better one (`guess_correct_pts` in libavcodec/decode.c).
This module does the same, with three additions. It looks some frames ahead if pts and dts disagree, so that the first frames
are right too. It shifts dts to the start of pts, because dts are late by the decoder's delay. And it distinguishes a jump, at
which another recording begins, from a slip: a few frames with a wrong time.

Slips come from containers that give a time to only some packets. In an MPEG program stream, FFmpeg's parser gives a packet's
time to two frames if the start code of the first lies across the packet's edge (`ff_fetch_timestamp` in libavcodec/parser.c).
The frames around a slip show it: if they continue at the previous pace, the frames between them keep this pace too.
"""

import collections
import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# Number of frames to look ahead. In H.264 and H.265 at most 16 frames wait for one that is coded first and shown later.
AHEAD = 18
# The first frame of a video is judged by fewer following frames.
_AHEAD_OF_FIRST = 8
# A gap of this many frames is a jump, if it is also longer than `far`.
_FAR_STEPS = 10
# Limit of consecutive wrong times in a slip.
_MOST_SLIPS = 3
# The pace is the median of this many gaps between frames.
_PACE_OF = 9
# A time fits the pace if its error is below this fraction of a frame.
_NEAR = 0.5
# A time is wrong if this many later frames have an earlier time.
_FEWEST_RIGHT = 2


class DecodedFrame(NamedTuple, Generic[T]):
    """A decoded frame with its timestamps, in units of its stream's time base.

    Attributes:
        frame: The frame, of any type.
        pts: Presentation timestamp.
        dts: Decoding timestamp of the packet that pushed the frame out. If packets come in order, it is the frame's time plus
            a delay.
        step: Expected duration of the frame; more than 0.
    """

    frame: T
    pts: int | None
    dts: int | None
    step: float


class TimedFrame(NamedTuple, Generic[T]):
    """A frame with the time at which it is shown.

    Attributes:
        frame: The frame, unchanged.
        time: Time in the same units, later than the time before; None if the frame has no usable time.
        jumps: Whether time jumped before this frame, because another recording begins.
    """

    frame: T
    time: float | None
    jumps: bool


def assign_times(frames: Iterable[DecodedFrame[T]], far: float, ahead: int = AHEAD) -> Iterator[TimedFrame[T]]:
    """Yield all frames in order, with the times at which they are shown.

    Args:
        frames: Frames in presentation order, as decoders return them.
        far: A longer gap is a jump, unless all frames are that far apart.
        ahead: Number of frames to look ahead if a time is in doubt.
    """
    queue: collections.deque[DecodedFrame[T]] = collections.deque()
    source = iter(frames)
    clock = _Clock(far)
    jumps = False
    while queue or (queue := collections.deque(itertools.islice(source, 1))):
        frame = queue[0]
        time = clock.plain(frame)
        if time is None:
            count = ahead if clock.started else min(ahead, _AHEAD_OF_FIRST)
            queue.extend(itertools.islice(source, max(0, count - len(queue))))
            time = clock.judged(queue)
            if time is _JUMP:
                clock, jumps = _Clock(far, clock.pace(frame.step)), True
                continue
        queue.popleft()
        clock.take(frame, time)
        yield TimedFrame(frame.frame, time, jumps)
        jumps = False


_JUMP = float("inf")


class _Clock:
    """The state of time since the last jump.

    Attributes:
        late: Delay of dts after the frame's time; None if unknown.
        by_dts: Whether dts is used instead of pts.
        disputed: Whether pts may still turn out to be in coding order; so far it agreed with dts.
        stamped: Whether any frame had a pts or dts.
        seen_pts: Whether any frame had a pts.
        sparse: Whether any frame had no dts.
    """

    def __init__(self, far: float, pace: float | None = None) -> None:
        """See the class.

        Args:
            far: See `assign_times`.
            pace: Time between two frames before the jump.
        """
        self.late: float | None = None
        self.by_dts = False
        self.disputed = True
        self.stamped = False
        self.seen_pts = False
        self.sparse = False
        self._far = far
        self._former_pace = pace
        self._number = 0  # number of the next frame
        self._last: float | None = None  # last known time
        self._known: collections.deque[tuple[int, float]] = collections.deque(maxlen=_PACE_OF)  # (frame number, time)
        self._pts: int | None = None
        self._dts: int | None = None
        self._faulty_pts = self._faulty_dts = 0

    def take(self, frame: DecodedFrame[T], time: float | None) -> None:
        """Record a frame and its assigned time."""
        self._faulty_pts, self._pts = _faults(self._faulty_pts, self._pts, [frame.pts])
        self._faulty_dts, self._dts = _faults(self._faulty_dts, self._dts, [frame.dts])
        self.seen_pts = self.seen_pts or frame.pts is not None
        self.stamped = self.seen_pts or self.stamped or frame.dts is not None
        self.sparse = self.sparse or frame.dts is None
        if time is not None:
            if self.late is None and frame.dts is not None:
                self.late = frame.dts - time
            self._known.append((self._number, time))
            self._last = time
        self._number += 1

    @property
    def started(self) -> bool:
        """Whether any frame had a time."""
        return self._last is not None

    def pace(self, step: float) -> float:
        """Return the median time between the last frames; `step` if unknown."""
        gaps = [(later - time) / (after - number) for (number, time), (after, later) in itertools.pairwise(self._known)]
        return statistics.median_low(gaps) if gaps else self._former_pace or step

    def plain(self, frame: DecodedFrame[T]) -> float | None:
        """Return the time of a frame if it is beyond doubt: it fits the pace, or no frame has timestamps; else None."""
        if self._last is None or self._at_odds(frame):
            return None
        time = self._stated(frame)
        if time is None:
            # Without any timestamps, only the frame number and the rate are known.
            return None if self.stamped else self._last + frame.step
        pace = self.pace(frame.step)
        return time if abs(time - self._last - pace) < _NEAR * pace else None

    def judged(self, window: Sequence[DecodedFrame[T]]) -> float | None:
        """Return the time of the first frame in a window, judged by those after it; None if unusable, `_JUMP` at a jump."""
        pts_fail = self._pts_fail_more(window)
        if self._last is not None and not self.by_dts:
            if pts_fail:
                self._believe_dts(window[0])
            elif self._at_odds(window[0]):
                self.disputed = False
        stated = [self._stated(frame) for frame in window]
        pace = self.pace(window[0].step)
        if self._last is None:
            return _start(stated, pace, trusted=pts_fail)
        # If pts is used, a lone dts is less reliable than the pts of the following frames.
        own = self.by_dts or not self.seen_pts or window[0].pts is not None
        return self._by_neighbours(stated, pace, self._last, own)

    def _by_neighbours(self, stated: Sequence[float | None], pace: float, last: float, own: bool) -> float | None:
        """Return the result of `judged` for a frame that is not the first.

        Args:
            stated: Stated times of the frame and of those after it.
            pace: Time between two frames.
            last: Last known time.
            own: Whether the frame's own time is as reliable as those of the others.
        """
        time = stated[0]
        following = [later for later in stated[1:] if later is not None]
        farthest = last + max(self._far, _FAR_STEPS * max(self._last_gap(pace), pace))
        increasing = time is not None and time > last and all(time < later for later in following)
        slips_near = not _increase(stated[: _MOST_SLIPS + 2])
        if (slips_near or not (increasing and own)) and (kept := self._at_pace(stated, pace, last)) is not None:
            return kept
        ends = not following and self._number - self._known[-1][0] <= _MOST_SLIPS
        if time is None or not (increasing or (own and not ends)):
            return self._between(stated, pace, last)
        if increasing:
            return time if time <= farthest else _JUMP
        if time > farthest:
            return None if last < following[0] <= farthest else _JUMP
        if time > last:
            return time if sum(last < later <= time for later in following) < _FEWEST_RIGHT else None
        earlier = [
            other for other in itertools.takewhile(lambda other: other is None or other <= last, stated) if other is not None
        ]
        return _JUMP if len(earlier) > 1 and _increase(earlier) else None

    def _stated(self, frame: DecodedFrame[T]) -> float | None:
        """Return the time that a frame states."""
        if frame.pts is not None and not self.by_dts:
            return frame.pts
        return None if frame.dts is None else frame.dts - (self.late or 0)

    def _at_odds(self, frame: DecodedFrame[T]) -> bool:
        """Whether pts and dts, which agreed so far, state different times."""
        if not self.disputed or self.by_dts or self.late is None or frame.pts is None or frame.dts is None:
            return False
        return abs(frame.dts - self.late - frame.pts) > frame.step / 2

    def _pts_fail_more(self, window: Sequence[DecodedFrame[T]]) -> bool:
        """Whether pts failed to increase more often than dts, including the frames in the window."""
        if self.sparse or any(frame.dts is None and later.dts is not None for frame, later in itertools.pairwise(window)):
            # If pts is unusable, every packet has a dts; only the decoder's last frames have none.
            return False
        faulty_pts, _ = _faults(self._faulty_pts, self._pts, [frame.pts for frame in window])
        faulty_dts, _ = _faults(self._faulty_dts, self._dts, [frame.dts for frame in window])
        return faulty_pts > faulty_dts and any(frame.dts is not None for frame in window)

    def _believe_dts(self, frame: DecodedFrame[T]) -> None:
        self.by_dts = True
        time = self._stated(frame)
        slipped = frame.dts is None or (self._dts is not None and frame.dts <= self._dts)
        if self._last is not None and time is not None and time <= self._last and not slipped:
            self.late = (frame.dts or 0) - self._last - self._last_gap(frame.step)

    def _last_gap(self, step: float) -> float:
        if len(self._known) < 2:
            return self.pace(step)
        (number, time), (after, later) = self._known[-2], self._known[-1]
        return (later - time) / (after - number)

    def _at_pace(self, stated: Sequence[float | None], pace: float, last: float) -> float | None:
        """Return the time of the first frame if it, or a frame after a slip, fits the previous pace; else None.

        The last known time may be a slip too, so the pace is also followed from some frames before it.
        """
        before = self._known[-1][0]
        origins = list(self._known)[: -_MOST_SLIPS - 1 : -1]
        wrong = self._number - before - 1
        for number, time in enumerate(stated, start=self._number):
            if time is None:
                continue
            if time > last and any(abs(time - start - (number - first) * pace) < _NEAR * pace for first, start in origins):
                return last + (time - last) * (self._number - before) / (number - before)
            wrong += 1
            if wrong > _MOST_SLIPS:
                break
        return None

    def _between(self, stated: Sequence[float | None], pace: float, last: float) -> float:
        """Return the time of a frame without a usable time, interpolated between its neighbours."""
        passed = self._number - self._known[-1][0]
        number, following = next(((n, later) for n, later in enumerate(stated, passed) if later is not None), (0, None))
        if following is None or not last < following < last + number * pace:
            return last + passed * pace
        return last + (following - last) * passed / number


def _start(stated: Sequence[float | None], pace: float, trusted: bool) -> float:
    """Return the time of the first frame of a video.

    Args:
        stated: Stated times of the frame and of those after it.
        pace: Time between two frames.
        trusted: Whether the first time is right even if the others disagree.
    """
    starts = [time - number * pace for number, time in enumerate(stated) if time is not None]
    if not starts:
        return 0
    own = stated[0]
    if own is not None and (trusted or all(own < time for time in stated[1:] if time is not None)):
        return own
    return max(starts, key=lambda start: sum(abs(start - other) < _NEAR * pace for other in starts))


def _increase(times: Sequence[float | None]) -> bool:
    """Whether all times are known, and each is later than the one before."""
    return all(a is not None and b is not None and a < b for a, b in itertools.pairwise(times))


def _faults(count: int, last: int | None, stamps: Iterable[int | None]) -> tuple[int, int | None]:
    """Return `count` plus the number of timestamps that fail to increase, and the last timestamp."""
    for stamp in stamps:
        if stamp is not None:
            count += last is not None and stamp <= last
            last = stamp
    return count, last
