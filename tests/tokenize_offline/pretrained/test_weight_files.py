"""Weights in safetensors files are read, or an error says what is wrong and what to do."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from synthetic_episodes import tiny_model, tiny_tokenizer

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.manifests import sha256_of
from tokenize_offline.pretrained.weight_files import conversion, find_weights, first_nonfinite
from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.tokenizer.loading import WEIGHTS_NAME, copy, locate, weights_sha256

NAME = "model.safetensors"
INDEX = f"{NAME}.index.json"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4), "c": torch.full((1,), -2.5)}


def write_parts(folder: Path, weights=WEIGHTS, name=NAME, parts=PARTS) -> Path:
    """Write weights in turns to two files, with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {key: parts[number % 2] for number, key in enumerate(weights)}
    for part in parts:
        save_file({key: value for key, value in weights.items() if listed[key] == part}, folder / part, {"format": "pt"})
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": listed}))
    return folder


def change_index(folder: Path, change) -> None:
    raw = json.loads((folder / INDEX).read_text())
    change(raw)
    (folder / INDEX).write_text(json.dumps(raw))


def test_weights_in_several_files_read_like_one_file(tmp_path):
    files = find_weights(write_parts(tmp_path), NAME)
    read = files.read(WEIGHTS)
    assert files.shapes == {key: tuple(value.shape) for key, value in WEIGHTS.items()}
    assert all(torch.equal(read[key], value) for key, value in WEIGHTS.items())


def test_the_hash_of_several_files_depends_on_each_of_them(tmp_path):
    save_file(WEIGHTS, tmp_path / NAME)
    assert find_weights(tmp_path, NAME).sha256() == sha256_of(tmp_path / NAME)
    first = find_weights(write_parts(tmp_path / "one"), NAME).sha256()
    assert find_weights(write_parts(tmp_path / "same"), NAME).sha256() == first
    assert find_weights(write_parts(tmp_path / "other", WEIGHTS | {"b": torch.zeros(4)}), NAME).sha256() != first


FAULTS = {
    "file missing": (lambda f: (f / PARTS[1]).unlink(), rf"lists {PARTS[1]}, missing in"),
    "file too many": (
        lambda f: save_file({"d": torch.ones(1)}, f / "model-00003-of-00003.safetensors"),
        "00003.* doesn't list",
    ),
    "name in two": (lambda f: save_file(WEIGHTS, f / PARTS[1]), rf"a, c is in both {PARTS[0]} and {PARTS[1]}"),
    "name in the other": (
        lambda f: change_index(f, lambda raw: raw["weight_map"].update(a=PARTS[1])),
        rf"has a in {PARTS[1]}, but it is in {PARTS[0]}",
    ),
    "name in none": (
        lambda f: change_index(f, lambda raw: raw["weight_map"].update(d=PARTS[1])),
        rf"has d in {PARTS[1]}, but it is in no file",
    ),
    "name not listed": (lambda f: change_index(f, lambda raw: raw["weight_map"].pop("c")), "has c in no file"),
    "one file as well": (lambda f: save_file(WEIGHTS, f / NAME), rf"both {NAME} and {INDEX}"),
    "no index": (lambda f: (f / INDEX).unlink(), rf"{PARTS[0]}, {PARTS[1]} but not {INDEX}"),
    "damaged file": (lambda f: (f / PARTS[0]).write_bytes(b"cut"), rf"{PARTS[0]} can't be read"),
    "no JSON": (lambda f: (f / INDEX).write_bytes(b"\xff{"), rf"{INDEX} is not a valid index"),
    "no map": (lambda f: (f / INDEX).write_text("[1]"), rf"{INDEX} is not a valid index"),
    "empty map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), rf"{INDEX} is not a valid index"),
    "deep": (lambda f: (f / INDEX).write_text("[" * 100_000), rf"{INDEX} is not a valid index"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_disagree_with_their_index_are_an_error_that_names_them(tmp_path, name):
    spoil, message = FAULTS[name]
    spoil(write_parts(tmp_path))
    with pytest.raises(SourceError, match=message) as caught:
        find_weights(tmp_path, NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/part.safetensors", "..", "part.bin", 3, "", "a\\b.safetensors"]
)
def test_an_index_with_files_in_other_folders_is_an_error(tmp_path, file):
    save_file(WEIGHTS, tmp_path / NAME)
    folder = write_parts(tmp_path / "model")
    change_index(folder, lambda raw: raw["weight_map"].update(a=file))
    with pytest.raises(SourceError, match="plain name") as caught:
        find_weights(folder, NAME)
    assert repr(file) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_floating_point_type_are_read_as_fp32(tmp_path, dtype):
    save_file({key: value.to(dtype) for key, value in WEIGHTS.items()}, tmp_path / NAME)
    read = find_weights(tmp_path, NAME).read(WEIGHTS)
    assert all(read[key].dtype == torch.float32 and torch.equal(read[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool])
def test_quantized_weights_are_an_error_that_names_the_type(tmp_path, dtype):
    save_file(WEIGHTS | {"b": torch.ones(4).to(dtype)}, tmp_path / NAME)
    with pytest.raises(SourceError, match=rf"{NAME}: b has type .*F32"):
        find_weights(tmp_path, NAME).read(WEIGHTS)


@settings(max_examples=30, deadline=None)
@given(
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    index=st.integers(0, 99),
)
def test_a_single_nan_or_infinite_value_is_found(value, dtype, index):
    tensor = torch.full((100,), torch.finfo(torch.float16).max, dtype=dtype)
    assert first_nonfinite({"fine": tensor}) is None
    spoiled = tensor.clone()
    spoiled[index] = value
    assert first_nonfinite({"fine": tensor, "spoiled": spoiled}) == "spoiled"


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.float16), (1e300, torch.float64)]
)
def test_weights_that_are_not_finite_in_fp32_are_an_error_that_names_tensor_and_file(tmp_path, value, dtype):
    spoiled = WEIGHTS["a"].clone().to(dtype)
    spoiled[1, 2] = value
    write_parts(tmp_path, WEIGHTS | {"a": spoiled})
    with pytest.raises(SourceError, match=rf"{PARTS[0]}: a holds NaN or infinite"):
        find_weights(tmp_path, NAME).read(WEIGHTS)


def convert(command: str, in_a_shell: bool = False) -> None:
    """Run a command in a shell, or only its Python code, which is faster."""
    if in_a_shell:
        subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True)
    else:
        exec(shlex.split(command)[2], {})


PICKLES = {
    "pytorch_model.bin": WEIGHTS,
    "model.ckpt": {"state_dict": WEIGHTS, "epoch": 3},
    "it's mine.pt": WEIGHTS,
    "last.PTH": WEIGHTS,
}


@pytest.mark.parametrize("file", PICKLES)
def test_a_pickle_is_an_error_with_a_command_that_converts_it(tmp_path, file):
    torch.save(PICKLES[file], tmp_path / file)
    torch.save({"step": torch.ones(1)}, tmp_path / "z-optimizer.pt")
    with pytest.raises(SourceError, match=f"{re.escape(str(tmp_path / file))} is a pickle") as caught:
        find_weights(tmp_path, NAME)
    convert(str(caught.value).partition("next to config.json: ")[2], in_a_shell="'" in file)
    read = find_weights(tmp_path, NAME).read(WEIGHTS)
    assert all(torch.equal(read[key], value) for key, value in WEIGHTS.items())


def test_several_pickles_of_one_model_and_tied_weights_convert_into_one_file(tmp_path):
    parts = [tmp_path / f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    torch.save({"a": WEIGHTS["a"], "tied": WEIGHTS["a"]}, parts[0])
    torch.save({"b": WEIGHTS["b"]}, parts[1])
    with pytest.raises(SourceError, match=r"00001-of-00002\.bin, .*00002-of-00002\.bin are pickles"):
        find_weights(tmp_path, NAME)
    convert(conversion([str(part) for part in parts], str(tmp_path / NAME)))
    assert load_file(tmp_path / NAME).keys() == {"a", "tied", "b"}


def test_pickles_next_to_safetensors_are_ignored(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    save_file(WEIGHTS, tmp_path / NAME)
    assert find_weights(tmp_path, NAME).files == (tmp_path / NAME,)


def _tokenizer_in_parts(folder):
    model = tiny_model()
    tiny_tokenizer(folder)
    (folder / WEIGHTS_NAME).unlink()
    parts = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")
    write_parts(folder, model.state_dict(), WEIGHTS_NAME, parts)
    return model


@pytest.mark.parametrize("place", ["local", "url"])
def test_a_tokenizer_in_several_files_opens_and_can_be_copied(tmp_path, monkeypatch, place):
    monkeypatch.setenv("IVIDEOGPT_CACHE", str(tmp_path / "cache"))
    model = _tokenizer_in_parts(tmp_path / "tokenizer")
    if place == "url":
        fsspec.filesystem("memory").put(str(tmp_path / "tokenizer"), "/in-parts", recursive=True)
    path = str(tmp_path) if place == "local" else "memory://in-parts"
    opened = CompressiveVQModel.from_pretrained(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
    copy(locate(path), tmp_path / "copy")
    assert weights_sha256(locate(str(tmp_path / "copy"))) == opened.weights_sha256


@pytest.mark.parametrize("place", ["", "tokenizer", "model/tokenizer"])
def test_a_pickled_tokenizer_is_an_error_with_a_command_that_converts_it(tmp_path, place):
    folder = tmp_path / place
    tiny_tokenizer(folder)
    (folder / WEIGHTS_NAME).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(SourceError, match=rf"{re.escape(str(folder / 'diffusion_pytorch_model.bin'))} is a pickle.*python -c"):
        CompressiveVQModel.from_pretrained(str(tmp_path))
    with pytest.raises(SourceError, match=r"is a pickle.*python -c"):
        CompressiveVQModel.from_pretrained(str(folder / "diffusion_pytorch_model.bin"))


def test_the_tokenizer_of_a_training_run_is_found_and_a_file_is_an_error(tmp_path):
    weights = tiny_tokenizer(tmp_path / "model" / "tokenizer") / WEIGHTS_NAME
    assert CompressiveVQModel.from_pretrained(str(tmp_path)).weights_sha256 == sha256_of(weights)
    with pytest.raises(SourceError, match=rf"{WEIGHTS_NAME} is a file: pass the folder"):
        CompressiveVQModel.from_pretrained(str(weights))


def test_a_tokenizer_with_nan_weights_is_an_error(tmp_path):
    folder = tiny_tokenizer(tmp_path)
    state = load_file(folder / WEIGHTS_NAME)
    state["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, folder / WEIGHTS_NAME)
    with pytest.raises(SourceError, match=rf"{WEIGHTS_NAME}: encoder\.conv_in\.weight holds NaN"):
        CompressiveVQModel.from_pretrained(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_num_groups": 16},
        {"act_fn": "relu"},
        {"attention_head_dim": 8},
        {"use_quant_conv": True},
        {"codebook_normalized": "l2"},
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
        {"latents_mean": [0.5]},
    ],
)
def test_a_config_with_other_arithmetic_is_an_error_that_names_key_and_value(tmp_path, changes):
    path = tiny_tokenizer(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (key, value) = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{key} is {re.escape(repr(value))}"):
        CompressiveVQModel.from_pretrained(str(tmp_path))


def test_irrelevant_config_keys_are_ignored_and_unknown_ones_give_a_warning(tmp_path, caplog):
    path = tiny_tokenizer(tmp_path) / "config.json"
    inert = {
        "sample_size": 256,
        "scaling_factor": 0.5,
        "force_upcast": False,
        "attention_head_dim": None,
        "_note": 1,
        "author": "me",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | inert))
    CompressiveVQModel.from_pretrained(str(tmp_path))
    assert "which are ignored: author" in caplog.text
