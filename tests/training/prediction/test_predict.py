import dataclasses
import json
import re

import av
import numpy as np
import pytest
import tiny_models
import torch
from waves import CLIPS, episode, pixels, write_shard

from pipeline.common.errors import ConfigError, SourceError
from pipeline.episodes.frames import encode_png
from tokenize_offline.metrics import MAX_PSNR
from training import predict
from training.prediction.clip_prediction import Sampling, clips_for, cut_clip, predict_clip
from training.prediction.episodes import choose_episodes, open_episodes
from training.prediction.measurement import measure


@pytest.fixture(scope="module")
def free():
    return tiny_models.world_model()


@pytest.fixture(scope="module")
def driven():
    return tiny_models.world_model(actions=True, rewards=True)


@pytest.fixture(scope="module")
def free_folder(free, tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("free"), free)


@pytest.fixture(scope="module")
def driven_folder(driven, tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("driven"), driven)


def run(capsys, *arguments):
    status = predict.main([*map(str, arguments), "--clips.length", str(tiny_models.CLIP_LENGTH)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def npz_input(folder):
    np.savez(folder / "episode.npz", image=pixels(10))
    return folder / "episode.npz"


def video_input(folder):
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for frame in pixels(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return folder / "clip.mp4"


def shard_input(folder):
    return write_shard(folder / "train-000000.tar", [episode()])


def folder_input(folder):
    (folder / "waves").mkdir()
    write_shard(folder / "waves" / "train-000000.tar", [episode()])
    return folder / "waves"


@pytest.mark.parametrize("make_input", [npz_input, video_input, shard_input, folder_input])
def test_each_kind_of_input_gives_pictures_and_metrics(tmp_path, capsys, free_folder, make_input):
    output = tmp_path / "out"
    status, out, _ = run(capsys, "--model", free_folder, "--input", make_input(tmp_path), "--output", output, "--samples", 2)
    assert status == 0
    names = ["contact_sheet.png", "index.html", "metrics.json", "prediction.gif", "prediction.mp4"]
    assert sorted(path.name for path in output.iterdir()) == names
    metrics = json.loads((output / "metrics.json").read_text())
    assert len(metrics["prediction"]["samples"]) == 2
    rows = [*metrics["prediction"]["samples"], metrics["repeat_last_frame"], metrics["reconstruction"]]
    assert all(len(row["psnr"]) == len(row["ssim"]) == 3 for row in rows)
    summary = json.loads(out)
    assert summary["episodes"] == 1
    assert summary["repeat_last_frame"]["mean_psnr"] == metrics["repeat_last_frame"]["mean_psnr"]


def test_several_episodes_have_folders_and_an_average(tmp_path, capsys, driven_folder):
    episodes = [episode(f"train-00000-{number:06d}", seed=number) for number in range(3)]
    shard = write_shard(tmp_path / "train-000000.tar", episodes)
    arguments = ("--model", driven_folder, "--input", shard, "--output", tmp_path / "out", "--episodes", 2)
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    own = [json.loads((tmp_path / "out" / f"episode-00{number}" / "metrics.json").read_text()) for number in range(2)]
    assert [metrics["episode"] for metrics in own] == [each.key for each in episodes[:2]]
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["episodes"] == own
    for row in ("repeat_last_frame", "reconstruction"):
        assert summary[row]["mean_psnr"] == pytest.approx(np.mean([metrics[row]["mean_psnr"] for metrics in own]))
    assert json.loads(out)["prediction"] == summary["prediction"]
    assert not (tmp_path / "out" / "episode-002").exists()
    overview = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'<a href="([^"]+)"', overview) == ["episode-000/index.html", "episode-001/index.html"]


@pytest.mark.parametrize("wanted", ["1", "train-00000-000001"])
def test_an_episode_is_chosen_by_key_or_number(tmp_path, capsys, free_folder, wanted):
    shard = write_shard(tmp_path / "train-000000.tar", [episode(f"train-00000-{number:06d}") for number in range(3)])
    run(capsys, "--model", free_folder, "--input", shard, "--output", tmp_path / "out", "--episode", wanted)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["episode"] == "train-00000-000001"


def test_the_same_seed_gives_the_same_files(tmp_path, capsys, free_folder):
    for name in ("a", "b"):
        run(capsys, "--model", free_folder, "--input", npz_input(tmp_path), "--output", tmp_path / name, "--seed", 5)
    for name in ("prediction.gif", "prediction.mp4", "contact_sheet.png", "index.html", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--start", "8"), r"has 10 frames; 5 frames at a stride of 1 from frame 8 need 13: use --start 5 or less"),
        (("--start", "7"), r"need 12: use --start 5 or less, or use --steps 1"),
        (("--steps", "12"), r"need 14: use --steps 8"),
        (("--clips.stride", "4"), r"need 17: use --steps 1, or use --clips.stride 2"),
        (("--start", "-1"), r"--start must be at least 0, not -1"),
        (("--episode", "4"), "has no episode 4; it has 1, numbered from 0"),
        (("--episode", "no-such"), "has no episode no-such; it has file-00000-000000"),
        (("--episode", "0", "--episodes", "2"), "cannot be combined with --episode"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("--top_k", "-3"), "top_k must be a positive whole number"),
        (("--samples", "0"), "samples must be at least 1"),
        (("--clips.context_length", "1"), "the model was trained with 2"),
        (("--clips.stride", "0.2s"), "needs a frame rate"),
        (("--held_out", "true", "--clips.held_out", "0"), "held out from training"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(tmp_path, capsys, free_folder, arguments, message):
    status, out, err = run(
        capsys, "--model", free_folder, "--input", npz_input(tmp_path), "--output", tmp_path / "out", *arguments
    )
    assert status in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert re.search(message, err)


def test_the_camera_of_an_npz_with_several_is_chosen(tmp_path, capsys, free_folder):
    np.savez(tmp_path / "two.npz", main=pixels(10, seed=1), wrist_image=pixels(10, seed=2))
    arguments = ("--model", free_folder, "--input", tmp_path / "two.npz", "--output", tmp_path / "out")
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert "wrist_image" in err
    status, _, err = run(capsys, *arguments, "--camera", "wrist_image")
    assert status == 0, err


def test_an_unknown_option_suggests_the_nearest(tmp_path, capsys, free_folder):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--model", str(free_folder), "--input", "x", "--output", "y", "--temprature", "1"])
    assert stopped.value.code == 2
    assert "did you mean --temperature?" in capsys.readouterr().err


def test_an_input_of_unknown_kind_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="is not a valid input"):
        open_episodes(str(tmp_path / "empty"))


def test_a_warning_says_that_small_frames_are_enlarged(tmp_path, capsys, caplog, free_folder):
    small = dataclasses.replace(episode(), frames=[encode_png(frame) for frame in pixels(12, 0, 24, 30)], height=24, width=30)
    for each in (episode(), small):
        shard = write_shard(tmp_path / f"train-{each.height:06d}.tar", [each])
        arguments = ["--model", str(free_folder), "--input", str(shard), "--output", str(tmp_path / "out"), "--steps", "1"]
        assert predict.main(arguments) == 0
    capsys.readouterr()
    assert [one.getMessage() for one in caplog.records if "enlarged" in one.getMessage()] == [
        f"{tmp_path}/train-000024.tar has frames of 24 pixels; they are enlarged to the model's 32 pixels"
    ]


def test_frames_and_actions_of_a_clip_follow_the_stride(driven):
    source = episode(count=20)
    clip = cut_clip(source, driven, clips_for(driven, dataclasses.replace(CLIPS, stride="3"), None), start=2)
    assert clip.indices == (2, 5, 8, 11, 14)
    assert torch.equal(clip.action, torch.from_numpy(source.action[[2, 5, 8, 11, 14]]))
    assert clip.rate == pytest.approx(5 / 3)
    assert clip.frames.shape == (5, 3, 32, 32)


def test_the_goal_frame_comes_first(free):
    fitted = clips_for(free, dataclasses.replace(CLIPS, goal=True), None)
    assert cut_clip(episode(), free, fitted, start=1).indices == (11, 1, 2, 3, 4)


def test_steps_set_the_clip_length_and_may_exceed_the_positions(free):
    beyond = free.max_steps + 4
    clip = cut_clip(episode(count=40), free, clips_for(free, dataclasses.replace(CLIPS, stride="1"), beyond), start=0)
    assert predict_clip(free, clip, Sampling()).frames.shape == (1, beyond, 3, 32, 32)


@pytest.mark.parametrize(("dimension", "found"), [(0, "has no actions"), (5, "has actions of dimension 5")])
def test_an_episode_without_the_actions_the_model_needs_is_refused(driven, dimension, found):
    with pytest.raises(ConfigError, match=found):
        cut_clip(episode(action_dim=dimension), driven, clips_for(driven, CLIPS, None), start=0)


def test_actions_that_are_not_finite_are_refused_with_the_episode_key(driven):
    broken = episode()
    broken.action[3, 0] = np.nan
    with pytest.raises(SourceError, match="train-00000-000000 has actions that are not finite"):
        cut_clip(broken, driven, clips_for(driven, CLIPS, None), start=0)


def test_a_damaged_frame_is_refused_with_the_episode_key(free):
    broken = dataclasses.replace(episode(), frames=[b"\xff\xd8\xffnonsense"] * 12)
    with pytest.raises(SourceError, match="train-00000-000000"):
        cut_clip(broken, free, clips_for(free, CLIPS, None), start=0)


def test_actions_reach_the_model_in_order(driven):
    clip = cut_clip(episode(), driven, clips_for(driven, CLIPS, None), start=0)
    prediction = predict_clip(driven, clip, Sampling(temperature=0.0))
    session = driven.start(clip.frames[:2], temperature=0)
    expected = session.rollout([clip.action[1], clip.action[2], clip.action[3]])
    assert torch.equal(prediction.frames[0], torch.stack([result.frame[0] for result in expected]))
    assert prediction.reward.shape == (1, 3)


def test_metrics_compare_only_future_frames_and_take_the_best_of_each(free):
    clip = cut_clip(episode(), free, clips_for(free, CLIPS, None), start=0)
    prediction = predict_clip(free, clip, Sampling(samples=2))
    perfect = dataclasses.replace(
        prediction,
        frames=torch.stack([clip.frames[2:], prediction.frames[1]]),
        reconstruction=torch.cat([torch.zeros(2, 3, 32, 32), clip.frames[2:]]),
    )
    metrics = measure(perfect)
    samples = metrics["prediction"]["samples"]
    assert samples[0]["mean_psnr"] == metrics["reconstruction"]["mean_psnr"] == MAX_PSNR
    assert metrics["prediction"]["best"]["mean_ssim"] == pytest.approx(1)
    assert metrics["prediction"]["mean"]["mean_psnr"] == pytest.approx((MAX_PSNR + samples[1]["mean_psnr"]) / 2)
    repeated = 10 * np.log10(1 / (clip.frames[1] - clip.frames[3]).square().mean().item())
    assert metrics["repeat_last_frame"]["psnr"][1] == pytest.approx(repeated, abs=1e-3)


def test_fewer_episodes_than_requested_are_logged(tmp_path, capsys, caplog, free_folder):
    status, out, _ = run(
        capsys, "--model", free_folder, "--input", npz_input(tmp_path), "--output", tmp_path / "out", "--episodes", 5
    )
    assert (status, json.loads(out)["episodes"]) == (0, 1)
    assert f"--episodes 5: {tmp_path}/episode.npz has only 1" in caplog.text


def test_an_unwritable_output_is_an_error_before_the_first_prediction(tmp_path, capsys, free_folder, monkeypatch):
    monkeypatch.setattr(predict, "predict_clip", lambda *_, **__: pytest.fail("predicted"))
    (tmp_path / "file").touch()
    arguments = ("--model", free_folder, "--input", npz_input(tmp_path), "--output", tmp_path / "file" / "out")
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert f"{tmp_path}/file/out cannot be written: Not a directory" in err


def test_a_larger_held_out_fraction_than_in_training_is_refused(tmp_path, capsys, free):
    folder = tiny_models.save_model(tmp_path / "model", free)
    (folder / "recipe.yaml").write_text("clips: {held_out: 0.01, length: 5}")
    shard = write_shard(tmp_path / "train-000000.tar", [episode()])
    arguments = ("--model", folder, "--input", shard, "--output", tmp_path / "out", "--held_out", "true")
    status, _, err = run(capsys, *arguments, "--clips.held_out", "0.5")
    assert status == 2
    assert "clips.held_out is 0.5, but training held out a fraction of 0.01" in err


def test_only_held_out_episodes_are_chosen_on_request():
    episodes = [dataclasses.replace(episode(count=1), key=f"train-00000-{number:06d}") for number in range(60)]
    held_out = choose_episodes(iter(episodes), None, 60, 0.2, "here")
    assert 0 < len(held_out) < 60
    assert choose_episodes(iter(episodes), "1", 1, 0.2, "here") == held_out[1:2]
