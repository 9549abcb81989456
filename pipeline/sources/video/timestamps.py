"""When each frame of a video is shown, by timestamps that may be wrong.

A frame comes out of a decoder with two of them: its own (pts), and that of the packet that pushed it out (dts). Mostly the
first is right. But AVI and others keep only the order in which frames were coded, so that with B-frames pts go to and fro while
dts increase. FFmpeg counts for either how often it fails to increase, and takes the one that fails less (`guess_correct_pts` in
libavcodec/decode.c). So does this, with three things added: it looks some frames ahead where pts and dts disagree, so that the
first frames are right too; it moves dts to where pts began, since they are late by the decoder's delay; and it tells a jump,
at which another recording begins, from a frame whose time is nonsense.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# H.264 and H.265 let at most 16 frames wait for one that is coded before them and shown after them.
AHEAD = 18
# A gap of so many frames is a jump, if it is of `far` units of time too.
_FAR_STEPS = 10


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
            queue.extend(itertools.islice(source, max(0, ahead - len(queue))))
            time = clock.judged(queue)
            if time is _JUMP:
                clock, jumps = _Clock(far, clock.gap), True
                continue
        queue.popleft()
        clock.take(stamped, time)
        yield Timed(stamped.frame, time, jumps)
        jumps = False


_JUMP = float("inf")


class _Clock:
    """What is known of time since the last jump.

    Attributes:
        last: Time of the last frame that had one.
        gap: The last gap between two frames.
        late: How much later than its time a frame's dts is; None where nobody knows yet.
        by_dts: Whether dts are believed rather than pts.
        disputed: Whether pts may still turn out to be in coding order: they have agreed with dts so far.
    """

    def __init__(self, far: float, gap: float = 0) -> None:
        self.far = far
        self.last: float | None = None
        self.gap = gap
        self.late: float | None = None
        self.by_dts = False
        self.disputed = True
        self.seen_pts = False
        self._pts: int | None = None
        self._dts: int | None = None
        self._faulty_pts = self._faulty_dts = 0

    def take(self, stamped: Stamped[T], time: float | None) -> None:
        """Note a frame, and the time it was given."""
        self._faulty_pts, self._pts = _faults(self._faulty_pts, self._pts, [stamped.pts])
        self._faulty_dts, self._dts = _faults(self._faulty_dts, self._dts, [stamped.dts])
        self.seen_pts = self.seen_pts or stamped.pts is not None
        if time is None:
            return
        if self.late is None and stamped.dts is not None:
            self.late = stamped.dts - time
        if self.last is not None:
            self.gap = time - self.last
        self.last = time

    def plain(self, stamped: Stamped[T]) -> float | None:
        """The time of a frame about which there is nothing to judge."""
        time = self._stated(stamped)
        if time is None:
            # Where no frame has a time, their number and the rate are all there is.
            return None if self.last is None or (self.seen_pts and not self.by_dts) else self.last + stamped.step
        if self.last is not None and not self.last < time <= self.last + self._longest(stamped):
            return None
        return None if self._at_odds(stamped) else time

    def judged(self, window: collections.deque[Stamped[T]]) -> float | None:
        """The time of the first of some frames, by what comes after it; None where it has none, `_JUMP` where time jumps."""
        stamped = window[0]
        if not self.by_dts:
            faulty_pts, _ = _faults(self._faulty_pts, self._pts, [one.pts for one in window])
            faulty_dts, _ = _faults(self._faulty_dts, self._dts, [one.dts for one in window])
            if faulty_pts > faulty_dts and any(one.dts is not None for one in window):
                self._believe_dts(stamped)
            elif self._at_odds(stamped):
                self.disputed = False
        time = self.plain(stamped)
        if time is not None:
            return time
        stated = [self._stated(one) for one in window]
        if stated[0] is None:
            return self._between(stamped, stated)
        if self.last is None:
            return stated[0]
        if stated[0] > self.last:
            following = next((one for one in stated[1:] if one is not None), None)
            back = following is not None and self.last < following <= self.last + self._longest(stamped)
            return None if back else _JUMP
        earlier = list(itertools.takewhile(lambda one: one is None or one <= (self.last or 0), stated))
        known = [one for one in earlier if one is not None]
        return _JUMP if len(known) > 1 and all(a < b for a, b in itertools.pairwise(known)) else None

    def _stated(self, stamped: Stamped[T]) -> float | None:
        """What a frame says its time is."""
        if stamped.pts is not None and not self.by_dts:
            return stamped.pts
        return None if stamped.dts is None else stamped.dts - (self.late or 0)

    def _longest(self, stamped: Stamped[T]) -> float:
        return max(self.far, _FAR_STEPS * max(self.gap, stamped.step))

    def _at_odds(self, stamped: Stamped[T]) -> bool:
        """Whether pts and dts, which agreed so far, say different times."""
        if not self.disputed or self.by_dts or self.late is None or stamped.pts is None or stamped.dts is None:
            return False
        return abs(stamped.dts - self.late - stamped.pts) > stamped.step / 2

    def _believe_dts(self, stamped: Stamped[T]) -> None:
        self.by_dts = True
        time = self._stated(stamped)
        if self.last is not None and time is not None and time <= self.last:
            self.late = (stamped.dts or 0) - self.last - stamped.step

    def _between(self, stamped: Stamped[T], stated: list[float | None]) -> float:
        """The time of a frame that states none, by its neighbours."""
        number, following = next(((n, one) for n, one in enumerate(stated) if one is not None), (0, None))
        if self.last is None:
            return 0 if following is None else following - number * stamped.step
        time = self.last + stamped.step
        if following is None or not self.last < following < self.last + (number + 1) * stamped.step:
            return time
        return self.last + (following - self.last) / (number + 1)


def _faults(count: int, last: int | None, stamps: Iterable[int | None]) -> tuple[int, int | None]:
    """How often timestamps fail to increase, those before them counted in; and the last one there is."""
    for stamp in stamps:
        if stamp is not None:
            count += last is not None and stamp <= last
            last = stamp
    return count, last
