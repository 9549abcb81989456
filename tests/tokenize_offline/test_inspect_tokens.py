"""Token shards can be inspected: codebook statistics of a data set, and rows decoded by the right tokenizer."""

import json

import fsspec
import numpy as np
import pytest
from PIL import Image
from synthetic_episodes import TINY, tiny_tokenizer, write_shards

from tokenize_offline.__main__ import main as tokenize
from tokenize_offline.inspect import main
from tokenize_offline.shards.codebook_stats import code_counts, codebook_statistics


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny_tokenizer(folder / "tok")
    write_shards(folder / "eps", shards=2, episodes=2)
    paths = ["--shards", str(folder / "eps"), "--tokenizer", str(folder / "tok"), "--output", str(folder / "out")]
    assert tokenize([*paths, "--clips.length", "4", "--clips.held_out", "0"]) == 0
    return folder


def test_perplexity_counts_evenly_used_codes_and_no_special_ids():
    id_layout = TINY.id_layout
    ids = np.array([[0, 1, 2, 3, id_layout.start_of_context, 40, 40, id_layout.start_of_future]], np.uint16)
    statistics = codebook_statistics(code_counts(ids, id_layout), id_layout)
    assert statistics == {
        "context_codes_used": 4,
        "context_perplexity": 4.0,
        "future_codes_used": 1,
        "future_perplexity": 1.0,
    }
    assert codebook_statistics(np.zeros(id_layout.vocabulary), id_layout)["future_perplexity"] == 0.0


def test_codebook_statistics_of_a_data_set_cover_all_its_shards(made, capsys):
    assert main([str(made / "out"), "--codebooks"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["splits"]["train"]["shards"] == 2
    parts = [json.loads(path.read_text())["statistics"] for path in sorted((made / "out" / "made_up").glob("*.json"))]
    for name in ("context_codes_used", "future_codes_used"):
        together = lines[1]["codebooks"][name]
        assert max(part[name] for part in parts) <= together <= sum(part[name] for part in parts)
    reconstruction = lines[1]["reconstruction"]
    assert reconstruction["sampled_clips"] == sum(part["sampled_clips"] for part in parts) == 2
    for name in ("context_psnr", "future_psnr"):
        assert min(part[name] for part in parts) <= reconstruction[name] <= max(part[name] for part in parts)


def test_a_single_token_shard_can_be_inspected(made, capsys):
    assert main([str(made / "out" / "made_up" / "train-000001.arrow"), "--codebooks", "--verify"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    record = json.loads((made / "out" / "made_up" / "train-000001.json").read_text())
    assert lines[0]["splits"]["train"]["shards"] == 1 and lines[0]["splits"]["train"]["samples"] == record["samples"]
    assert lines[1]["codebooks"]["context_codes_used"] == record["statistics"]["context_codes_used"]


def test_each_row_is_drawn_as_a_line(made, tmp_path):
    picture = tmp_path / "rows.png"
    shard = str(made / "out" / "made_up" / "train-000000.arrow")
    assert main([shard, "--rows", "[0,3]", "--tokenizer", str(made / "tok"), "--picture", str(picture)]) == 0
    assert Image.open(picture).size == (4 * 34, 2 * 34)


@pytest.mark.parametrize(
    ("rows", "seed", "said"), [("[99]", 0, "has rows 0 to 7"), ("[0]", 1, "was made by a tokenizer with weights")]
)
def test_wrong_rows_and_wrong_tokenizers_are_errors(made, tmp_path, capsys, rows, seed, said):
    tiny_tokenizer(tmp_path / "tok", seed)
    shard = str(made / "out" / "made_up" / "train-000000.arrow")
    assert main([shard, "--rows", rows, "--tokenizer", str(tmp_path / "tok")]) == 2
    assert said in capsys.readouterr().err


def test_codebook_statistics_are_the_same_on_an_object_store(made, capsys):
    fs = fsspec.filesystem("memory")
    for path in (made / "out" / "made_up").iterdir():
        if path.is_file():
            fs.pipe_file(f"/tokens/made_up/{path.name}", path.read_bytes())
    assert main([str(made / "out"), "--codebooks"]) == 0
    local = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["memory://tokens", "--codebooks"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["codebooks"] == local["codebooks"]


def test_the_page_of_token_shards_counts_clips(made, tmp_path):
    assert main([str(made / "out"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    rows = sum(json.loads(path.read_text())["samples"] for path in (made / "out" / "made_up").glob("*.json"))
    assert f"<b>{rows}</b><span>tokenized clips</span>" in page and "<h2>Token shards</h2>" in page
    assert "episodes</span>" not in page and "<b>0</b>" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{out}", "--rate", "3"], "--rate has no effect without --plan"),
        (["{out}", "--dataset", "bridge"], "--dataset has no effect without --doctor"),
        (["{out}", "--tokenizer", "{tok}"], "--tokenizer has no effect without --rows"),
        (["{out}", "--picture", "x.png"], "--picture has no effect without --rows"),
        (["{eps}", "--plan", "demo", "--html", "x.html"], "--html has no effect with --plan"),
        (["--doctor", "{eps}", "--verify"], "--verify has no effect with --doctor"),
        (["--doctor", "{eps}", "--plan", "demo"], "--plan and --doctor can't be combined"),
        (["--plan", "demo"], "--plan needs a folder of episode shards"),
        (["{eps}", "--codebooks"], "holds no token shards"),
        (["{out}/nothing"], "nothing"),
        ([], "pass a folder of shards"),
        (["--codebooks"], "pass a folder of shards"),
    ],
)
def test_options_without_effect_and_missing_inputs_are_errors(made, capsys, words, said):
    folders = {name: str(made / name) for name in ("out", "eps", "tok")}
    assert main([word.format(**folders) for word in words]) in (1, 2)
    assert said in capsys.readouterr().err
