"""After a kill, a prediction of several episodes keeps the finished ones and predicts the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models
import warm
import waves

from training import predict

EPISODES = 5
_SLOWLY = """
import sys, time
from training import predict
made = predict.predict_clip
def slowly(*given, **named):
    time.sleep(0.4)
    return made(*given, **named)
predict.predict_clip = slowly
sys.exit(predict.main(sys.argv[1:]))
"""


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    predicted: list[str] = []
    made = predict.predict_clip

    def counted(*given, **named):  # type: ignore[no-untyped-def]
        predicted.append(given[1].key)
        return made(*given, **named)

    monkeypatch.setattr(predict, "predict_clip", counted)
    return predicted


def test_the_same_command_after_a_kill_keeps_finished_episodes_and_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model())
    episodes = [waves.episode(f"train-00000-{number:06d}", seed=number) for number in range(EPISODES)]
    shard = waves.write_shard(tmp_path / "train-000000.tar", episodes)
    asked = ["--model", str(model), "--input", str(shard), "--episodes", str(EPISODES), "--steps", "2", "--output"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = warm.Popen(
        [sys.executable, "-c", _SLOWLY, *asked, str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not (killed / "episode-001" / "finished.json").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (killed / "metrics.json").exists()
    predicted = _counting(monkeypatch)
    # Another seed gives other files; they are not kept for this command.
    assert predict.main([*asked, str(whole), "--seed", "7"]) == 0
    assert predict.main([*asked, str(whole)]) == 0
    assert len(predicted) == 2 * EPISODES
    predicted.clear()
    assert predict.main([*asked, str(killed)]) == 0
    assert predicted == [episode.key for episode in episodes[2:]] or predicted == [episode.key for episode in episodes[3:]]
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)


def test_the_episodes_of_another_command_are_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny_models.save_model(tmp_path / "model", tiny_models.world_model())
    shard = waves.write_shard(
        tmp_path / "train-000000.tar", [waves.episode(f"train-00000-{number:06d}", seed=number) for number in range(2)]
    )
    asked = ["--model", str(model), "--input", str(shard), "--episodes", "2", "--steps", "2", "--output", str(tmp_path / "out")]
    with monkeypatch.context() as ended, pytest.raises(SystemError):
        ended.setattr(predict.gallery, "write_overview", lambda *_: (_ for _ in ()).throw(SystemError("ended")))
        predict.main(asked)
    predicted = _counting(monkeypatch)
    assert predict.main([*asked, "--seed", "1"]) == 0
    assert len(predicted) == 2
