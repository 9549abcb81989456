import http.client
import json
import threading

import numpy as np
import pytest
import tiny_models
import waves
from browser import chromium

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.recipe import ClipsConfig
from training.cli import play as command
from training.play.controls import Slider, read_action, sliders_for
from training.play.game import Game, GameStart
from training.play.server import PlayServer
from training.prediction.clip_prediction import Sampling
from training.prediction.start_options import Start as EpisodeStart

DIM = tiny_models.ACTION_DIM
CLIPS = ClipsConfig(length=tiny_models.CLIP_LENGTH)
RIGHT, UP = "\ue014", "\ue013"
HOSTILE = "</script><script>document.title='taken'</script>"


def episodes():
    return [
        waves.episode(seed=0, action_meaning=f"x, y, grip {HOSTILE}"),
        waves.episode(key=f"train-{HOSTILE}", seed=1, count=20),
        waves.episode(key="without", seed=2, action_dim=0),
    ]


def starts(*episodes):
    return [EpisodeStart(episode, CLIPS, "as asked for") for episode in episodes]


@pytest.fixture(scope="module")
def driven():
    return tiny_models.world_model(actions=True, rewards=True)


@pytest.fixture
def game(driven):
    return Game(driven, starts(*episodes()), Sampling(seed=3))


@pytest.fixture
def server(game):
    with PlayServer(game, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body).encode(), sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def value_of(browser, number):
    return float(browser.run("return document.querySelectorAll('#sliders input')[arguments[0]].value", number))


def frames_so_far(browser):
    return "Number((document.querySelector('#status').textContent.match(/^Frame (\\d+)/) ?? [0, 0])[1])"


def test_keys_sliders_and_buttons_drive_the_model(browser, server, driven):
    browser.requests()
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    assert browser.run("return document.querySelectorAll('#sliders input').length") == DIM
    before = [value_of(browser, number) for number in range(DIM)]
    browser.press(RIGHT)
    browser.wait(f"{frames_so_far(browser)} === 1")
    first = browser.run("return document.querySelector('#futures img').src")
    browser.press(UP)
    browser.wait(f"{frames_so_far(browser)} === 2")
    after = [value_of(browser, number) for number in range(DIM)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] == before[2]
    assert browser.run("return document.querySelector('#futures img').src") != first
    browser.click("#run")
    browser.wait(f"{frames_so_far(browser)} >= {driven.max_steps + 1}")
    assert "forgotten" in browser.run("return document.querySelector('#status').textContent")
    browser.click("#run")
    assert browser.complaints() == []
    asked = {url.removeprefix(server.url) for url in browser.requests() if not url.startswith("data:")}
    assert asked == {"", "start", "step"}


def test_a_restart_takes_another_frame_and_several_futures(browser, server):
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    browser.run(
        "document.querySelector('#episode').value = 1; document.querySelector('#frame').value = 4;"
        "document.querySelector('#count').value = 3"
    )
    browser.click("#start")
    browser.wait("document.querySelectorAll('#futures img').length === 3")
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    browser.click("#step")
    browser.wait(f"{frames_so_far(browser)} === 1")
    assert browser.run("return new Set([...document.querySelectorAll('#futures img')].map((i) => i.src)).size") > 1
    browser.click("#replay")
    browser.wait(f"{frames_so_far(browser)} === 2")
    sent = [value_of(browser, number) for number in range(DIM)]
    # The context is frames 4 and 5, so the second step takes the action of frame 6. A slider has a thousand positions.
    np.testing.assert_allclose(sent, episodes()[1].action[6], atol=0.01)
    browser.run("document.querySelector('#frame').value = 4000")
    browser.click("#start")
    browser.wait("document.querySelector('#status').classList.contains('error')")
    assert "start at frame 0 to" in browser.run("return document.querySelector('#status').textContent")


def test_sliders_start_at_the_next_recorded_action_and_moving_one_predicts_a_frame(browser, server):
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    np.testing.assert_allclose([value_of(browser, number) for number in range(DIM)], episodes()[0].action[1], atol=0.01)
    browser.run(
        "const slider = document.querySelector('#sliders input'); slider.value = slider.max;"
        "slider.dispatchEvent(new Event('input'))"
    )
    browser.wait(f"{frames_so_far(browser)} === 1")


def test_text_from_inputs_is_escaped(browser, server):
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    assert browser.run("return document.querySelectorAll('#episode option')[1].textContent") == f"waves · train-{HOSTILE}"
    assert browser.run("return document.querySelector('#meaning').textContent") == f"x, y, grip {HOSTILE}"
    assert browser.run("return document.title") == "Play with a world model"


def test_a_released_key_moves_the_slider_back(browser, server):
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    browser.click("#spring")
    before = value_of(browser, 0)
    browser.press(RIGHT, up=False)
    assert value_of(browser, 0) == pytest.approx(float(browser.run("return document.querySelector('#sliders input').max")))
    browser.press(RIGHT, down=False)
    assert value_of(browser, 0) == before


def test_the_same_actions_give_the_same_frames(game, driven):
    started = game.start(GameStart(frame=2, futures=2, seed=5))
    answers = [game.step(started["session"], action) for action in started["recorded"][:2]]
    source = episodes()[0]
    np.testing.assert_allclose(started["recorded"], source.action[3:], rtol=1e-6)
    again = game.start(GameStart(frame=2, futures=2, seed=5))
    assert again["frames"] == started["frames"]
    assert [game.step(again["session"], action)["frames"] for action in again["recorded"][:2]] == [
        answer["frames"] for answer in answers
    ]
    other = game.start(GameStart(frame=2, futures=2, seed=5))
    moved = [game.step(other["session"], [number + 3 for number in action])["frames"] for action in other["recorded"][:2]]
    assert moved != [answer["frames"] for answer in answers]
    assert [answer["step"] for answer in answers] == [1, 2]
    assert all(len(answer["rewards"]) == 2 for answer in answers)


def test_episodes_too_short_for_the_context_are_left_out_with_a_warning(driven, caplog):
    short, whole = waves.episode(key="short", count=1), waves.episode()
    game = Game(driven, starts(short, whole), Sampling())
    assert [each["name"] for each in game.describe()["episodes"]] == [f"waves · {whole.key}"]
    assert game.describe()["episodes"][0]["pace"] == "a stride of 1, 0.2 s a frame (as asked for)"
    assert "short (1 frames, 2 needed)" in caplog.text
    with pytest.raises(
        SourceError, match=r"no episode is long enough for the model's 2 context frames: short \(1 frames, 2 needed\)"
    ):
        Game(driven, starts(short), Sampling())


def test_the_page_shows_the_time_step(browser, server):
    browser.open(server.url)
    browser.wait("document.querySelector('#status').textContent.startsWith('Ready')")
    assert browser.run("return document.querySelector('#pace').textContent") == "a stride of 1, 0.2 s a frame (as asked for)"


@pytest.mark.parametrize(("option", "value"), [("--episodes", "0"), ("--samples", "5"), ("--rate", "-1")])
def test_an_invalid_number_is_refused_before_the_model_is_opened(capsys, option, value):
    assert command.main(["--model", "nowhere", "--input", "nowhere.npz", option, value]) == 2
    assert f"{option} must be" in capsys.readouterr().err


def test_a_new_session_replaces_the_oldest(game):
    names = [game.start(GameStart())["session"] for _ in range(5)]
    assert len(set(names)) == 5
    with pytest.raises(ConfigError, match="start again"):
        game.step(names[0], [0.0] * DIM)
    assert game.step(names[-1], [0.0] * DIM)["step"] == 1


def test_a_model_without_actions_has_no_sliders():
    game = Game(tiny_models.world_model(), starts(*episodes()), Sampling())
    assert game.describe()["sliders"] == []
    session = game.start(GameStart())["session"]
    assert game.step(session, [])["step"] == 1
    with pytest.raises(ConfigError):
        game.step(session, [1.0])


@pytest.mark.parametrize(
    "wanted",
    [
        GameStart(episode=3),
        GameStart(episode=-1),
        GameStart(frame=-1),
        GameStart(frame=11),
        GameStart(futures=0),
        GameStart(futures=99),
        GameStart(temperature=-1.0),
        GameStart(temperature=float("nan")),
    ],
)
def test_an_invalid_start_is_refused(game, wanted):
    with pytest.raises(ConfigError):
        game.start(wanted)


@pytest.mark.parametrize(
    "value", [None, [], 3, {"path": "/etc"}, {"frame": "1"}, {"frame": 1.5}, {"seed": True}, {"seed": 10**400}]
)
def test_a_malformed_start_is_refused(value):
    with pytest.raises(ConfigError):
        GameStart.read(value)


@pytest.mark.parametrize(
    "value", [None, {}, [0.0, 1.0], [0.0, 1.0, "2"], [0.0, 1.0, float("nan")], [0.0, 1.0, 10**400], [True, 0, 0]]
)
def test_an_action_that_is_not_a_list_of_finite_numbers_is_refused(value):
    with pytest.raises(ConfigError, match="3 finite numbers"):
        read_action(value, 3)


def test_sliders_have_the_range_of_the_recorded_actions():
    source = waves.episode()
    source.action[:, 2] = 0.5
    low, high = source.action.min(axis=0), source.action.max(axis=0)
    sliders = sliders_for(DIM, [waves.episode(action_dim=0), source])
    assert sliders[0] == Slider("action 1", float(low[0]), float(high[0]))
    assert sliders[2].low < 0.5 < sliders[2].high
    assert sliders_for(2, [source]) == [Slider("action 1", -1.0, 1.0), Slider("action 2", -1.0, 1.0)]


@pytest.mark.parametrize("path", ["/etc/passwd", "/../setup.cfg", "/%2e%2e/", "/index.html", "/?x=1", "//etc/passwd"])
def test_only_the_page_is_served(server, path):
    assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", path, {})[0] == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_a_foreign_host_name_is_refused(server, method, host):
    status, _, content = ask(server, method, "/" if method == "GET" else "/start", {}, Host=host)
    assert status == 421
    assert b"recorded" not in content


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8600", "127.0.0.1:1", "[::1]:8600"])
def test_own_host_names_are_served(server, host):
    assert ask(server, "GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Origin": "http://evil.example"}, {}, 403),
        ({"Origin": "null"}, {}, 403),
        ({"Content_Type": "text/plain"}, {}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, b"a=1", 415),
        ({"Content_Length": "16385"}, None, 413),
        ({"Content_Length": "9" * 5000}, None, 413),
        ({"Content_Length": "-1"}, None, 411),
        ({"Content_Length": "x"}, None, 411),
        ({}, b"[" * 16000, 400),
        ({}, b"\xff\xfe", 400),
        ({}, b'{"frame": 1', 400),
        ({}, {"frame": 99}, 400),
    ],
)
def test_a_call_from_elsewhere_or_with_an_invalid_body_is_refused(server, headers, body, status):
    found, _, content = ask(server, "POST", "/start", body, **headers)
    assert found == status
    assert json.loads(content)["error"]
    assert ask(server, "GET", "/")[0] == 200


def test_other_origins_cannot_read_or_frame_answers(server):
    for method, path, body in (("GET", "/", None), ("POST", "/start", {})):
        status, headers, _ = ask(server, method, path, body)
        assert status == 200
        assert "Access-Control-Allow-Origin" not in headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers["Server"]


def test_a_port_in_use_is_an_error(game, server):
    with pytest.raises(ConfigError, match="choose another"):
        PlayServer(game, "127.0.0.1", server.server_port)
