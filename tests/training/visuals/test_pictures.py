import numpy as np
import pytest
import torch
from PIL import Image

from training.visuals.pictures import Strip, difference, write_contact_sheet, write_gif

AMBER, BLUE = (245, 166, 35), (64, 140, 255)


def strips(length=5, side=32, context=2):
    red = torch.zeros(length, 3, side, side)
    red[:, 0] = 1.0
    green = torch.zeros(length, 3, side, side)
    green[:, 1] = 1.0
    return [Strip("truth", red, length), Strip("prediction", green, context)]


def has_colour(pixels, colour, tolerance=0):
    return bool((np.abs(pixels.astype(int) - colour).max(axis=-1) <= tolerance).any())


def gif_frames(path):
    with Image.open(path) as image:
        frames, pauses = [], []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            pauses.append(image.info["duration"])
        return frames, pauses, image.info.get("loop")


def test_the_gif_shows_all_frames_side_by_side_and_marks_predicted_ones(tmp_path):
    write_gif(str(tmp_path / "a.gif"), strips(), context_length=2, rate=10.0)
    frames, pauses, loop = gif_frames(tmp_path / "a.gif")
    assert len(frames) == 5
    assert loop == 0
    assert pauses == [100] * 4 + [1000]
    height, width, _ = frames[0].shape
    assert height >= 256
    for frame in frames:
        assert has_colour(frame[:, : width // 2], (255, 0, 0), 8)
        assert has_colour(frame[:, width // 2 :], (0, 255, 0), 8)
    assert [has_colour(frame[:, width // 2 :], AMBER, 16) for frame in frames] == [True, True, False, False, False]
    assert [has_colour(frame[:, width // 2 :], BLUE, 16) for frame in frames] == [False, False, True, True, True]
    assert not any(has_colour(frame[:, : width // 2], BLUE, 16) for frame in frames)


@pytest.mark.parametrize(("rate", "pause"), [(None, 250), (2.0, 500), (1000.0, 20)])
def test_the_gif_plays_at_the_rate_of_the_clip_up_to_the_limit_of_browsers(tmp_path, rate, pause):
    write_gif(str(tmp_path / "a.gif"), strips(), context_length=2, rate=rate)
    assert gif_frames(tmp_path / "a.gif")[1][0] == pause


@pytest.mark.parametrize("side", [16, 32, 64, 256])
def test_the_contact_sheet_has_every_pixel_of_every_frame_enlarged(tmp_path, side):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 3, side, side), generator=generator) / 255
    write_contact_sheet(str(tmp_path / "a.png"), [Strip("truth", frames, 3), Strip("again", frames, 1)], context_length=1)
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.asarray(image)
    factor = max(1, -(-96 // side))
    wanted = np.repeat(np.repeat((frames[2] * 255).round().byte().permute(1, 2, 0).numpy(), factor, 0), factor, 1)
    # The last frame of the last row has the same distance to the right and lower edge for every size.
    right, lower = sheet.shape[1] - 8 - 5, sheet.shape[0] - 8 - 5
    cell = sheet[lower - wanted.shape[0] : lower, right - wanted.shape[1] : right]
    np.testing.assert_array_equal(cell, wanted)
    assert has_colour(sheet, AMBER)
    assert has_colour(sheet, BLUE)


def test_the_difference_is_black_where_frames_are_equal():
    a = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not difference(a, a).any()
    assert torch.equal(difference(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))


def test_a_failed_picture_leaves_no_file(tmp_path):
    broken = [Strip("truth", torch.zeros(2, 3, 8, 8), 2), Strip("short", torch.zeros(1, 3, 8, 8), 1)]
    with pytest.raises(IndexError):
        write_gif(str(tmp_path / "a.gif"), broken, context_length=1)
    assert list(tmp_path.iterdir()) == []
