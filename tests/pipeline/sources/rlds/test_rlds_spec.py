"""The spec of an RLDS data set is untrusted: it imports nothing, unused features stop nothing, and faults are named."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rlds_data import NAME, F, features, write_set

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.rlds.features import read_features
from pipeline.sources.rlds.source import RldsSource


def read_whole(folder: Path, **known) -> list:
    entry = DatasetEntry(name=NAME, directory=NAME, image_key="image", control_hz=10.0, base_step=10.0, **known)
    source = RldsSource(str(folder), entry, FrameForm("source"))
    return [item for shard in source.plan() for _, item in source.read(shard)]


def respecified(folder: Path, **changed) -> None:
    """Replace features of a step in a spec, or add some; None removes one."""
    content = json.loads((folder / "features.json").read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps.update(changed)
    for name in [name for name, value in changed.items() if value is None]:
        del steps[name]
    (folder / "features.json").write_text(json.dumps(content))


def test_a_spec_cannot_make_the_reader_import_other_code(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(
        text.replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text")
    )
    assert all(isinstance(item, Episode) for item in read_whole(folder))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["", "float33"])
def test_an_action_with_an_invalid_type_is_named(tmp_path, name):
    folder = write_set(tmp_path, episodes=1)
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace('"float32"', f'"{name}"'))
    with pytest.raises(ConfigError, match=rf"steps/action is Tensor of {name or 'no type'}, 2\. .* --no_actions"):
        read_whole(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"featuresDict": {"features": {}}}', '{"featuresDict": []}', "null"])
def test_an_invalid_spec_is_named(tmp_path, text):
    folder = write_set(tmp_path, episodes=1)
    (folder / "features.json").write_text(text)
    with pytest.raises(SourceError, match=r"features\.json"):
        read_whole(folder)


PREFIX = "tensorflow_datasets.core.features."
UNUSED = {
    "sound": {"pythonClassName": f"{PREFIX}audio_feature.Audio", "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64"}},
    "film": {"pythonClassName": f"{PREFIX}video_feature.Video", "video": {"shape": {"dimensions": ["-1", "4", "4", "3"]}}},
    "half": {"pythonClassName": f"{PREFIX}tensor_feature.Tensor", "tensor": {"shape": {}, "dtype": "bfloat16"}},
    "tiny": {"pythonClassName": f"{PREFIX}tensor_feature.Tensor", "tensor": {"shape": {}, "dtype": "float8_e4m3fn"}},
    "own": {"pythonClassName": "our_lab.features.Point", "jsonFeature": {"json": '{"z": 1}'}},
    "own, as a tensor": {"pythonClassName": "our_lab.Grasp", "tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32"}},
    "class of nobody": {"pythonClassName": "nowhere.Nothing"},
    "words": {"pythonClassName": f"{PREFIX}translation_feature.Translation", "translation": {"languages": ["de"]}},
    "label": {"pythonClassName": f"{PREFIX}class_label_feature.ClassLabel", "classLabel": {"numClasses": "-3"}},
    "box": {"pythonClassName": f"{PREFIX}bounding_boxes.BBoxFeature", "boundingBox": {"bboxFormat": "of the moon"}},
    "bad json": {"pythonClassName": "x.Y", "jsonFeature": {"json": "{"}},
    "no mapping": ["a", 3],
    "a number": 7,
    "nothing": {},
    "odd shape": {"tensor": {"shape": {"dimensions": ["far"]}, "dtype": "float32"}},
    "older": {"type": "our_lab.Old", "content": "{}"},
    "depth of future": {"pythonClassName": f"{PREFIX}hologram.Hologram", "hologram": {"layers": 3}},
}


@pytest.mark.parametrize("name", UNUSED)
def test_an_unused_feature_of_any_form_stops_nothing(tmp_path, name):
    folder = write_set(tmp_path, episodes=1)
    respecified(folder, unused=UNUSED[name])
    (one, _) = read_whole(folder)
    assert isinstance(one, Episode) and one.action.shape == (6, 2) and one.language == "do thing 0"


def test_both_older_formats_of_a_spec_give_the_same_features(tmp_path):
    spec = features(
        action=F.FeaturesDict(
            {"features": F.Tensor(shape=(2,), dtype=np.float32, encoding="zlib"), "type": F.Scalar(np.bool_)}
        ),
        extra={"several": F.Sequence(F.Tensor(shape=(None,), dtype=np.int32), length=3), "label": F.ClassLabel(num_classes=4)},
    )
    now = write_set(tmp_path, [], spec=spec) / "features.json"
    wanted = read_features(now.read_bytes(), "now")
    assert wanted["steps/action/features"].encoding == "zlib" and wanted["steps/action/type"].dtype == "bool"
    assert wanted["steps/several"].sequences == 1
    assert read_features(json.dumps(spec.to_json()).encode(), "with proto_cls") == wanted
    assert read_features(json.dumps(of_old(spec)).encode(), "old") == wanted


def of_old(feature) -> dict:
    """Return a spec in the format of tensorflow-datasets 4.0, before it used a proto."""
    kind = f"{type(feature).__module__}.{type(feature).__name__}"
    if isinstance(feature, F.FeaturesDict):
        content = {name: of_old(part) for name, part in feature.items()}
    elif isinstance(feature, F.Sequence):
        content = {"feature": of_old(feature.feature), "length": feature._length}
    elif isinstance(feature, F.Image):
        content = {"shape": list(feature.shape), "dtype": "uint8", "encoding_format": "jpeg"}
    elif isinstance(feature, F.ClassLabel):
        content = {"num_classes": feature.num_classes}
    elif isinstance(feature, F.Text):
        content = {}
    else:
        encoding = feature.to_json_content().encoding
        dtype = feature.to_json_content().dtype
        content = {"shape": list(feature.shape), "dtype": dtype, "encoding": encoding}
    return {"type": kind, "content": content}
