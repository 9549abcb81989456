"""The spec of an RLDS data set is hostile input: it imports nothing, and what is wrong with it is named."""

from pathlib import Path

import pytest
from rlds_data import NAME, write_set

from pipeline.catalog import DatasetEntry
from pipeline.errors import SourceError
from pipeline.frames import FrameForm
from pipeline.sources.rlds import RldsSource


def read_whole(folder: Path) -> None:
    entry = DatasetEntry(name=NAME, directory=NAME, image_key="image", control_hz=10.0, base_step=10.0)
    source = RldsSource(str(folder), entry, FrameForm("source"))
    for shard in source.plan():
        list(source.read(shard))


def test_a_spec_cannot_make_the_reader_import_other_code(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(
        text.replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text")
    )
    with pytest.raises(SourceError, match=r"asks for the class 'antigravity\.Text'"):
        read_whole(folder)


@pytest.mark.parametrize("name", ["", "float33"])
def test_a_spec_with_a_type_that_only_tensorflow_could_know_is_named(tmp_path, name):
    folder = write_set(tmp_path, episodes=1)
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace('"float32"', f'"{name}"'))
    with pytest.raises(SourceError, match=r"features\.json names a type of numbers that there isn't"):
        read_whole(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"featuresDict": {"features": {}}}'])
def test_a_spec_that_is_none_is_named(tmp_path, text):
    folder = write_set(tmp_path, episodes=1)
    (folder / "features.json").write_text(text)
    with pytest.raises(SourceError, match=r"features\.json"):
        read_whole(folder)
