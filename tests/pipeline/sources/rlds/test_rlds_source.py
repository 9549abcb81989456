"""RLDS data sets in practice: each test is a way in which real data sets differ from clean ones."""

import json
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rlds_data import NAME, SOURCE, F, entry, episode, features, picture, read_all, rewrite, write_set
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, decode, encode_jpeg, encode_png
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.locate import open_source
from pipeline.sources.rlds.features import Feature
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.rlds.spec import episode_spec
from pipeline.sources.tfrecord.reader import read_records, write_record


def test_a_clean_data_set_is_read_as_written(tmp_path):
    folder = write_set(tmp_path, episodes=5, per_shard=2)
    source = RldsSource(str(folder), entry(), SOURCE)
    plan = source.plan()
    assert [(s.split, s.number, s.records) for s in plan] == [("train", 0, 2), ("train", 1, 2), ("train", 2, 1), ("val", 0, 1)]
    found = [item for shard in plan for _, item in source.read(shard)]
    assert [e.key for e in found[:3]] == ["train-00000-000000", "train-00000-000001", "train-00001-000000"]
    one, written = found[3], episode(3)
    assert one.frames == [step["observation"]["image"] for step in written["steps"]]
    assert np.array_equal(one.action, [[3, t] for t in range(6)]) and one.action.dtype == np.float32
    assert np.array_equal(one.state[:, 0], range(6)) and one.reward[-1] == 1 and one.is_terminal.sum() == 1
    assert (one.language, one.episode_id, one.rate, one.camera) == ("do thing 3", "episode 3", 10.0, "image")
    assert (one.height, one.width, one.source_record) == (48, 64, 1)


def test_equal_episodes_are_written_as_equal_bytes_by_every_process(tmp_path):
    (path,) = write_set(tmp_path, episodes=2).glob("*-train.tfrecord-*")
    for record in read_records(str(path)):
        # Without deterministic=True, the order of the entries of a map differs between processes.
        assert record == tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def test_the_parts_of_a_dictionary_of_actions_are_concatenated_in_the_order_of_names(tmp_path):
    spec = features(
        action=F.FeaturesDict(
            {
                "world_vector": F.Tensor(shape=(3,), dtype=np.float32),
                "open_gripper": F.Scalar(np.bool_),
                "mode": F.Tensor(shape=(2,), dtype=np.int32),
                "note": F.Text(),
            }
        )
    )

    def action(t):
        return {"world_vector": np.full(3, t, np.float32), "open_gripper": t % 2 == 0, "mode": [7, 8], "note": "no number"}

    (one,) = read_all(write_set(tmp_path, [episode(0, action=action)], spec=spec))
    assert one.action_meaning == "mode: 2, open_gripper: 1, world_vector: 3"
    assert np.array_equal(one.action[3], [7, 8, 0, 3, 3, 3])


def test_only_the_first_step_of_a_multi_step_action_is_used(tmp_path):
    spec = features(
        action=F.FeaturesDict(
            {"future/xyz": F.Tensor(shape=(30,), dtype=np.float32), "future/close": F.Tensor(shape=(10,), dtype=np.int64)}
        )
    )
    several = [
        episode(0, action=lambda t: {"future/xyz": np.arange(30, dtype=np.float32) + t, "future/close": np.arange(10) + t})
    ]
    (one,) = read_all(write_set(tmp_path, several, spec=spec), future_steps=10)
    assert np.array_equal(one.action[2], [2, 2, 3, 4])
    assert one.action_meaning == "future/close: 1, future/xyz: 3"


def test_one_action_fewer_than_frames_is_padded_with_zeros(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    rewrite(folder, lambda columns: columns["steps/action"].float_list.value.__delitem__(slice(-2, None)))
    (one,) = read_all(folder)
    assert one.action.shape == (6, 2) and not one.action[-1].any() and one.action[-2, 1] == 4
    rewrite(folder, lambda columns: columns["steps/action"].float_list.value.__delitem__(slice(-2, None)))
    (bad,) = read_all(folder)
    assert bad == BadEpisode("4 actions for 6 frames")


def test_double_precision_actions_become_single_precision(tmp_path):
    wide = features(action=F.Tensor(shape=(2,), dtype=np.float64))
    (one,) = read_all(write_set(tmp_path / "a", [episode(1, action=lambda t: np.array([0.5, t]))], spec=wide))
    assert one.action.dtype == np.float32 and one.action[1].tolist() == [0.5, 1]


def test_an_action_that_is_not_finite_makes_a_bad_episode(tmp_path):
    (bad,) = read_all(write_set(tmp_path, [episode(0, action=lambda t: np.array([np.nan, 0], np.float32))]))
    assert bad == BadEpisode("an action is not finite")


@pytest.mark.parametrize("text", ["grasp the Würfel", "plain"])
def test_an_instruction_may_be_padded_integers(tmp_path, text):
    spec = features(instruction=F.Tensor(shape=(64,), dtype=np.int32))
    for number, spelled in enumerate([list(text.encode()), [ord(c) for c in text + "\u2192"]]):
        padded = np.array(spelled + [0] * (64 - len(spelled)), np.int32)
        folder = write_set(tmp_path / str(number), [episode(0, instruction=lambda t, padded=padded: padded)], spec=spec)
        assert read_all(folder)[0].language == (text if number == 0 else text + "\u2192")


def test_integers_that_are_not_text_become_writable_text(tmp_path):
    spec = features(instruction=F.Tensor(shape=(5,), dtype=np.int32))
    odd = np.array([97, 0xD800, -4, 0x7FFFFFFF, 98], np.int32)
    (one,) = read_all(write_set(tmp_path, [episode(0, instruction=lambda t: odd)], spec=spec))
    assert one.language == "a\ufffd\ufffd\ufffdb" and one.to_sample()


def test_an_instruction_may_be_missing_or_empty_in_the_first_steps(tmp_path):
    absent = features(instruction=F.Scalar(np.float32))
    spec_without = {"steps": {}}
    (one,) = read_all(write_set(tmp_path / "b", [episode(0, instruction=lambda t: "" if t < 3 else "late")]))
    assert one.language == "late"
    folder = write_set(tmp_path / "a", [episode(0, instruction=lambda t: 0.0)], spec=absent)
    content = json.loads((folder / "features.json").read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    spec_without = steps.pop("language_instruction")
    assert spec_without
    (folder / "features.json").write_text(json.dumps(content))
    assert read_all(folder)[0].language == ""


@pytest.mark.parametrize("encoding", ["none", "zlib", "bytes"])
def test_a_camera_may_hold_raw_pixels(tmp_path, encoding):
    spec = features(image=F.Tensor(shape=(48, 64, 3), dtype=np.uint8, encoding=encoding))
    folder = write_set(tmp_path, [episode(0, frames=3, image=lambda t: picture(t))], spec=spec)
    (one,) = read_all(folder)
    assert np.array_equal(decode(one.frames[2]), picture(2))
    (small,) = read_all(folder, FrameForm("jpeg", 24))
    assert (small.height, small.width) == (24, 32) == decode(small.frames[0]).shape[:2]


def test_an_endless_compressed_tensor_is_a_bad_episode(tmp_path):
    spec = features(image=F.Tensor(shape=(48, 64, 3), dtype=np.uint8, encoding="zlib"))
    folder = write_set(tmp_path, [episode(0, frames=2, image=lambda t: picture(t))], spec=spec)
    endless = zlib.compress(b"\0" * 50_000_000)
    rewrite(folder, lambda columns: columns["steps/observation/image"].bytes_list.value.__setitem__(1, endless))
    (bad,) = read_all(folder)
    assert isinstance(bad, BadEpisode) and "doesn't hold a tensor of shape (48, 64, 3)" in bad.reason


def test_images_may_have_another_format_than_the_spec_states(tmp_path):
    (one,) = read_all(write_set(tmp_path, [episode(0, image=lambda t: encode_png(picture(t)))]))
    assert np.array_equal(decode(one.frames[1]), picture(1))


def test_swapped_channels_are_corrected_only_for_the_cameras_in_the_catalog(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    swapped = encode_jpeg(np.ascontiguousarray(red[..., ::-1]))
    folder = write_set(tmp_path, [episode(0, frames=1, image=lambda t: swapped)])
    for form in (SOURCE, FrameForm("jpeg", 24)):
        assert decode(read_all(folder, form, bgr=("image",))[0].frames[0])[..., 0].mean() > 240
        assert decode(read_all(folder, form, bgr=("wrist_image",))[0].frames[0])[..., 2].mean() > 240


def test_a_placeholder_camera_is_a_bad_episode_but_a_still_one_is_not(tmp_path):
    black = encode_jpeg(np.zeros((48, 64, 3), np.uint8))
    still = encode_jpeg(picture(1))
    bad, good = read_all(write_set(tmp_path, [episode(0, image=lambda t: black), episode(1, image=lambda t: still)]))
    assert isinstance(bad, BadEpisode) and "placeholder" in bad.reason and isinstance(good, Episode)


def test_feature_names_may_contain_slashes(tmp_path):
    spec = features(extra={"observation/wrist/rgb": F.Image(shape=(None, None, 3))})
    folder = write_set(
        tmp_path, [episode(0, **{"observation/wrist/rgb": lambda t: encode_jpeg(picture(t, 32, 32))})], spec=spec
    )
    (one,) = read_all(folder, image_key="wrist/rgb")
    assert (one.height, one.width, one.camera) == (32, 32, "wrist/rgb")


def test_an_unknown_camera_is_an_error_that_lists_the_cameras(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    with pytest.raises(ConfigError, match=r"no camera 'imag' \(did you mean 'image'\?\); it has image"):
        read_all(folder, image_key="imag")
    with pytest.raises(ConfigError, match="no camera 'state'"):
        read_all(folder, image_key="state")
    cameras = {f"steps/observation/image_{n}": Feature("image", "", (None, None, 3), "uint8") for n in range(4)}
    with pytest.raises(ConfigError, match=r"no camera 'image'; it has image_0, image_1"):
        episode_spec(cameras, entry())


def test_without_a_stated_version_the_only_version_is_opened_and_several_are_an_error(tmp_path):
    folder = write_set(tmp_path, 1, name="my_own")
    own = DatasetEntry("my_own", "my_own", "image")
    for root in (tmp_path, tmp_path / "my_own", folder):
        assert open_source(own, str(root), SOURCE).folder == str(folder)
    folder.with_name("0.2.0").mkdir()
    with pytest.raises(SourceError, match=r"has 0\.1\.0, 0\.2\.0\. Pass one of them"):
        open_source(own, str(tmp_path), SOURCE)


def test_file_names_may_lack_the_number_of_files(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=1)
    for path in folder.glob("*.tfrecord-*"):
        path.rename(path.with_name(path.name.partition("-of-")[0]))
    (folder / "dataset_info.json").unlink()
    source = RldsSource(str(folder), entry(), SOURCE)
    assert [(s.split, s.file, s.records) for s in source.plan()] == [
        *[("train", f"{NAME}-train.tfrecord-0000{n}", 1) for n in range(3)],
        ("val", f"{NAME}-val.tfrecord-00000", 1),
    ]
    assert len(read_all(folder)) == 3


def test_the_episodes_of_a_missing_file_are_in_the_plan_and_listed(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=1)
    lost = folder / f"{NAME}-train.tfrecord-00001-of-00003"
    lost.unlink()
    source = RldsSource(str(folder), entry(), SOURCE)
    (shard,) = [shard for shard in source.plan() if shard.file == lost.name]
    ((_, bad),) = source.read(shard)
    assert bad == BadEpisode("the file is missing. Fetch it", "missing")


def test_a_file_truncated_between_records_is_detected_by_its_stated_length(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=3)
    path = next(folder.glob("*-train.tfrecord-*"))
    records = list(read_records(str(path)))
    with path.open("wb") as file:
        write_record(file, records[0])
    kept, *lost = read_all(folder)
    assert kept.num_frames == 6
    assert lost == [BadEpisode("the file ends after 1 of 3 records. Fetch it again", "damaged")] * 2


def test_two_files_with_the_same_number_are_refused(tmp_path):
    folder = write_set(tmp_path, episodes=1)
    (folder / f"{NAME}-train.tfrecord-00000-of-00009").write_bytes(b"")
    with pytest.raises(SourceError, match="has both"):
        read_all(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["steps/observation/image"].bytes_list.value.__setitem__(2, b"\xff\xd8\xffjunk"), "JPEG header is damaged"),
        (lambda c: c["steps/observation/image"].bytes_list.value.__delitem__(slice(None)), "no frames"),
        (lambda c: c["steps/observation/image"].ClearField("bytes_list"), "image is missing"),
        (lambda c: c.pop("steps/action"), "steps/action is missing"),
        (lambda c: c["steps/action"].bytes_list.value.append(b"x"), "doesn't hold 2 numbers a step"),
        (lambda c: c["steps/reward"].float_list.value.append(0.0), "7 reward for 6 frames"),
        (
            lambda c: c["steps/observation/image"].bytes_list.value.__setitem__(0, encode_jpeg(picture(0, 20, 20))),
            "the size of the picture changes",
        ),
    ],
)
def test_a_bad_episode_is_left_out_with_its_reason(tmp_path, change, reason):
    folder = write_set(tmp_path, episodes=1)
    rewrite(folder, change)
    (bad,) = read_all(folder)
    assert isinstance(bad, BadEpisode) and reason in bad.reason


def test_a_record_that_is_not_an_example_is_a_bad_episode(tmp_path):
    folder = write_set(tmp_path, episodes=2, per_shard=2)
    path = next(folder.glob("*-train.tfrecord-*"))
    good = next(read_records(str(path)))
    with path.open("wb") as file:
        write_record(file, b"\xff\xff\xff garbage")
        write_record(file, good)
    bad, kept = read_all(folder)
    assert "no tf.train.Example" in bad.reason and isinstance(kept, Episode)


def test_failed_episodes_are_filtered_if_the_catalog_says_so(tmp_path):
    spec = F.FeaturesDict({**features(), "success": F.Scalar(np.bool_)})
    several = [{**episode(n), "success": n > 0} for n in range(3)]
    folder = write_set(tmp_path, several, spec=spec)
    assert [isinstance(item, Episode) for item in read_all(folder, success_filter=True)] == [False, True, True]
    assert read_all(folder, success_filter=True)[0].filtered
    assert all(isinstance(item, Episode) for item in read_all(folder))


def test_take_stops_reading_after_this_many_records(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=3)
    source = RldsSource(str(folder), entry(), SOURCE)
    file = source.plan()[0].file
    assert [position for position, _ in source.read(SourceShard("train", 0, file, records=3, take=2))] == [0, 1]


def test_tensorflow_datasets_reads_what_the_writer_wrote(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=2)
    info = tfds.builder_from_directory(str(folder)).info
    assert info.splits["train"].num_examples == 3 and info.splits["train"].num_shards == 2
    record = next(read_records(str(sorted(folder.glob("*-train.*"))[1])))
    skip = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    steps = info.features.deserialize_example_np(record, decoders=skip)["steps"]
    assert steps[4]["observation"]["image"] == episode(2)["steps"][4]["observation"]["image"]


def test_real_data_sets_are_read_unchanged(shared):
    rlds = shared / "data" / "rlds"
    fractal = RldsSource(
        str(rlds / "fractal20220817_data/0.1.0"), DatasetEntry("fractal20220817_data", "", "image", control_hz=3.0), SOURCE
    )
    found = [item for shard in fractal.plan() for _, item in fractal.read(shard)]
    assert [e.num_frames for e in found] == [29, 54, 66, 57] and {e.action.shape[1] for e in found} == {13}
    assert found[0].language == "pick brown chip bag" and (found[0].height, found[0].width) == (256, 320)
    octo = str(rlds / "bridge_dataset/1.0.0")
    for camera, good in (("image_0", True), ("image_2", True), ("image_3", False)):
        source = RldsSource(octo, DatasetEntry("bridge_dataset", "", camera, control_hz=5.0), SOURCE)
        items = [item for shard in source.plan() for _, item in source.read(shard)]
        assert len(items) == 50 and all(isinstance(item, Episode) == good for item in items)
