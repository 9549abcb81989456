import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from browser import chromium
from PIL import Image

from training.prediction.clip_prediction import Clip, Prediction
from training.prediction.measurement import measure
from training.visuals import gallery

LENGTH, CONTEXT, SIDE = 6, 2, 32


def prediction(samples=2, key="train-00000-000001", rate=10.0):
    """The truth goes from black to red, the samples from black to green; each frame has one colour."""
    brightness = torch.linspace(0, 1, LENGTH)
    frames = torch.zeros(LENGTH, 3, SIDE, SIDE)
    frames[:, 0] = brightness[:, None, None]
    made = torch.zeros(samples, LENGTH - CONTEXT, 3, SIDE, SIDE)
    made[:, :, 1] = brightness[CONTEXT:, None, None]
    clip = Clip(key, "colours", frames, None, tuple(range(LENGTH)), 1.0, rate)
    return Prediction(clip, CONTEXT, made, None, frames * 0.9)


def write(path, made=None, overview=None):
    made = made or prediction()
    gallery.write_page(str(path), made, measure(made), "made for a test", overview)
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def colour(browser, folder, selector):
    """The visible colour in the middle of an element."""
    browser.screenshot(folder / "shot.png")
    box = browser.run(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();return [b.x + b.width / 2, b.y + b.height / 2]",
        selector,
    )
    with Image.open(folder / "shot.png") as shot:
        return shot.convert("RGB").getpixel((round(box[0]), round(box[1])))


def show(browser, frame):
    browser.run(
        "const s = document.querySelector('#frame'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", frame
    )


def test_the_page_requests_nothing_else(browser, tmp_path):
    page = write(tmp_path / "index.html")
    browser.requests()
    browser.open(f"file://{page}")
    browser.wait("document.querySelector('#place').textContent !== ''")
    assert browser.run("return document.querySelector('h1').textContent") == "colours · train-00000-000001"
    assert browser.complaints() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [f"file://{page}"]


def test_the_page_shows_the_frame_of_the_slider(browser, tmp_path):
    browser.open(f"file://{write(tmp_path / 'index.html')}")
    for frame in (0, 1, 3, 5):
        show(browser, frame)
        level = round(255 * frame / (LENGTH - 1))
        assert np.abs(np.subtract(colour(browser, tmp_path, ".s0"), (level, 0, 0))).max() <= 2
        wanted = (0, level, 0) if frame >= CONTEXT else (level, 0, 0)
        assert np.abs(np.subtract(colour(browser, tmp_path, ".s2"), wanted)).max() <= 2
        wanted = (level, level, 0) if frame >= CONTEXT else (0, 0, 0)
        assert np.abs(np.subtract(colour(browser, tmp_path, ".s3"), wanted)).max() <= 2
        place = "context" if frame < CONTEXT else "predicted"
        offset = frame - CONTEXT + 1
        text = f"{place} {'+' if offset > 0 else ''}{offset}"
        assert browser.run("return document.querySelector('#place').textContent") == text


def test_the_page_plays_and_arrow_keys_change_the_frame(browser, tmp_path):
    browser.open(f"file://{write(tmp_path / 'index.html')}")
    browser.wait("Number(document.querySelector('#frame').value) > 1")
    browser.press(" ")
    assert browser.run("return document.querySelector('#play').textContent") == "Play"
    show(browser, 2)
    browser.press("\ue014")  # right
    assert browser.run("return document.querySelector('#frame').value") == "3"
    browser.press("\ue012")  # left
    browser.press("\ue012")
    assert browser.run("return document.querySelector('#frame').value") == "1"


def test_the_page_follows_dark_and_light_mode(browser, tmp_path):
    browser.open(f"file://{write(tmp_path / 'index.html')}")
    seen = []
    for dark in (True, False):
        browser.dark(dark)
        seen.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    dark, light = (sum(map(int, re.findall(r"\d+", each))) for each in seen)
    assert dark < 150 < 600 < light


def test_the_overview_links_to_each_episode_and_back(browser, tmp_path):
    cards, made = [], [prediction(key=f"train-00000-00000{number}") for number in range(3)]
    for number, each in enumerate(made):
        (tmp_path / f"episode-{number}").mkdir()
        write(tmp_path / f"episode-{number}" / "index.html", each, overview="../index.html")
        cards.append(gallery.card(f"episode-{number}/index.html", each, measure(each)))
    gallery.write_overview(str(tmp_path / "index.html"), cards, measure(made[0]), "made for a test", gallery.timing_of(made[0]))
    browser.open(f"file://{tmp_path / 'index.html'}")
    show(browser, 4)
    assert np.abs(np.subtract(colour(browser, tmp_path, ".s5"), (0, 204, 0))).max() <= 4
    browser.click(".episodes article:nth-child(3) a")
    browser.wait("document.querySelector('h1').textContent.endsWith('000002')")
    browser.click("p a")
    browser.wait("document.querySelectorAll('.episodes article').length === 3")
    assert browser.complaints() == []


def test_names_from_inputs_are_escaped(browser, tmp_path):
    hostile = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    browser.open(f"file://{write(tmp_path / 'index.html', prediction(key=hostile))}")
    assert browser.run("return document.querySelector('h1').textContent") == f"colours · {hostile}"
    assert browser.run("return document.querySelectorAll('h1 *').length") == 0
    assert "taken" not in browser.run("return document.title").replace(hostile, "")


def test_a_single_sample_is_not_called_mean_or_best(tmp_path):
    different = prediction()
    different.frames[1] *= 0.5
    several, one = (write(tmp_path / name, made).read_text() for name, made in (("2", different), ("1", prediction(samples=1))))
    assert several.count("mean of samples") == 2  # in the table and beneath the chart
    assert several.count("best sample") == 1
    assert "mean of samples" not in one
    assert "best sample" not in one


def test_a_sprite_of_small_frames_is_lossless():
    frames = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    uri = gallery.sprite(frames)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        row = np.asarray(image)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(row[:, 8 * number : 8 * (number + 1)], (frame * 255).round().permute(1, 2, 0))


def test_large_frames_are_embedded_as_jpeg():
    assert gallery.sprite(torch.rand(2, 3, 256, 256)).startswith("data:image/jpeg")


def test_the_page_shows_the_numbers_of_the_metrics(tmp_path):
    made = prediction(samples=3)
    metrics = measure(made)
    text = write(tmp_path / "index.html", made).read_text()
    for row in (metrics["prediction"]["mean"], metrics["repeat_last_frame"], metrics["reconstruction"]):
        assert f"{row['mean_psnr']:.2f}</td>" in text
    assert text.count('<polyline class="sample"') == 3
    assert json.dumps(LENGTH) in re.findall(r'data-count="(\d+)"', text)
