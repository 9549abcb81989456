"""Tokenizer files are saved and read back, and every mismatch is an error that names it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from synthetic_episodes import TINY, tiny_model, tiny_tokenizer

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.manifests import sha256_of
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from tokenize_offline.tokenizer.config import parse_config
from tokenize_offline.tokenizer.loading import WEIGHTS_NAME

CLIP = torch.linspace(0, 1, 4 * 3 * 32 * 32).reshape(1, 4, 3, 32, 32)


def change_config(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_tokenizer_reads_back_equal_and_in_evaluation_mode(tmp_path):
    model = tiny_model()
    model.save_pretrained(str(tmp_path))
    again = CompressiveVQModel.from_pretrained(str(tmp_path))
    assert again.config == model.config and not again.training
    assert torch.equal(again.tokenize(CLIP), model.tokenize(CLIP))
    assert again.weights_sha256 == sha256_of(tmp_path / WEIGHTS_NAME)
    again.save_pretrained(str(tmp_path / "copy"))
    assert (tmp_path / "copy" / WEIGHTS_NAME).read_bytes() == (tmp_path / WEIGHTS_NAME).read_bytes()


def test_saved_configs_have_every_key_of_published_ones(shared, tmp_path):
    published = json.loads((shared / "parity" / "context2" / "tokenizer" / "config.json").read_text())
    CompressiveVQModel.from_pretrained(str(shared / "parity" / "context2")).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == {key: value for key, value in published.items() if key != "_diffusers_version"}


def test_the_tokenizer_of_a_model_folder_is_found(tmp_path):
    tiny_tokenizer(tmp_path / "tokenizer")
    tiny_tokenizer(tmp_path / "elsewhere", seed=1)
    found = CompressiveVQModel.from_pretrained(str(tmp_path))
    named = CompressiveVQModel.from_pretrained(str(tmp_path), subfolder="elsewhere")
    assert found.weights_sha256 != named.weights_sha256


def test_a_tokenizer_at_a_url_opens_and_is_fetched_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = []
    for seed in (0, 1):
        tiny_model(seed).save_pretrained("memory://tokenizers/tiny")
        found.append(CompressiveVQModel.from_pretrained("memory://tokenizers/tiny"))
    assert found[0].config == TINY
    assert found[0].weights_sha256 != found[1].weights_sha256


def test_missing_unknown_and_misshapen_parameters_are_an_error_that_names_all(tmp_path):
    state = tiny_model().state_dict()
    state["stray.weight"] = torch.zeros(3)
    state["quantize.embedding.weight"] = torch.zeros(7, 8)
    del state["quant_conv.bias"]
    tiny_tokenizer(tmp_path)
    safetensors.torch.save_file(state, tmp_path / WEIGHTS_NAME)
    with pytest.raises(SourceError) as caught:
        CompressiveVQModel.from_pretrained(str(tmp_path))
    message = str(caught.value)
    assert "1 missing: quant_conv.bias" in message
    assert "1 unknown: stray.weight" in message
    assert "quantize.embedding.weight (7, 8) (expected (40, 8))" in message


def test_truncated_weights_are_an_error_that_names_the_file(tmp_path):
    weights = tiny_tokenizer(tmp_path) / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SourceError, match=WEIGHTS_NAME):
        CompressiveVQModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"norm_type": "spatial"}, "norm_type"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types"),
        ({"vq_embed_dim": 3}, "vq_embed_dim"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": [32, 33]}, "multiples of 32"),
        ({"num_vq_embeddings": "many"}, "num_vq_embeddings"),
        ({"latent_channels": 1 << 40}, "latent_channels"),
        ({"resolution": 36}, "resolution 36"),
    ],
)
def test_a_config_of_another_network_is_an_error_that_names_the_key(tmp_path, changes, named):
    change_config(tiny_tokenizer(tmp_path), **changes)
    with pytest.raises(ConfigError, match=named):
        CompressiveVQModel.from_pretrained(str(tmp_path))


def test_unknown_keys_are_ignored_and_missing_keys_are_an_error(tmp_path):
    change_config(tiny_tokenizer(tmp_path), _diffusers_version="9.9", something_new=1)
    assert CompressiveVQModel.from_pretrained(str(tmp_path)).config == TINY
    text = json.loads(CompressiveVQConfig().to_json())
    del text["patch_size"]
    with pytest.raises(ConfigError, match="lacks patch_size"):
        parse_config(json.dumps(text), "config.json")
    with pytest.raises(ConfigError, match="not JSON"):
        parse_config(b"\xff{", "config.json")


@pytest.mark.parametrize("name", ["nowhere/at/all", "../up", "C:"])
def test_a_path_that_is_neither_a_folder_nor_a_hub_id_is_an_error(name):
    with pytest.raises(SourceError, match="neither a folder nor a Hugging Face hub id"):
        CompressiveVQModel.from_pretrained(name)


def test_a_folder_without_a_tokenizer_is_an_error_that_names_the_searched_folders(tmp_path):
    with pytest.raises(SourceError, match=f"{tmp_path} or {tmp_path}/tokenizer"):
        CompressiveVQModel.from_pretrained(str(tmp_path))
