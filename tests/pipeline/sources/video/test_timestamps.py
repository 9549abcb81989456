"""Frames get the times at which they are shown, in order, for all kinds of timestamps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.video.timestamps import AHEAD, DecodedFrame, assign_times

STEP, FAR = 40, 10_000


def times(stamps, step: float = STEP) -> list:
    return [
        (item.time, item.jumps) for item in assign_times((DecodedFrame(n, *pair, step) for n, pair in enumerate(stamps)), FAR)
    ]


def shown(stamps, step: float = STEP) -> list:
    return [time for time, _ in times(stamps, step)]


@st.composite
def coded(draw) -> tuple[list[int], int]:
    """Return the positions in coding order of frames in presentation order, with B-frames after their references."""
    order = [0]
    for group in draw(st.lists(st.integers(0, 7), min_size=1, max_size=12)):
        first = max(order) + 1
        order += [first + group, *draw(st.permutations(range(first, first + group)))]
    place = {frame: number for number, frame in enumerate(order)}
    delay = max(place[frame] - frame for frame in order)
    return [place[frame] for frame in range(len(order))], delay


@given(coded(), st.integers(-1000, 1000))
def test_pts_in_coding_order_give_the_times_of_an_even_rate(video, start):
    places, delay = video
    stamps = [
        (start + STEP * place, start + STEP * (number + delay) if number + delay < len(places) else None)
        for number, place in enumerate(places)
    ]
    even = [start + STEP * number for number in range(len(places))]
    # The last frames have no dts: a different order only there can't be detected.
    known = (
        len(places) if places == sorted(places) or places[: len(places) - delay] != sorted(places[: len(places) - delay]) else 0
    )
    assert shown(stamps)[:known] == even[:known]


@given(st.lists(st.integers(1, 20 * STEP), min_size=1, max_size=80), st.booleans(), st.integers(-500, 500), st.integers(0, 4))
def test_increasing_pts_are_used_at_any_rate(gaps, with_dts, start, delay):
    pts = list(itertools.accumulate(gaps, initial=start))
    dts = [*pts[delay:], *[None] * delay][: len(pts)] if with_dts else [None] * len(pts)
    assert shown(zip(pts, dts, strict=True)) == pts


@given(st.lists(st.tuples(st.none() | st.integers(-50, 50), st.none() | st.integers(-50, 50)), max_size=60), st.integers(1, 9))
def test_no_frame_is_lost_and_time_increases_between_jumps(stamps, step):
    items = list(assign_times((DecodedFrame(n, *pair, step) for n, pair in enumerate(stamps)), 100))
    assert [item.frame for item in items] == list(range(len(stamps)))
    last = None
    for item in items:
        last = None if item.jumps else last
        assert item.time is None or last is None or item.time > last
        last = item.time if item.time is not None else last


@pytest.mark.parametrize("by", ["pts", "dts"])
def test_a_jump_backwards_begins_a_new_recording(by):
    one, two = [STEP * n for n in range(100, 150)], [STEP * n for n in range(120, 180)]
    stamps = [(t, t) if by == "pts" else (None, t) for t in one + two]
    got = times(stamps)
    assert [time for time, _ in got] == one + two
    assert [n for n, (_, jumps) in enumerate(got) if jumps] == [50]


def test_a_jump_is_detected_despite_the_delay_of_the_decoder():
    pts = [STEP * n for n in [*range(100, 150), *range(60)]]
    got = times(zip(pts, [*pts[3:], None, None, None], strict=True))
    assert [time for time, _ in got] == pts and [n for n, (_, jumps) in enumerate(got) if jumps] == [50]


def test_a_jump_forward_begins_a_new_recording_and_a_slow_video_has_no_jumps():
    fast = [0, 40, 80, 80 + FAR + 1, 120 + FAR + 1]
    assert [jumps for _, jumps in times([(t, t) for t in fast])] == [False, False, False, True, False]
    slow = [(t, t) for t in range(0, 50 * FAR, 2 * FAR)]
    assert not any(jumps for _, jumps in times(slow, 2 * FAR))


@pytest.mark.parametrize("nonsense", [0, 5 * STEP, 10**9])
def test_a_single_frame_with_a_wrong_time_keeps_the_pace(nonsense):
    pts = [STEP * n for n in range(40)]
    assert shown([(nonsense if n == 20 else t, None) for n, t in enumerate(pts)]) == pytest.approx(pts)


@pytest.mark.parametrize("nonsense", [0, 10**9])
def test_a_frame_with_a_wrong_time_has_no_time_without_a_pace(nonsense):
    pts = [10 * n * n for n in range(40)]
    got = shown([(nonsense if n == 20 else t, None) for n, t in enumerate(pts)])
    assert got == [None if n == 20 else t for n, t in enumerate(pts)]


@st.composite
def slipped(draw) -> tuple[list[int], list[tuple[int | None, int | None]], float]:
    """The true times of frames at an even rate, what they say of them, and how long each lasts.

    Half may say nothing. Now and then one or two in a row say the time of others, or nonsense. The first frames say theirs, and
    the last ones, behind which nothing tells.
    """
    count, step = draw(st.integers(10, 80)), draw(st.sampled_from([40, 33.37, 3003]))
    start = draw(st.integers(-1000, 100_000))
    true = [start + round(step * number) for number in range(count)]
    numbers = st.sets(st.integers(2, count - 4), max_size=count // 2)
    pts: list[int | None] = list(true)
    dts: list[int | None] = list(true) if draw(st.booleans()) else [None] * count
    for stamps in (pts, dts):
        for number in draw(numbers):
            stamps[number] = None
    number = draw(st.integers(2, 8))
    while number < count - 5:
        for wrong in range(number, number + draw(st.integers(1, 2))):
            stamps = draw(st.sampled_from([pts, dts]))
            if stamps is pts or dts[wrong] is not None:
                stamps[wrong] = true[wrong] + round(step * draw(st.sampled_from([-1000, -5, -3, -2, -1, 1, 2, 3, 5, 1000])))
        number += draw(st.integers(5, 20))
    return true, list(zip(pts, dts, strict=True)), step


@given(slipped())
def test_an_even_rate_with_wrong_and_missing_timestamps_gives_true_times_within_a_frame(stream):
    true, stamps, step = stream
    got = [(item.time, item.jumps) for item in assign_times((DecodedFrame(0, *pair, step) for pair in stamps), 250 * step)]
    assert not any(jumps for _, jumps in got)
    assert max(abs(time - moment) for (time, _), moment in zip(got, true, strict=True)) <= 1.01 * step


def test_if_two_frames_have_the_time_of_one_packet_the_right_frame_keeps_it():
    # What FFmpeg says of H.264 with B-frames whose packets are cut by those of the stream, in frames.
    pts = [0, 1, 2, None, 4, 7, 6, 7, None, None, 10, None, None, 13, 14, 15]
    dts = [0, 1, None, None, 4, 6, 6, None, 8, None, None, 11, 12, 13, 14, 15]
    stamps = [tuple(None if one is None else STEP * one for one in pair) for pair in zip(pts, dts, strict=True)]
    assert times(stamps) == [(STEP * n, False) for n in range(16)]


@given(st.integers(2 * AHEAD, 60), st.integers(3, 30), st.sets(st.integers(5, 25), max_size=1))
def test_a_short_jump_backwards_begins_a_new_recording_even_with_slips(count, back, wrong):
    one, two = [STEP * n for n in range(count)], [STEP * (count - back + n) for n in range(60)]
    stamps = [(t - STEP if n in wrong else t, None) for n, t in enumerate(one)] + [(t, None) for t in two]
    got = times(stamps)
    assert [n for n, (_, jumps) in enumerate(got) if jumps] == [count]
    assert [time for time, _ in got] == pytest.approx(one + two)


def test_a_last_frame_with_an_earlier_time_keeps_the_pace():
    pts = [STEP * n for n in range(20)]
    assert shown([(t, None) for t in [*pts, pts[-1]]]) == [*pts, STEP * 20]


def test_last_frames_without_timestamps_keep_the_pace_whatever_their_duration():
    # AVI: pts in coding order, no dts for the decoder's last frames, and a duration of one tick for every frame.
    pts = [0, 3, 2, 4, 1, 7, 6, 8, 5, 11, 10, 12, 9, 13, 14]
    stamps = [(STEP * t, STEP * (n + 2) if n < 13 else None) for n, t in enumerate(pts)]
    assert shown(stamps, step=1) == [STEP * n for n in range(15)]


def test_frames_without_any_timestamps_follow_by_their_duration():
    assert shown([(None, None)] * 50) == [STEP * n for n in range(50)]


@pytest.mark.parametrize("every", [2, 5, AHEAD - 1])
def test_frames_between_two_known_times_are_spread_evenly(every):
    pts = [STEP * n for n in range(60)]
    got = shown([(t if n % every == 0 else None, None) for n, t in enumerate(pts)])
    assert got == pytest.approx(pts)


def test_a_video_whose_frames_all_have_the_same_timestamp_has_no_times():
    assert shown([(7, None)] * 30) == [7] + [None] * 29
