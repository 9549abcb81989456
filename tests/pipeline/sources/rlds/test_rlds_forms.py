"""Actions, states and rewards are read in every form that tensorflow-datasets writes, or named; never dropped silently."""

import json
import zlib

import numpy as np
import pytest
from rlds_data import F, entry, episode, features, read_all, rewrite, write_set

from pipeline.common.errors import ConfigError
from pipeline.episodes.frames import FrameForm
from pipeline.sources.rlds.source import RldsSource

WANTED = np.arange(24, dtype=np.float32).reshape(6, 4) / 8


def rows(dtype):
    return lambda t: (WANTED[t] * 8).astype(dtype)


FORMS = {
    "zlib": (F.Tensor(shape=(4,), dtype=np.float32, encoding="zlib"), lambda t: WANTED[t]),
    "bytes, double": (F.Tensor(shape=(4,), dtype=np.float64, encoding="bytes"), lambda t: WANTED[t].astype(np.float64)),
    "half, zlib": (F.Tensor(shape=(4,), dtype=np.float16, encoding="zlib"), lambda t: WANTED[t].astype(np.float16)),
    "unknown length": (F.Tensor(shape=(None,), dtype=np.float32), lambda t: WANTED[t]),
    "unknown length, zlib": (F.Tensor(shape=(None,), dtype=np.float32, encoding="zlib"), lambda t: WANTED[t]),
    "unknown shape, bytes": (
        F.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
        lambda t: WANTED[t].reshape(2, 2),
    ),
    "table": (F.Tensor(shape=(2, 2), dtype=np.float32), lambda t: WANTED[t].reshape(2, 2)),
    "table, one side unknown": (F.Tensor(shape=(None, 2), dtype=np.float32), lambda t: WANTED[t].reshape(2, 2)),
    "nested dicts": (
        F.FeaturesDict({"a": F.FeaturesDict({"b": F.Tensor(shape=(3,), dtype=np.float32)}), "c": F.Scalar(np.float32)}),
        lambda t: {"a": {"b": WANTED[t, :3]}, "c": WANTED[t, 3]},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_action_is_read_from_every_form_of_numbers(tmp_path, name):
    form, value = FORMS[name]
    (one,) = read_all(write_set(tmp_path, [episode(0, action=value)], spec=features(action=form)))
    assert np.array_equal(one.action, WANTED), one
    assert sum(int(part.split(": ")[1]) for part in one.action_meaning.split(", ")) == 4


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_an_action_is_read_from_every_integer_type(tmp_path, dtype, encoding):
    spec = features(action=F.Tensor(shape=(4,), dtype=dtype, encoding=encoding))
    (one,) = read_all(write_set(tmp_path, [episode(0, action=rows(dtype))], spec=spec))
    assert np.array_equal(one.action, (WANTED * 8).astype(dtype).astype(np.float32))


def test_bfloat16_is_read_from_its_bytes(tmp_path):
    form = F.Tensor(shape=(4,), dtype=np.uint16, encoding="zlib")
    halves = (WANTED.view(np.uint32) >> 16).astype(np.uint16)
    folder = write_set(tmp_path, [episode(0, action=lambda t: halves[t])], spec=features(action=form))
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace('"uint16"', '"bfloat16"'))
    assert np.array_equal(read_all(folder)[0].action, WANTED)


SCALAR = F.Scalar(np.float32)
SEQUENCES = {
    "of numbers": (F.Sequence(SCALAR), "", [[4] * 6]),
    "of a stated length": (F.Sequence(SCALAR, length=4), "", [[4] * 6]),
    "of vectors": (F.Sequence(F.Tensor(shape=(2,), dtype=np.float32)), "", [[2] * 6]),
    "of zlib": (F.Sequence(F.Tensor(shape=(2,), dtype=np.float32, encoding="zlib")), "", [[2] * 6]),
    "of sequences": (F.Sequence(F.Sequence(SCALAR)), "", [[2] * 6, [2] * 12]),
    "of dicts": (F.Sequence({"x": SCALAR}), "/x", [[4] * 6]),
    "a step less": (F.Sequence(SCALAR), "", [[4] * 5]),
}


def write_sequences(root, form, below, values, lengths):
    """A data set of one episode whose action is in sequences, as records keep these: tensorflow-datasets writes them with
    TensorFlow alone."""
    folder = write_set(root / "set", [episode(0, action=lambda t: "")], spec=features(action=F.Text()))
    spec = write_set(root / "spec", [], spec=features(action=form)) / "features.json"
    (folder / "features.json").write_bytes(spec.read_bytes())

    def change(columns):
        del columns["steps/action"]
        path = f"steps/action{below}/ragged"
        if "zlib" in spec.read_text():
            parts = [zlib.compress(part.tobytes()) for part in values.reshape(-1, 2)]
            columns[f"{path}_flat_values"].bytes_list.value.extend(parts)
        else:
            columns[f"{path}_flat_values"].float_list.value.extend(values.ravel())
        for level, row in enumerate(lengths):
            columns[f"{path}_row_lengths_{level}"].int64_list.value.extend(row)

    rewrite(folder, change)
    return folder


@pytest.mark.parametrize("name", SEQUENCES)
def test_an_action_is_read_from_sequences_of_one_length(tmp_path, name):
    form, below, lengths = SEQUENCES[name]
    steps = len(lengths[0])
    (one,) = read_all(write_sequences(tmp_path, form, below, WANTED[:steps], lengths))
    assert np.array_equal(one.action[:steps], WANTED[:steps]) and not one.action[steps:].any()


@pytest.mark.parametrize("lengths", [[[1, 2, 3, 6, 6, 6]], [[4] * 7], [[]], [[-4] * 6], [[3] * 6], [[4] * 3 + [0] * 3]])
def test_an_episode_with_sequences_of_different_lengths_is_left_out(tmp_path, lengths):
    (bad,) = read_all(write_sequences(tmp_path, F.Sequence(SCALAR), "", WANTED, lengths))
    assert "steps/action" in bad.reason or "actions for" in bad.reason


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        (F.Text(), "up", "steps/action is text"),
        (F.FeaturesDict({"a": F.Text()}), {"a": "up"}, "steps/action/a is text"),
        (F.Tensor(shape=(2,), dtype=np.object_), ["a", "b"], "steps/action is Tensor of string, 2"),
    ],
)
def test_an_unreadable_action_is_named_with_the_option_to_ingest_without_it(tmp_path, form, value, message):
    folder = write_set(tmp_path, [episode(0, action=lambda t: value)], spec=features(action=form))
    with pytest.raises(ConfigError, match=f"{message}.* --no_actions"):
        read_all(folder)
    (one,) = read_all(folder, actions=False)
    assert one.action is None and one.action_meaning == ""
    with_actions = RldsSource(str(folder), entry(), FrameForm("source")).inputs()
    assert RldsSource(str(folder), entry(actions=False), FrameForm("source")).inputs() == {**with_actions, "actions": False}


def test_unknown_numbers_next_to_an_action_are_an_error_and_texts_are_counted(tmp_path):
    form = F.FeaturesDict({"arm": F.Tensor(shape=(2,), dtype=np.float32), "note": F.Text()})
    folder = write_set(
        tmp_path, [episode(0, action=lambda t: {"arm": np.ones(2, np.float32), "note": "x"})], spec=features(action=form)
    )
    source = RldsSource(str(folder), entry(), FrameForm("source"))
    source.plan()
    assert source.ignored["feature steps/action/note of the action: text, no numbers"] == 1
    spec = folder / "features.json"
    content = json.loads(spec.read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["action"]["featuresDict"]["features"]["hand"] = {"pythonClassName": "lab.Hand", "jsonFeature": {"json": "{}"}}
    spec.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"steps/action/hand is Hand.* --no_actions"):
        read_all(folder, robot="another, since specs are read once")


def test_rewards_states_and_instructions_in_unknown_forms_are_counted_by_name(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    spec = folder / "features.json"
    content = json.loads(spec.read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    own = {"pythonClassName": "lab.Own", "jsonFeature": {"json": "{}"}}
    steps["reward"] = {"tensor": {"shape": {"dimensions": ["3"]}, "dtype": "float32"}}
    steps["language_instruction"] = own
    steps["observation"]["featuresDict"]["features"]["state"] = own
    spec.write_text(json.dumps(content))
    source = RldsSource(str(folder), entry(), FrameForm("source"))
    source.plan()
    assert set(source.ignored) == {
        "feature steps/observation/state: Own, which can't be read as states",
        "feature steps/reward: a feature without a class of float32, 3, which can't be read as a reward",
        "feature steps/language_instruction: Own, which can't be read as an instruction",
    }
    (one,) = read_all(folder)
    assert one.reward is None and one.state is None and one.language == ""


def test_a_compressed_action_is_limited_to_the_size_in_the_spec(tmp_path):
    form = F.Tensor(shape=(None,), dtype=np.float32, encoding="zlib")
    folder = write_set(tmp_path, [episode(0, action=lambda t: WANTED[t])], spec=features(action=form))
    bomb = zlib.compress(bytes(1 << 28), 9)
    rewrite(folder, lambda columns: columns["steps/action"].bytes_list.value.__setitem__(1, bomb))
    (bad,) = read_all(folder)
    assert "steps/action doesn't hold a tensor" in bad.reason
    rewrite(folder, lambda columns: columns["steps/action"].bytes_list.value.__setitem__(1, zlib.compress(bytes(16))[:-5]))
    assert "cut short" in read_all(folder)[0].reason


def test_a_picture_larger_than_any_frame_is_refused_before_it_is_read(tmp_path):
    folder = write_set(
        tmp_path,
        [episode(0, frames=1, image=lambda t: np.zeros((48, 64, 3), np.uint8))],
        spec=features(image=F.Tensor(shape=(48, 64, 3), dtype=np.uint8, encoding="zlib")),
    )
    spec = folder / "features.json"
    spec.write_text(spec.read_text().replace('"48"', '"16000"').replace('"64"', '"16000"'))
    (bad,) = read_all(folder)
    assert bad.reason.startswith("image of 16000 x 16000 pixels, the limit is")


def test_a_set_without_actions_needs_no_option(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    spec = folder / "features.json"
    content = json.loads(spec.read_text())
    del content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]["action"]
    spec.write_text(json.dumps(content))
    assert read_all(folder)[0].action is None
