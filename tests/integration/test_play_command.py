"""Runs `ivideogpt-play` in its own process: it prints its URL, serves the page and stops on a signal."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest
import tiny_models
import warm
import waves


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_url_and_stops_on_a_signal(tmp_path, number):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model(actions=True))
    shard = waves.write_shard(tmp_path / "train-000000.tar", [waves.episode()])
    command = [sys.executable, "-m", "training.play", "--model", str(model), "--input", str(shard), "--port", "0"]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "Play with a world model" in answer.read().decode()
        call = urllib.request.Request(f"{url}start", b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=60) as answer:
            assert len(json.load(answer)["frames"]) == 2
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in messages


def test_a_missing_input_is_a_one_line_error(tmp_path):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model(actions=True))
    command = [sys.executable, "-m", "training.play", "--model", str(model), "--input", str(tmp_path / "nothing")]
    done = warm.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "is not a valid input" in done.stderr
