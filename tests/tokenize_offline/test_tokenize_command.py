"""The command reports every mistake in one line, and checks the resolution only if it is given."""

import dataclasses
import json

import pytest
from synthetic_episodes import make_episode, tiny_tokenizer, write_shard, write_shards

from pipeline.common.manifests import fingerprint, manifest_path, read_manifest, write_manifest
from tokenize_offline.__main__ import main


@pytest.fixture
def command(tmp_path):
    tiny_tokenizer(tmp_path / "tok")
    write_shards(tmp_path / "eps", shards=1, episodes=2)
    common = ["--output", str(tmp_path / "out"), "--clips.length", "4", "--clips.per_episode", "1"]
    return {"--shards": str(tmp_path / "eps"), "--tokenizer": str(tmp_path / "tok")}, common


def arguments(command, *more, **changes):
    paths, common = command
    changed = paths | {f"--{name}": value for name, value in changes.items()}
    return [item for pair in changed.items() for item in pair] + common + list(more)


def test_the_summary_is_one_json_line(command, capsys):
    assert main(arguments(command)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["shards"], summary["rows"], summary["shards_done_before"], summary["processes"]) == (1, 2, 0, 1)
    assert main(arguments(command)) == 0
    assert json.loads(capsys.readouterr().out)["shards_done_before"] == 1


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        ([], {"shards": "/nowhere"}, "/nowhere: no episode shards"),
        ([], {"tokenizer": "/nowhere"}, "/nowhere is neither a folder nor a Hugging Face hub id"),
        (["--data.resolution", "64"], {}, "is a tokenizer for 32 x 32 frames"),
        (["--clips.context_length", "3"], {}, "clips.context_length must be 1 to 2"),
        (["--splits", "test"], {}, "the splits found are train"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(command, capsys, more, changes, said):
    assert main(arguments(command, *more, **changes)) in (1, 2)
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1


def test_a_matching_or_default_resolution_is_accepted(command):
    assert main(arguments(command, "--data.resolution", "32")) == 0
    assert main(arguments(command)) == 0


def test_an_unknown_key_is_an_error_that_suggests_the_nearest_key(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments(command, "--clips.veiws", "2"))
    assert caught.value.code == 2
    assert "clips.views" in capsys.readouterr().err


def test_shards_of_another_tokenizer_in_the_output_are_a_conflict(command, tmp_path, capsys):
    assert main(arguments(command)) == 0
    tiny_tokenizer(tmp_path / "tok2", seed=1)
    assert main(arguments(command, tokenizer=str(tmp_path / "tok2"))) == 1
    assert "tokenizer_sha256" in capsys.readouterr().err
    assert main(arguments(command, "--overwrite", tokenizer=str(tmp_path / "tok2"))) == 0


def test_a_damaged_shard_is_an_error_that_names_it(command, tmp_path, capsys):
    path = tmp_path / "eps" / "made_up" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    assert main(arguments(command)) == 1
    captured = capsys.readouterr()
    assert "train-000000.tar" in captured.err
    assert len(json.loads(captured.out)["failures"]) == 1


def test_frames_that_ingest_shrank_too_far_are_an_error_but_small_sources_are_not(command, tmp_path, capsys):
    path = write_shard(tmp_path / "small", 0, [make_episode(0, 8)])
    record = read_manifest(manifest_path(str(path)))
    for short_side, status in ((30, 2), (40, 0)):
        inputs = {"frames": {"encoding": "jpeg", "short_side": short_side, "quality": 95}}
        write_manifest(str(path.parent), dataclasses.replace(record, inputs=inputs, fingerprint=fingerprint(inputs)))
        assert main(arguments(command, shards=str(tmp_path / "small"))) == status
    assert "train-000000.tar: frames were shrunk to 30 pixels" in capsys.readouterr().err
