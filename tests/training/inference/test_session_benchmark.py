"""The session benchmark measures trained models on episodes and checks that ids equal those of the published code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from pipeline import Episode
from pipeline.episodes.frames import encode_png
from pipeline.episodes.shards import EpisodeShardWriter

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "session.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves")
    random = np.random.default_rng(0)
    facts = {"rate": 5.0, "base_step": 3.0, "camera": "image", "language": "", "source_file": "x", "source_record": 0}
    for split, counts in (("train", [30]), ("test", [9, 40, 40])):
        with EpisodeShardWriter(folder / f"{split}-000000.tar") as writer:
            for number, count in enumerate(counts):
                frames = [encode_png(frame) for frame in random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)]
                action = random.normal(size=(count, tiny_models.ACTION_DIM)).astype(np.float32)
                writer.add(Episode(f"{split}-00000-{number:06d}", "waves", frames, height=32, width=32, action=action, **facts))
    return folder


def run(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("actions", [False, True])
def test_ids_of_a_trained_model_equal_those_of_reencoding(tmp_path, shards, actions):
    model = tiny_models.world_model(actions)
    folder = tiny_models.save_model(tmp_path, model)
    done = run("--model", folder, "--shards", shards, "--episodes", 2, "--temperature", 0, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    # The first episode has 7 frames after its context, the second one more than the model has positions for.
    assert (result["clips"], result["frames"]) == (2, 7 + model.max_steps)
    assert model.max_steps == 12
    assert result["equal_ids"] == 1.0
    assert result["largest_difference_of_equal_frames"] < 1e-4
    assert 1 <= result["passes_per_step"] <= model.id_layout.tokens_per_future_frame
    assert 0 <= result["accepted_drafts"] <= 1
    assert result["measured_frames_per_second"] > 0 and result["ratio"] > 0


def test_a_missing_split_is_named(tmp_path, shards):
    folder = tiny_models.save_model(tmp_path, tiny_models.world_model())
    done = run("--model", folder, "--shards", shards, "--split", "val", "--device", "cpu")
    assert done.returncode == 1
    assert "no shard of the split val" in done.stderr
