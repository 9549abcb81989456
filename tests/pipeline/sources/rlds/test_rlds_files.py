"""Files of an RLDS data set: those that names announce, those never written, and those missing on purpose."""

import gzip
import json

import pytest
from rlds_data import NAME, SOURCE, entry, rewrite, write_set

from pipeline.__main__ import main
from pipeline.common.errors import SourceError
from pipeline.episodes.episode import Episode
from pipeline.sources.rlds.source import RldsSource


def read(folder, **known) -> tuple[RldsSource, list]:
    source = RldsSource(str(folder), entry(), SOURCE)
    for name, value in known.items():
        setattr(source, name, value)
    return source, [(shard, item) for shard in source.plan() if shard.split == "train" for _, item in source.read(shard)]


def file_name(number: int, of: int) -> str:
    return f"{NAME}-train.tfrecord-{number:05d}-of-{of:05d}"


def with_gap(tmp_path):
    """Write files 0, 1 and 3 of 4 with three in `dataset_info.json`, as if the builder had dropped an empty file."""
    folder = write_set(tmp_path, episodes=5, per_shard=2)
    for number in range(3):
        (folder / file_name(number, 3)).rename(folder / file_name(number if number < 2 else 3, 4))
    return folder


def test_a_file_number_that_the_builder_never_wrote_is_not_a_loss(tmp_path):
    source, found = read(with_gap(tmp_path))
    assert all(isinstance(item, Episode) for _, item in found) and len(found) == 5
    assert [(shard.number, shard.records, shard.first) for shard in source.plan() if shard.split == "train"] == [
        (0, 2, 0),
        (1, 2, 2),
        (3, 1, 4),
    ]
    (reason,) = source.ignored
    assert "have no file" in reason and source.ignored[reason] == 1


@pytest.mark.parametrize("change", ["lose one more", "no lengths"])
def test_a_file_that_may_be_missing_counts_as_a_loss(tmp_path, change):
    folder = with_gap(tmp_path)
    if change == "no lengths":
        (folder / "dataset_info.json").unlink()
    else:
        (folder / file_name(1, 4)).unlink()
    _, found = read(folder)
    assert {item.kind for _, item in found if not isinstance(item, Episode)} == {"missing"}


def test_files_that_are_missing_on_purpose_are_counted_but_not_as_losses(tmp_path):
    folder = write_set(tmp_path, episodes=6, per_shard=1)
    for number in (1, 2, 5):
        (folder / file_name(number, 6)).unlink()
    source, found = read(folder, skips_missing=True)
    assert [(shard.number, shard.first) for shard, _ in found] == [(0, 0), (3, 3), (4, 4)]
    assert source.ignored["files that are not there, which --skip_missing allows"] == 3


def ingest(root, output, *more: str) -> int:
    words = ["--dataset", NAME, "--rate", "10", "--source", str(root), "--output", str(output), "--splits", "train", *more]
    return main([*words, "--", "--runner=DirectRunner"])


def test_the_advice_of_the_command_for_missing_files_works(tmp_path, capsys):
    folder = write_set(tmp_path / "set", episodes=3, per_shard=1)
    (folder / file_name(1, 3)).unlink()
    assert ingest(folder, tmp_path / "out") == 1
    assert "--skip_missing uses only the existing ones; choose another output folder" in capsys.readouterr().err
    assert ingest(folder, tmp_path / "new", "--skip_missing") == 0
    summary = json.loads((tmp_path / "new" / NAME / "dataset.json").read_text())
    assert summary["passed_over"] == {"files that are not there, which --skip_missing allows": 1}
    assert summary["splits"]["train"]["left_out"] == 0


def test_the_command_ingests_without_actions_if_they_cannot_be_read(tmp_path, capsys):
    folder = write_set(tmp_path / "set", episodes=1)
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace('"float32"', '"float8"'))
    assert ingest(folder, tmp_path / "out") == 2
    assert "steps/action is Tensor of float8, 2" in capsys.readouterr().err
    rewrite(folder, lambda columns: columns.pop("steps/action"))
    assert ingest(folder, tmp_path / "out", "--no_actions") == 0
    assert json.loads((tmp_path / "out" / NAME / "dataset.json").read_text())["made_with"]["actions"] is False


def test_files_that_are_compressed_as_a_whole_are_named(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    for path in list(folder.glob("*.tfrecord-*")):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(SourceError, match=r"compressed as a whole, such as .*\.gz: unpack"):
        read(folder)
