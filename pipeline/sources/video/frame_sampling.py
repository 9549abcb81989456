"""Which frames of a video are taken where fewer a second are wanted than there are."""

from collections.abc import Iterator

import numpy as np

from pipeline.sources.video.decoding import Gap, Shown

# Of two frames that are so nearly as near, in seconds, the later one is taken, whether a container rounds times or not.
_TIE = 0.00075


def sampled(shown: Iterator[Shown | Gap], rate: float | None) -> Iterator[Shown | Gap]:
    """Of each stretch the frames nearest to times 1 / `rate` apart, none of them twice; all gaps, and frames without a time."""
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
    """Picks the frames of one stretch that are nearest to times 1 / `rate` apart."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._wanted = 0  # number of the next time to be met
        self._start = 0.0
        self._previous: tuple[float, Shown] | None = None
        self._half_gap = 0.0  # between the last two frames

    def taken(self, time: float, shown: Shown) -> Iterator[Shown]:
        """The frame before this one, if it is the nearest to a wanted time."""
        if self._previous is None:
            self._start = time
        else:
            before, frame = self._previous
            self._half_gap = (time - before) / 2
            middle = before + self._half_gap - self._start
            if self._wanted / self._rate < middle - _TIE:
                yield frame
                self._wanted = int(np.ceil((middle - _TIE) * self._rate))
        self._previous = time, shown

    def rest(self) -> Iterator[Shown]:
        """The last frame, if it is wanted."""
        if self._previous is not None:
            time, frame = self._previous
            if self._wanted / self._rate <= time + self._half_gap - self._start:
                yield frame
