"""Samples the frames of a video at a lower rate."""

from collections.abc import Iterator

import numpy as np

from pipeline.sources.video.decoding import Gap, PresentedFrame

# If two frames are equally near within this many seconds, the later is taken, so that a container's rounding doesn't matter.
_TIE = 0.00075


def sample_frames(shown: Iterator[PresentedFrame | Gap], rate: float | None) -> Iterator[PresentedFrame | Gap]:
    """Yield the frames of each run that are nearest to times 1 / `rate` apart, each once; also all gaps and untimed frames."""
    if rate is None:
        yield from shown
        return
    sampler = _Sampler(rate)
    for item in shown:
        if isinstance(item, Gap):
            yield from sampler.rest()
            sampler = _Sampler(rate)
            yield item
        elif item.time is None:
            yield item
        else:
            yield from sampler.taken(item.time, item)
    yield from sampler.rest()


class _Sampler:
    """Picks the frames of one run that are nearest to times 1 / `rate` apart."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._target = 0  # number of the next target time
        self._start = 0.0
        self._previous: tuple[float, PresentedFrame] | None = None
        self._half_gap = 0.0  # half the time between the last two frames

    def taken(self, time: float, shown: PresentedFrame) -> Iterator[PresentedFrame]:
        """Yield the previous frame if it is the nearest to a target time."""
        if self._previous is None:
            self._start = time
        else:
            before, frame = self._previous
            self._half_gap = (time - before) / 2
            middle = before + self._half_gap - self._start
            if self._target / self._rate < middle - _TIE:
                yield frame
                self._target = int(np.ceil((middle - _TIE) * self._rate))
        self._previous = time, shown

    def rest(self) -> Iterator[PresentedFrame]:
        """Yield the last frame if it is the nearest to a target time."""
        if self._previous is not None:
            time, frame = self._previous
            if self._target / self._rate <= time + self._half_gap - self._start:
                yield frame
