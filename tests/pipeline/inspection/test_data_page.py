"""The page of data sets is self-contained, shows every data set, and escapes texts from inputs."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from rlds_data import picture, plain_episode

from pipeline.common.manifests import ShardManifest, SkippedEpisode, write_manifest
from pipeline.episodes import index
from pipeline.episodes.frames import encode_png
from pipeline.episodes.quality import measure
from pipeline.episodes.shards import EpisodeShardWriter
from pipeline.episodes.skipped import write_skipped
from pipeline.inspection.inspect import run as inspect
from pipeline.inspection.thumbnails import MOMENTS, Thumbnail, animation, strip, thumbnails

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"></style>&amp;"


def write_set(root, name, episodes, left_out=()):
    """Write a data set of one shard like the ingest does."""
    folder = root / name
    folder.mkdir(parents=True)
    with EpisodeShardWriter(folder / "train-000000.tar") as writer:
        for episode in episodes:
            writer.add(episode)
    entries = [
        {**entry, **dataclasses.asdict(measure(episode.frames))}
        for entry, episode in zip(writer.entries, episodes, strict=True)
    ]
    counts = {"samples": len(entries), "frames": writer.frames, "bytes": writer.size, "sha256": writer.sha256}
    statistics = {"filtered": 0, "actions": {}}
    manifest = ShardManifest(
        "train-000000.tar", "0", {}, **counts, left_out=list(left_out), entries=entries, statistics=statistics
    )
    write_manifest(str(folder), manifest)
    write_skipped(str(folder), name, index.write_index(str(folder), name, [manifest], []))
    return folder


def coloured(seed, level, language="go on", frames=30):
    """Return an episode that turns from black to red."""
    shown = [np.zeros((48, 64, 3), np.uint8) for _ in range(frames)]
    for number, pixels in enumerate(shown):
        pixels[..., 0] = level * number / (frames - 1)
    return dataclasses.replace(
        plain_episode(seed, frames), frames=[encode_png(pixels) for pixels in shown], language=language, height=48, width=64
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    bad = [
        SkippedEpisode("file-1", 3, HOSTILE, "damaged"),
        *(SkippedEpisode("file-2", n, "no frames", "unusable") for n in range(5)),
    ]
    write_set(root / "eps", "colours", [coloured(seed, 255) for seed in range(5)], bad)
    write_set(root / "eps", "waves", [plain_episode(seed, 8 + seed) for seed in range(6)])
    write_set(root / "eps", "hostile", [coloured(0, 200, HOSTILE)])
    assert inspect([str(root / "eps"), "--verify", "--html", str(root / "page.html")]) == 0
    return root / "page.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def text(browser, selector):
    return browser.run("return document.querySelector(arguments[0]).textContent", selector)


def test_the_page_is_self_contained_and_shows_every_data_set(browser, page):
    browser.requests()
    browser.open(f"file://{page}")
    assert [url for url in browser.requests() if not url.startswith("data:")] == [f"file://{page}"]
    assert browser.complaints() == []
    headings = "return [...document.querySelectorAll('article h2')].map(h => h.textContent)"
    assert browser.run(headings) == ["colours", "hostile", "waves"]
    assert text(browser, ".tiles div:nth-child(2)") == "12episodes"
    assert text(browser, ".badge") == "no faults"
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("return document.images.length") == 3 + 4 + 4 + 1
    browser.click(".shares a:nth-child(3)")
    assert browser.run("return location.hash") == "#set2"


def test_data_sets_with_the_same_name_have_different_headings_and_an_empty_one_has_no_charts(browser, tmp_path):
    write_set(tmp_path / "eps", "waves", [plain_episode(0, 30)])
    write_set(tmp_path / "eps" / "other", "waves", [plain_episode(1, 10)])
    write_set(tmp_path / "eps", "none", [], [SkippedEpisode("file-2", n, "no frames", "unusable") for n in range(5)])
    assert inspect([str(tmp_path / "eps"), "--html", str(tmp_path / "page.html")]) == 0
    browser.open(f"file://{tmp_path / 'page.html'}")
    headings = "return [...document.querySelectorAll('article h2')].map(h => h.textContent)"
    assert browser.run(headings) == ["none", "other/waves", "waves"]
    shares = browser.run("return [...document.querySelectorAll('.shares a')].map(a => a.title)")
    assert shares == ["other/waves: 10, 25.0%", "waves: 30, 75.0%"]
    empty = text(browser, "#set0")
    assert "5 episodes left out" in empty and "Quality" not in empty and "Distributions" not in empty
    assert browser.run("return document.querySelector('#set0 .badge').getClientRects().length") == 1


def test_the_animation_plays(browser, page, tmp_path):
    browser.open(f"file://{page}")
    browser.run("document.querySelector('.playing').scrollIntoView({behavior: 'instant', block: 'center'})")
    place = "return [b.x + b.width / 8, b.y + b.height / 8]"
    x, y = browser.run(f"const b = document.querySelector('.playing img').getBoundingClientRect(); {place}")
    reds = set()
    for _ in range(60):
        browser.screenshot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            reds.add(shot.convert("RGB").getpixel((round(x), round(y)))[0] // 16)
        if len(reds) >= 4:
            return
    raise AssertionError(f"the animation doesn't move: {reds}")


def test_skipped_episodes_are_listed_by_reason_most_frequent_first(browser, page):
    browser.open(f"file://{page}")
    assert text(browser, "summary") == "6 episodes left out for 2 different reasons"
    rows = browser.run("return [...document.querySelectorAll('.reasons tr')].map(r => r.textContent)")
    assert rows[0].startswith("5unusableno framesfile-2, record 0; file-2, record 1; file-2, record 2; and 2 more")
    assert HOSTILE in rows[1]


def test_texts_from_inputs_are_escaped(browser, page):
    browser.open(f"file://{page}")
    assert browser.run("return document.title") == "eps: data sets"
    assert browser.run("return document.scripts.length") == 0
    assert text(browser, "#set1 .sayings li") == HOSTILE
    assert text(browser, "#set1 .strip figcaption span") == HOSTILE


def test_the_page_supports_dark_and_light_themes_and_narrow_windows(browser, page):
    browser.open(f"file://{page}")
    seen = []
    for dark in (True, False):
        browser.dark(dark)
        seen.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    dark, light = (sum(map(int, re.findall(r"\d+", each))) for each in seen)
    assert dark < 150 < 600 < light
    for width in (1280, 500):
        browser.resize(width, 900)
        assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.resize(1280, 1000)


def test_the_page_lists_faults_and_skips_unreadable_episodes(tmp_path):
    folder = write_set(tmp_path / "eps", "broken", [coloured(seed, 255) for seed in range(3)])
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    (entry, *_) = index.read_index(str(folder)).to_pylist()
    data[entry["offset"] : entry["offset"] + entry["size"]] = bytes(entry["size"])
    path.write_bytes(data)
    assert inspect([str(tmp_path / "eps"), "--verify", "--html", str(tmp_path / "page.html")]) == 1
    shown = (tmp_path / "page.html").read_text()
    assert ">1 fault<" in shown and 'alt="2 episodes playing side by side"' in shown
    path.unlink()
    assert inspect([str(tmp_path / "eps"), "--html", str(tmp_path / "page.html")]) == 1
    assert "No episode could be read" in (tmp_path / "page.html").read_text()


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))


def test_thumbnails_are_spread_over_the_index_and_pictures_stay_within_their_budget(tmp_path):
    folder = write_set(tmp_path, "waves", [plain_episode(seed, 3 + seed) for seed in range(9)])
    shown = list(thumbnails(str(folder), index.read_index(str(folder)), 3))
    assert [thumbnail.key for thumbnail in shown] == [f"train-00000-{seed:06d}" for seed in (0, 4, 8)]
    assert {thumbnail.tiles.shape for thumbnail in shown} == {(MOMENTS, 96, 128, 3)}
    for budget in (400_000, 30_000):
        moving, still = animation(shown, 2, budget)
        with opened(moving) as picture_, opened(still) as other:
            assert MOMENTS // 2 <= picture_.n_frames <= MOMENTS and other.n_frames == 1
            assert 2.4 < picture_.width / picture_.height * 195 / 96 < 2.9
        assert len(moving) * 3 / 4 <= budget
    noise = np.random.default_rng(0).integers(0, 256, (MOMENTS, 96, 128, 3), dtype=np.uint8)
    assert len(strip(Thumbnail("noise", "", noise), 20_000)) * 3 / 4 <= 20_000


def test_a_picture_with_another_aspect_ratio_fills_its_tile(tmp_path):
    tall = dataclasses.replace(coloured(0, 255), frames=[encode_png(picture(1, 64, 20))] * 30, height=64, width=20)
    folder = write_set(tmp_path, "tall", [tall])
    (thumbnail,) = thumbnails(str(folder), index.read_index(str(folder)), 4)
    assert thumbnail.tiles.shape == (MOMENTS, 96, 72, 3) and thumbnail.tiles.std() > 10
