"""Models are found in their folder, in a run, and at a URL; errors say where they looked."""

import re
import shutil

import fsspec
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from pipeline.common.errors import SourceError
from training.inference.session import WorldModel
from training.model.files.locate import locate_model, locate_transformer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("saved"), tiny_models.world_model())


def test_a_run_folder_stands_for_its_exported_model(model, tmp_path):
    shutil.copytree(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert locate_model(str(tmp_path / "run")) == tmp_path / "run" / "model"
    assert locate_transformer(str(tmp_path / "run")) == tmp_path / "run" / "model" / "transformer"
    assert WorldModel.from_pretrained(tmp_path / "run", "cpu").action_dim == 0


def test_a_model_folder_takes_precedence_over_one_in_a_subfolder(model, tmp_path):
    shutil.copytree(model, tmp_path / "run")
    shutil.copytree(model, tmp_path / "run" / "model")
    assert locate_model(str(tmp_path / "run")) == tmp_path / "run"


def test_a_run_on_an_object_store_stands_for_its_model_too(model):
    fsspec.filesystem("memory").put(str(model), "/runs/tiny/model", recursive=True)
    for found in (locate_model("memory://runs/tiny"), locate_transformer("memory://runs/tiny").parent):
        assert (found / "transformer" / "model.safetensors").read_bytes() == (
            model / "transformer" / "model.safetensors"
        ).read_bytes()
    assert (locate_transformer("memory://runs/tiny/model/transformer") / "config.json").is_file()


def test_a_model_without_tokenizer_can_be_trained_from_but_not_predict(model, tmp_path):
    shutil.copytree(model / "transformer", tmp_path / "model" / "transformer")
    assert locate_transformer(str(tmp_path)) == tmp_path / "model" / "transformer"
    with pytest.raises(SourceError, match=r"model has no folder tokenizer: .*without --tokenizer"):
        locate_model(str(tmp_path))


def test_the_error_names_each_model_in_subfolders(model, tmp_path):
    shutil.copytree(model, tmp_path / "a" / "model")
    shutil.copytree(model, tmp_path / "b")
    for locate in (locate_model, locate_transformer):
        with pytest.raises(SourceError, match=re.escape(f"name one of {tmp_path}/a/model, {tmp_path}/b")):
            locate(str(tmp_path))


@pytest.mark.parametrize("locate", [locate_model, locate_transformer])
def test_the_error_for_no_model_says_where_it_looked(tmp_path, locate):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SourceError, match=re.escape(f"looked for in {tmp_path} and {tmp_path}/model")):
        locate(str(tmp_path))


def test_a_file_instead_of_a_folder_is_an_error_that_says_so(model, tmp_path):
    with pytest.raises(SourceError, match=r"model\.safetensors is a file: a model is a folder"):
        locate_model(str(model / "transformer" / "model.safetensors"))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"is a pickle.*python -c"):
        locate_transformer(str(tmp_path / "pytorch_model.bin"))


def _in_parts(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = {name: parts[number % 2] for number, name in enumerate(weights)}
    for part in parts:
        save_file({name: value for name, value in weights.items() if names[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {str(names).replace(chr(39), chr(34))}}}')


@torch.no_grad()
def test_a_transformer_in_several_files_predicts_the_same(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    _in_parts(copy / "transformer")
    fsspec.filesystem("memory").put(str(copy), "/in-parts", recursive=True)
    ids = tiny_models.clip_ids(1)
    expected = WorldModel.from_pretrained(model, "cpu").network(ids).loss
    for place in (copy, "memory://in-parts"):
        assert torch.equal(WorldModel.from_pretrained(place, "cpu").network(ids).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 0), (torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_a_transformer_stored_in_another_precision_runs_in_fp32(model, tmp_path, dtype, within):
    folder = shutil.copytree(model / "transformer", tmp_path / "transformer")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in weights.items()}, folder / "model.safetensors")
    shutil.copytree(model / "tokenizer", tmp_path / "tokenizer")
    network, ids = WorldModel.from_pretrained(tmp_path, "cpu").network, tiny_models.clip_ids(1)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert abs((network(ids).loss - WorldModel.from_pretrained(model, "cpu").network(ids).loss).item()) <= within


@pytest.mark.parametrize("part", ["transformer/model.safetensors", "tokenizer/diffusion_pytorch_model.safetensors"])
def test_a_model_with_nan_weights_does_not_open(model, tmp_path, part):
    copy = shutil.copytree(model, tmp_path / "model")
    weights = load_file(copy / part)
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = float("inf")
    save_file(weights, copy / part)
    with pytest.raises(SourceError, match=rf"{re.escape(str(copy / part))}: {re.escape(name)} holds NaN or infinite"):
        WorldModel.from_pretrained(copy, "cpu")


@torch.no_grad()
def test_tables_that_old_releases_stored_with_the_weights_are_ignored(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    path = copy / "transformer" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    ids = tiny_models.clip_ids(1)
    losses = [WorldModel.from_pretrained(place, "cpu").network(ids).loss for place in (model, copy)]
    assert torch.equal(*losses)
