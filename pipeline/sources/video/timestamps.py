"""When each frame of a video is shown, by timestamps that may be wrong.

A frame comes out of a decoder with two of them: its own (pts), and that of the packet that pushed it out (dts). Mostly the
first is right. But AVI and others keep only the order in which frames were coded, so that with B-frames pts go to and fro while
dts increase. FFmpeg counts for either how often it fails to increase, and takes the one that fails less (`guess_correct_pts` in
libavcodec/decode.c). So does this, with three things added: it looks some frames ahead where pts and dts disagree, so that the
first frames are right too; it moves dts to where pts began, since they are late by the decoder's delay; and it tells a jump,
at which another recording begins, from a slip: a frame or two whose time is wrong.

Slips come from containers that give a time to some packets only. In an MPEG program stream FFmpeg's parser gives a packet's
time to two frames, where the start code of the first lies across the packet's edge (`ff_fetch_timestamp` in
libavcodec/parser.c). The frames around a slip tell: where they go on at the pace from before, those between them keep it too.
"""

import collections
import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# H.264 and H.265 let at most 16 frames wait for one that is coded before them and shown after them.
AHEAD = 18
# Of the first frame, which has none before it to judge it by, fewer tell.
_AHEAD_OF_FIRST = 8
# A gap of so many frames is a jump, if it is of `far` units of time too.
_FAR_STEPS = 10
# More frames in a row whose times are wrong are no slip: nobody can tell what they are.
_MOST_SLIPS = 3
# The pace is the median of so many gaps between frames.
_PACE_OF = 9
# A time is at the pace if it is off by less than this share of a frame.
_NEAR = 0.5
# So many later frames that say an earlier time prove one wrong.
_FEWEST_RIGHT = 2


class Stamped(NamedTuple, Generic[T]):
    """A decoded frame with its timestamps, in units of its stream's time base.

    Attributes:
        frame: Whatever stands for it.
        pts: Presentation timestamp.
        dts: Decoding timestamp of the packet that pushed it out; where packets are one by one in order, its time too, but late.
        step: How long it lasts, by what is known of the stream; more than 0.
    """

    frame: T
    pts: int | None
    dts: int | None
    step: float


class Timed(NamedTuple, Generic[T]):
    """A frame with its time.

    Attributes:
        frame: As given.
        time: In the same units, later than the one before; None where the frame has no usable time.
        jumps: Whether time jumped before this frame: another recording begins.
    """

    frame: T
    time: float | None
    jumps: bool


def timed(frames: Iterable[Stamped[T]], far: float, ahead: int = AHEAD) -> Iterator[Timed[T]]:
    """All frames, in their order, with the times at which they are shown.

    Args:
        frames: In the order in which they are shown, which is that in which decoders give them.
        far: A longer gap is a jump, unless frames lie so far apart anyway.
        ahead: Frames that are looked at before the first of them gets a time that is in doubt.
    """
    queue: collections.deque[Stamped[T]] = collections.deque()
    source = iter(frames)
    clock = _Clock(far)
    jumps = False
    while queue or (queue := collections.deque(itertools.islice(source, 1))):
        stamped = queue[0]
        time = clock.plain(stamped)
        if time is None:
            wanted = ahead if clock.started else min(ahead, _AHEAD_OF_FIRST)
            queue.extend(itertools.islice(source, max(0, wanted - len(queue))))
            time = clock.judged(queue)
            if time is _JUMP:
                clock, jumps = _Clock(far, clock.pace(stamped.step)), True
                continue
        queue.popleft()
        clock.take(stamped, time)
        yield Timed(stamped.frame, time, jumps)
        jumps = False


_JUMP = float("inf")


class _Clock:
    """What is known of time since the last jump.

    Attributes:
        late: How much later than its time a frame's dts is; None where nobody knows yet.
        by_dts: Whether dts are believed rather than pts.
        disputed: Whether pts may still turn out to be in coding order: they have agreed with dts so far.
        stamped: Whether any frame has had a pts or dts.
        seen_pts: Whether any frame has had a pts.
        sparse: Whether any frame has had no dts.
    """

    def __init__(self, far: float, pace: float | None = None) -> None:
        """See the class.

        Args:
            far: See `timed`.
            pace: From a frame to the next before the jump.
        """
        self.late: float | None = None
        self.by_dts = False
        self.disputed = True
        self.stamped = False
        self.seen_pts = False
        self.sparse = False
        self._far = far
        self._former_pace = pace
        self._number = 0  # of the frame that comes next
        self._last: float | None = None  # time
        self._known: collections.deque[tuple[int, float]] = collections.deque(maxlen=_PACE_OF)  # numbers of frames, times
        self._pts: int | None = None
        self._dts: int | None = None
        self._faulty_pts = self._faulty_dts = 0

    def take(self, stamped: Stamped[T], time: float | None) -> None:
        """Note a frame, and the time it was given."""
        self._faulty_pts, self._pts = _faults(self._faulty_pts, self._pts, [stamped.pts])
        self._faulty_dts, self._dts = _faults(self._faulty_dts, self._dts, [stamped.dts])
        self.seen_pts = self.seen_pts or stamped.pts is not None
        self.stamped = self.seen_pts or self.stamped or stamped.dts is not None
        self.sparse = self.sparse or stamped.dts is None
        if time is not None:
            if self.late is None and stamped.dts is not None:
                self.late = stamped.dts - time
            self._known.append((self._number, time))
            self._last = time
        self._number += 1

    @property
    def started(self) -> bool:
        """Whether a frame has had a time."""
        return self._last is not None

    def pace(self, step: float) -> float:
        """From a frame to the next, by the last ones; `step` where nobody knows."""
        gaps = [(later - time) / (after - number) for (number, time), (after, later) in itertools.pairwise(self._known)]
        return statistics.median_low(gaps) if gaps else self._former_pace or step

    def plain(self, stamped: Stamped[T]) -> float | None:
        """The time of a frame about which there is nothing to judge: at the pace, or of no stamps at all."""
        if self._last is None or self._at_odds(stamped):
            return None
        time = self._stated(stamped)
        if time is None:
            # Where no frame has a time, their number and the rate are all there is.
            return None if self.stamped else self._last + stamped.step
        pace = self.pace(stamped.step)
        return time if abs(time - self._last - pace) < _NEAR * pace else None

    def judged(self, window: Sequence[Stamped[T]]) -> float | None:
        """The time of the first of some frames, by what comes after it; None where it has none, `_JUMP` where time jumps."""
        pts_fail = self._pts_fail_more(window)
        if self._last is not None and not self.by_dts:
            if pts_fail:
                self._believe_dts(window[0])
            elif self._at_odds(window[0]):
                self.disputed = False
        stated = [self._stated(one) for one in window]
        pace = self.pace(window[0].step)
        if self._last is None:
            return _start(stated, pace, trusted=pts_fail)
        # Where pts are believed, a dts counts for less than how they go on.
        own = self.by_dts or not self.seen_pts or window[0].pts is not None
        return self._by_those_around(stated, pace, self._last, own)

    def _by_those_around(self, stated: Sequence[float | None], pace: float, last: float, own: bool) -> float | None:
        """What `judged` says of a frame that is not the first.

        Args:
            stated: What it and some that follow say their times are.
            pace: From a frame to the next.
            last: Time of the last frame that had one.
            own: Whether what it says itself counts for as much as what the others say.
        """
        time = stated[0]
        following = [one for one in stated[1:] if one is not None]
        farthest = last + max(self._far, _FAR_STEPS * max(self._last_gap(pace), pace))
        increasing = time is not None and time > last and all(time < one for one in following)
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
            return time if sum(last < one <= time for one in following) < _FEWEST_RIGHT else None
        earlier = [one for one in itertools.takewhile(lambda one: one is None or one <= last, stated) if one is not None]
        return _JUMP if len(earlier) > 1 and _increase(earlier) else None

    def _stated(self, stamped: Stamped[T]) -> float | None:
        """What a frame says its time is."""
        if stamped.pts is not None and not self.by_dts:
            return stamped.pts
        return None if stamped.dts is None else stamped.dts - (self.late or 0)

    def _at_odds(self, stamped: Stamped[T]) -> bool:
        """Whether pts and dts, which agreed so far, say different times."""
        if not self.disputed or self.by_dts or self.late is None or stamped.pts is None or stamped.dts is None:
            return False
        return abs(stamped.dts - self.late - stamped.pts) > stamped.step / 2

    def _pts_fail_more(self, window: Sequence[Stamped[T]]) -> bool:
        """Whether pts fail to increase more often than dts, with some frames to come counted in."""
        if self.sparse or any(one.dts is None and later.dts is not None for one, later in itertools.pairwise(window)):
            # Where pts are no good, every packet has its dts: only the decoder's last frames come without.
            return False
        faulty_pts, _ = _faults(self._faulty_pts, self._pts, [one.pts for one in window])
        faulty_dts, _ = _faults(self._faulty_dts, self._dts, [one.dts for one in window])
        return faulty_pts > faulty_dts and any(one.dts is not None for one in window)

    def _believe_dts(self, stamped: Stamped[T]) -> None:
        self.by_dts = True
        time = self._stated(stamped)
        slipped = stamped.dts is None or (self._dts is not None and stamped.dts <= self._dts)
        if self._last is not None and time is not None and time <= self._last and not slipped:
            self.late = (stamped.dts or 0) - self._last - self._last_gap(stamped.step)

    def _last_gap(self, step: float) -> float:
        if len(self._known) < 2:
            return self.pace(step)
        (number, time), (after, later) = self._known[-2], self._known[-1]
        return (later - time) / (after - number)

    def _at_pace(self, stated: Sequence[float | None], pace: float, last: float) -> float | None:
        """The time of the first of some frames, if it or one behind a slip is where it should be at the pace from before.

        What was believed last may be a slip too, so that the pace is followed from some frames before it as well.
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
        """The time of a frame that states none, by its neighbours."""
        gone = self._number - self._known[-1][0]
        number, following = next(((n, one) for n, one in enumerate(stated, gone) if one is not None), (0, None))
        if following is None or not last < following < last + number * pace:
            return last + gone * pace
        return last + (following - last) * gone / number


def _start(stated: Sequence[float | None], pace: float, trusted: bool) -> float:
    """The time of the first frame of all.

    Args:
        stated: What it and some that follow say their times are.
        pace: From a frame to the next.
        trusted: Whether the first one is right whatever the others say.
    """
    starts = [time - number * pace for number, time in enumerate(stated) if time is not None]
    if not starts:
        return 0
    own = stated[0]
    if own is not None and (trusted or all(own < time for time in stated[1:] if time is not None)):
        return own
    return max(starts, key=lambda start: sum(abs(start - other) < _NEAR * pace for other in starts))


def _increase(times: Sequence[float | None]) -> bool:
    """Whether all times are there, each later than the one before."""
    return all(a is not None and b is not None and a < b for a, b in itertools.pairwise(times))


def _faults(count: int, last: int | None, stamps: Iterable[int | None]) -> tuple[int, int | None]:
    """How often timestamps fail to increase, those before them counted in; and the last one there is."""
    for stamp in stamps:
        if stamp is not None:
            count += last is not None and stamp <= last
            last = stamp
    return count, last
