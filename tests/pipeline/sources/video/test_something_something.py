"""Something-Something-v2 is read in both layouts and by class; folders of videos are read with captions, at any depth."""

import csv
import json

import pytest
from video_data import numbers, write_video

from pipeline.common.errors import ConfigError, SourceError
from pipeline.config.catalog import DatasetEntry, dataset, something_classes
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.index import read_summary
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.sources.base import BadEpisode
from pipeline.sources.locate import open_source
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import VideoSource

ENTRY = dataset("sthsth")
FORM = FrameForm("jpeg", 24)
CLOSE, POUR = "Closing [something]", "Pouring [something] into [something]"


def item(number: int, template: str, label: str) -> dict:
    return {"id": str(number), "label": label, "template": template, "placeholders": []}


def write_labels(folder, layout: str, answers: bool = False) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    tables = {
        "labels": {"Closing something": "0", "Pouring something into something": "1"},
        "train": [item(12, CLOSE, "closing a box"), item(7, POUR, "pouring tea into a cup")],
        "validation": [item(3, CLOSE, "closing a door")],
        "test": [{"id": "9"}],
    }
    for name, content in tables.items():
        (folder / layout.format(f"{name}.json")).write_text(json.dumps(content))
    if answers:
        (folder / layout.format("test-answers.csv")).write_text("9;Closing something\n")


LAYOUTS = ["something-something-v2-{}", "labels/{}"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_give_the_splits_and_captions_of_the_pre_training_classes(tmp_path, layout):
    write_labels(tmp_path, layout)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "12.mp4", count=6)
    source = open_source(ENTRY, str(tmp_path), FORM)
    assert isinstance(source, SomethingSource)
    plan = source.plan()
    assert [(s.split, s.number, s.file, s.text) for s in plan] == [
        ("train", 12, "videos/12.mp4", "closing a box"),
        ("validation", 3, "3.webm", "closing a door"),
    ]
    ((_, episode),) = source.read(plan[0])
    assert (episode.key, episode.language, numbers(episode)) == ("train-00012-000000", "closing a box", list(range(6)))
    ((_, bad),) = source.read(plan[1])
    assert isinstance(bad, BadEpisode) and "is missing" in bad.reason


def test_clips_of_other_classes_and_videos_without_a_label_are_counted(tmp_path):
    write_labels(tmp_path, LAYOUTS[1])
    for number in (12, 3, 555):
        write_video(tmp_path / f"{number}.mp4", count=3)
    output = str(tmp_path / "out")
    source = open_source(ENTRY, str(tmp_path), FORM, ["Closing something"])
    units = make_plan(source, None, None, 1 << 30)
    outcome = ingest(units, source, "sthsth", output, ["--direct_running_mode=in_memory"], overwrite=False)
    classes, unlabelled = "videos of classes that are not wanted (--classes)", "videos that the label files don't name"
    assert dict(outcome.ignored) == {classes: 2, unlabelled: 1}
    summary = read_summary(output)
    assert summary["passed_over"] == outcome.ignored
    assert {split: counts["filtered"] for split, counts in summary["splits"].items()} == {"train": 1, "validation": 0}


def test_classes_can_be_chosen_and_are_part_of_the_inputs_of_a_shard(tmp_path):
    write_labels(tmp_path, LAYOUTS[1], answers=True)

    def taken(classes):
        source = SomethingSource(str(tmp_path), ENTRY, FORM, classes)
        return [(s.split, s.number) for s in source.plan()], source.inputs()["classes"]

    usual, pour, every = taken(None), taken(["Pouring something into something"]), taken(["all"])
    assert usual[0] == [("test", 9), ("train", 12), ("validation", 3)]
    assert pour[0] == [("train", 7)]
    assert every[0] == [("test", 9), ("train", 7), ("train", 12), ("validation", 3)]
    assert len({inputs for _, inputs in (usual, pour, every)}) == 3
    with pytest.raises(ConfigError, match=r"'Closing somthing' \(did you mean 'Closing something'\?\)"):
        taken(["Closing somthing"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("label", "template", "placeholders", "caption"),
    [
        ("pouring thé into 茶碗 🍵", POUR, ["thé", "茶碗 🍵"], "pouring thé into 茶碗 🍵"),
        ("", POUR, ["thé", "茶碗"], "Pouring thé into 茶碗"),
        (None, POUR, ["only one"], "Pouring something into something"),
        (None, CLOSE, None, "Closing something"),
        (None, CLOSE, [3], "Closing something"),
    ],
)
def test_a_caption_is_the_label_or_the_filled_template(tmp_path, layout, label, template, placeholders, caption):
    write_labels(tmp_path, layout)
    told = {"id": 12, "label": label, "template": template, "placeholders": placeholders}
    (tmp_path / layout.format("train.json")).write_text(json.dumps([told], ensure_ascii=False), encoding="utf-8")
    (shard,) = (s for s in SomethingSource(str(tmp_path), ENTRY, FORM, ["all"]).plan() if s.split == "train")
    assert (shard.number, shard.text) == (12, caption)


def test_the_test_split_without_answers_is_taken_only_with_all(tmp_path):
    write_labels(tmp_path, LAYOUTS[0])
    splits = {s.split for s in SomethingSource(str(tmp_path), ENTRY, FORM).plan()}
    assert splits == {"train", "validation"}
    assert "test" in {s.split for s in SomethingSource(str(tmp_path), ENTRY, FORM, ["all"]).plan()}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", r"train\.json is not JSON.*Fetch it again"),
        ("{}", "not a list"),
        ('[{"id": "../../secret"}]', "is not a number"),
        ('[{"id": "7", "template": "Closing [something]"}, {"id": "7", "template": "Closing [something]"}]', "7 twice"),
    ],
)
def test_damaged_labels_are_an_error_that_names_the_file_and_never_become_paths(tmp_path, content, reason):
    write_labels(tmp_path, LAYOUTS[1])
    (tmp_path / "labels" / "train.json").write_text(content)
    with pytest.raises(SourceError, match=reason):
        SomethingSource(str(tmp_path), ENTRY, FORM).plan()


@pytest.mark.parametrize("content", ['[{"id": "7"}]', "[]", "3", "null", '"Closing something"'])
def test_an_invalid_list_of_classes_is_an_error_that_names_the_file(tmp_path, content):
    write_labels(tmp_path, LAYOUTS[1])
    (tmp_path / "labels" / "labels.json").write_text(content)
    with pytest.raises(SourceError, match=r"labels\.json is not a table of classes and their numbers. Fetch it again"):
        SomethingSource(str(tmp_path), ENTRY, FORM, ["Closing something"])


def test_the_default_classes_are_the_published_ones(shared):
    with (shared / "facts" / "something_something_v2_labels.csv").open() as file:
        published = {row["label"] for row in csv.DictReader(file) if row["used_for_pretraining"] == "1"}
    assert set(something_classes()) == published and len(something_classes()) == 95


def test_the_real_sample_is_read_with_its_captions(shared):
    source = open_source(ENTRY, str(shared / "data" / "video" / "ssv2"), FORM, ["all"])
    units = make_plan(source, None, None, 1 << 30)
    assert [(unit.split, len(unit.sources)) for unit in units] == [("test", 1), ("train", 4), ("validation", 1)]
    assert all(unit.source_bytes > 0 for unit in units)
    ((_, episode),) = source.read(units[1].sources[0])
    assert (episode.num_frames, episode.rate, episode.height) == (48, 12, 24)
    assert (episode.language, episode.key) == ("moving cup closer to a cup", "train-900001-000000")
    assert [shard.number for shard in open_source(ENTRY, source.folder, FORM).plan()] == [900001, 900003, 900004]


def own(folder) -> VideoSource:
    source = open_source(DatasetEntry("mine", "mine", "video"), str(folder), FORM)
    assert isinstance(source, VideoSource)
    return source


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", '\ufefffile,text\nday 1/b.mp4,"cut, then peel"\n'),
        ("metadata.jsonl", '\n{"text": "cut, then peel", "file": "day 1/b.mp4", "more": 1}\n'),
    ],
)
def test_videos_are_found_at_any_depth_with_their_captions(tmp_path, name, content):
    (tmp_path / "day 1" / "x").mkdir(parents=True)
    for file in ("day 1/b.mp4", "day 1/x/a.mp4"):
        write_video(tmp_path / file, count=4)
    (tmp_path / name).write_text(content)
    source = own(tmp_path)
    assert [(s.file, s.text) for s in source.plan()] == [("day 1/b.mp4", "cut, then peel"), ("day 1/x/a.mp4", "")]
    (unit,) = make_plan(source, None, None, 1 << 30)
    episodes = [episode for shard in unit.sources for _, episode in source.read(shard)]
    assert [episode.language for episode in episodes] == ["cut, then peel", ""]
    (tmp_path / name).write_text(content.replace("peel", "wash"))
    assert make_plan(source, None, None, 1 << 30)[0].inputs != unit.inputs


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metadata.csv", b"file,text\n../a.mp4,x\n", r"line 2 names '\.\./a\.mp4'"),
        ("metadata.csv", b"name,caption\na.mp4,x\n", "line 2: a caption needs `file` and `text`"),
        ("metadata.csv", b"file,text\na.mp4,\xff\n", "UTF-8"),
        ("metadata.jsonl", b'{"file": "a.mp4", "text": "x"}\n[', "not valid UTF-8 CSV or JSON lines"),
        ("metadata.jsonl", b'["a.mp4", "x"]\n', "line 1: a caption needs"),
    ],
)
def test_a_damaged_caption_file_is_an_error_with_name_and_line(tmp_path, name, content, reason):
    write_video(tmp_path / "a.mp4", count=2)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        own(tmp_path).plan()


def test_videos_of_another_data_set_are_not_taken_for_one_with_a_version(tmp_path):
    (tmp_path / "hands").mkdir()
    write_video(tmp_path / "hands" / "a.mp4", count=2)
    with pytest.raises(SourceError, match="no data of bridge"):
        open_source(dataset("bridge"), str(tmp_path), FORM)
