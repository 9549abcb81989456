"""The doctor reports where a source differs from the catalog, and reports nothing where it agrees."""

import json

import pytest
from rlds_data import F, episode, features, write_set

from pipeline.common.errors import SourceError
from pipeline.config.catalog import dataset
from pipeline.inspection.doctor import diagnose, entries_at
from pipeline.inspection.inspect import run as inspect


def test_a_real_sample_agrees_with_the_catalog(shared, capsys):
    root = str(shared / "data" / "rlds")
    assert {entry.name for entry in entries_at(root)} == {"bridge", "fractal20220817_data"}
    diagnosis = diagnose(dataset("fractal20220817_data"), root)
    assert diagnosis.differences == [] and diagnosis.splits == {"train": {"files": 2, "episodes": 4}}
    assert (diagnosis.first_episode["height"], diagnosis.first_episode["width"]) == (256, 320)
    assert inspect(["--doctor", str(shared / "data" / "rlds" / "fractal20220817_data" / "0.1.0")]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == "fractal20220817_data"


def test_every_camera_of_a_numbered_set_is_compared_with_the_spec(tmp_path, capsys):
    spec = features(extra={"image_1": F.Image(shape=(None, None, 3))})
    write_set(tmp_path, 1, spec=spec, name="uiuc_d3field", image_1=lambda t: episode(0)["steps"][t]["observation"]["image"])
    assert inspect(["--doctor", str(tmp_path), "--dataset", "uiuc_d3field1"]) == 0
    assert inspect(["--doctor", str(tmp_path), "--dataset", "uiuc_d3field2"]) == 1
    shown = capsys.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert first["notes"] == ["the catalog also names a camera 'image_2', which doesn't exist; the cameras are image, image_1"]
    assert first["differences"] == []
    assert "has no camera 'image_2'" in second["differences"][0] and "Pass --camera" in second["differences"][0]
    assert "uiuc_d3field2: uiuc_d3field2 has no camera" in shown.err


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="missing: this folder doesn't exist"):
        inspect(["--doctor", str(tmp_path / "missing")])
    with pytest.raises(SourceError, match="missing: this folder doesn't exist"):
        inspect(["--doctor", str(tmp_path / "missing"), "--dataset", "kuka"])


def test_missing_and_empty_files_another_version_and_missing_features_are_differences(tmp_path):
    folder = write_set(tmp_path, 4, 1, name="kuka")
    (folder / "kuka-train.tfrecord-00001-of-00004").unlink()
    (folder / "kuka-train.tfrecord-00002-of-00004").write_bytes(b"")
    folder = folder.rename(folder.with_name("9.0.0"))
    text = "\n".join(diagnose(dataset("kuka"), str(folder)).differences)
    for words in (
        "version 9.0.0, the catalog describes 0.1.0",
        "no feature `success`",
        "1 files are missing: kuka-train.tfrecord-00001",
        "1 files are empty: kuka-train.tfrecord-00002",
    ):
        assert words in text
    assert len(text.splitlines()) == 4


def test_an_unreadable_episode_and_a_missing_data_set_are_differences(tmp_path):
    write_set(tmp_path, [episode(0, image=lambda t: b"no image")], name="kuka")
    differences = diagnose(dataset("kuka"), str(tmp_path)).differences
    assert any("record 0: image is neither JPEG nor PNG" in difference for difference in differences)
    (difference,) = diagnose(dataset("bridge"), str(tmp_path)).differences
    assert "no data of bridge" in difference
    with pytest.raises(SourceError, match="pass --dataset NAME"):
        (tmp_path / "other" / "deeper").mkdir(parents=True)
        entries_at(str(tmp_path / "other" / "deeper"))


def test_a_data_set_that_is_not_in_the_catalog_is_diagnosed_by_its_name(tmp_path, capsys, caplog):
    write_set(tmp_path, 2, name="my_own")
    write_set(tmp_path, 2, name="kuka")
    assert {entry.name for entry in entries_at(str(tmp_path))} == {"kuka"}
    assert "folders that are not in the catalog are ignored: my_own" in caplog.text
    assert inspect(["--doctor", str(tmp_path), "--dataset", "my_own"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["splits"]["train"]["episodes"] == 2 and found["spec"]["camera"] == "image"
    (difference,) = found["differences"]
    assert "'my_own' is not in the catalog" in difference and "--rate" in difference
