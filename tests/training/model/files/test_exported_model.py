"""An exported model opens in the usual libraries and is described by the numbers of its run."""

import dataclasses
import json

import pytest
import tiny_models
import torch
import yaml
from synthetic_tokens import write_shard
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.common.errors import SourceError
from pipeline.common.manifests import sha256_of
from pipeline.config.model import ModelConfig, TokenizerShape, TrainingConfig
from pipeline.config.recipe import ClipsConfig, DataConfig, Recipe
from tokenize_offline.tokenizer import CompressiveVQModel
from training import WorldModel
from training.model.files.clip_config import clips_as_trained
from training.model.files.described_recipe import with_shard_settings
from training.model.files.export import export_model
from training.model.files.model_card import model_card
from training.model.files.trained_on import read_trained_on
from training.model.world_model import load_transformer
from training.trainer.run import RunOptions
from training.trainer.trainer import pretrain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and the summary of a short run."""
    root = tmp_path_factory.mktemp("run")
    layout = tiny_models.save_tokenizer(root / "tokenizer")
    for name, split, seed in (("alpha", "train", 1), ("beta", "train", 2), ("beta", "train_heldout", 3)):
        seconds = 0.2 if name == "beta" else None
        write_shard(root / "tokens", name, positions=10, split=split, layout=layout, seed=seed, seconds_per_frame=seconds)
    recipe = Recipe(
        data=DataConfig(weights={"alpha": 0.25, "beta": 0.75}),
        model=ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=192),
        training=TrainingConfig(global_batch=4, steps=3, precision="fp32", warmup_steps=1),
    )
    options = RunOptions([str(root / "tokens")], str(root / "out"), tokenizer=str(root / "tokenizer"))
    return root / "out", pretrain(recipe, options)


def _provenance(folder):
    return json.loads((folder / "model" / "provenance.json").read_text())


def test_a_model_knows_the_time_between_frames_by_data_set_and_null_if_unknown(run):
    trained = read_trained_on(run[0] / "model")
    assert trained.seconds_per_frame == {"alpha": None, "beta": 0.2}
    assert (trained.held_out, trained.splits) == (0.01, ("train",))
    assert _provenance(run[0])["datasets"]["beta"]["seconds_per_frame"] == 0.2
    assert "clips.json" in _provenance(run[0])["sha256"]


def test_transformers_opens_the_transformer(run):
    folder, _ = run
    assert AutoConfig.from_pretrained(folder / "model" / "transformer").model_type == "llama"
    model, faults = AutoModelForCausalLM.from_pretrained(folder / "model" / "transformer", output_loading_info=True)
    assert not any(faults.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == _provenance(folder)["parameters"]


def test_diffusers_opens_the_tokenizer_like_the_published_one(run):
    """A diffusers class with the name, arguments and parameters that iVideoGPT published."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.configuration_utils import register_to_config

    folder = run[0] / "model" / "tokenizer"
    own = CompressiveVQModel.from_pretrained(str(folder))

    class CompressiveVQModel_(diffusers.ModelMixin, diffusers.ConfigMixin):
        @register_to_config
        def __init__(
            self,
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(64,),
            layers_per_block=1,
            act_fn="silu",
            latent_channels=3,
            sample_size=32,
            num_vq_embeddings=256,
            num_dyn_embeddings=256,
            norm_num_groups=32,
            vq_embed_dim=None,
            scaling_factor=0.18215,
            norm_type="group",
            mid_block_add_attention=True,
            lookup_from_codebook=False,
            force_upcast=False,
            context_length=1,
            max_att_resolution=32,
            resolution=256,
            patch_size=4,
        ):
            super().__init__()
            for name, child in CompressiveVQModel(own.config).named_children():
                self.add_module(name, child)

    model, faults = CompressiveVQModel_.from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    assert not any(faults.values())
    assert model.config.block_out_channels == list(own.config.block_out_channels)
    assert model.config.context_length == own.config.context_length and model.config.lookup_from_codebook
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.state_dict().items())


def test_the_card_has_the_numbers_of_the_run(run):
    folder, summary = run
    text = (folder / "model" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "transformers", "tags": ["world-model", "video-prediction", "ivideogpt"]}
    layout = tiny_models.layout()
    alpha, beta = (summary["samples"][name] for name in ("alpha", "beta"))
    assert alpha + beta == 12
    for fact in (
        f"{summary['held_out_loss']:.4f} on held-out clips",
        f"{summary['loss']:.4f} in the last steps",
        f"would reach {summary['label_entropy']:.4f}",
        "3 steps of 4 clips: " + f"{3 * 4 * layout.sequence_length / 1e3:.3g} k tokens",
        f"| `alpha` | {alpha / 12:.2%} | {alpha} | {alpha / 10:.2f} | not measured |",
        f"| `beta` | {beta / 12:.2%} | {beta} | {beta / 10:.2f} | {summary['held_out_loss']:.4f} |",
        "1 x CPU, ",
        f"SHA-256 of its weights {_provenance(folder)['layout']['tokenizer_sha256']}",
        'from_pretrained("transformer")',
        "+3 " + f"{summary['held_out_loss_by_frame']['3']:.4f}",
    ):
        assert fact in body, fact
    assert "of 3 planned" not in body and "of peak FLOPs" not in body


def test_the_provenance_lists_all_files(run):
    folder = run[0] / "model"
    provenance = _provenance(run[0])
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert provenance["sha256"] == {name: sha256_of(path) for name, path in names.items() if name != "provenance.json"}
    assert {"README.md", "recipe.yaml", "tokenizer/config.json", "transformer/model.safetensors"} <= names.keys()
    assert provenance["ids"] == 3 * 4 * tiny_models.layout().sequence_length and provenance["software"]["torch"]


def test_the_card_of_a_stopped_run_with_heads_says_so(run):
    provenance = _provenance(run[0]) | {"loss": None, "held_out_loss": None, "held_out_loss_by_dataset": None}
    provenance |= {"held_out_loss_by_frame": None, "mfu": 0.456, "tokens_per_second": None}
    recipe = Recipe(model=ModelConfig(actions=True, rewards=True), training=TrainingConfig(steps=10))
    text = model_card(provenance, recipe)
    assert "3 steps of 64 clips, of 10 planned" in text and "45.6% of peak FLOPs" in text and "unknown tokens/s" in text
    assert "session.step(action)" in text and "AutoModelForCausalLM" not in text
    assert "not measured in the last steps of training, not measured on held-out clips" in text


def test_a_data_set_name_can_not_break_the_cards_table(run):
    provenance = _provenance(run[0])
    provenance["datasets"]["a|b`\n# c"] = provenance["datasets"].pop("alpha")
    assert "\n| `a/b' # c` | " in model_card(provenance, Recipe())


def test_a_model_predicts_with_the_context_length_and_clips_of_its_token_shards(tmp_path):
    tiny_models.tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    tokenizer = CompressiveVQModel.from_pretrained(str(tmp_path / "tokenizer"))
    assert tokenizer.config.context_length == 2
    layout = dataclasses.replace(tiny_models.layout(), tokenizer_sha256=tokenizer.weights_sha256, context_length=1)
    clips = dataclasses.asdict(ClipsConfig(stride="3", length=5, held_out=0.25, context_length=1))
    for split in ("train", "train_heldout"):
        write_shard(tmp_path / "tokens", split=split, layout=layout, clips=clips)
    recipe = Recipe(
        model=ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=192),
        training=TrainingConfig(global_batch=2, steps=1, precision="fp32", warmup_steps=1, evaluate_predictions=1),
    )
    pretrain(recipe, RunOptions([str(tmp_path / "tokens")], str(tmp_path / "out"), tokenizer=str(tmp_path / "tokenizer")))
    model = WorldModel.from_pretrained(tmp_path / "out" / "model")
    assert model.id_layout.context_length == 1
    tokenizer.set_context_length(1)
    frames = torch.rand(2, 3, 3, 32, 32)
    assert torch.equal(model.tokenizer.tokenize(frames), tokenizer.tokenize(frames))
    taken = clips_as_trained(tmp_path / "out" / "model", ClipsConfig(), {})
    assert (taken.stride, taken.length, taken.held_out) == ("3", 5, 0.25)
    assert len(list((tmp_path / "out" / "predictions").rglob("*.gif"))) == 1


def test_the_recipe_of_a_model_describes_its_tokenizer_and_clips(run):
    out = run[0]
    own = json.loads((out / "model" / "tokenizer" / "config.json").read_text())
    layout = _provenance(out)["layout"]
    for path in (out / "recipe.yaml", out / "model" / "recipe.yaml"):
        recipe = yaml.safe_load(path.read_text())
        shape = {field.name for field in dataclasses.fields(TokenizerShape)}
        assert {name: recipe["tokenizer"][name] for name in shape} == {name: own[name] for name in shape}
        assert recipe["data"]["resolution"] == layout["resolution"] == 32
        assert (recipe["clips"]["length"], recipe["clips"]["context_length"]) == (layout["clip_length"], 2)
        assert recipe["tokenizer"]["precision"] == layout["precision"]


def test_a_recipe_describes_a_tokenizer_with_fewer_or_more_context_frames():
    tokenizer = dataclasses.replace(tiny_models.TOKENIZER, context_length=12)
    layout = dataclasses.replace(tiny_models.layout(clip_length=16, tokenizer=tokenizer), context_length=10)
    section = with_shard_settings(Recipe(), layout, tokenizer).tokenizer
    assert (section.context_length, section.segment_length, section.horizon) == (10, 11, 16)
    assert section.block_out_channels == tokenizer.block_out_channels
    kept = with_shard_settings(Recipe(), layout, None)
    assert kept.tokenizer == Recipe().tokenizer and kept.clips.context_length == 10


def test_a_model_with_nan_weights_is_an_error_in_the_log_of_the_export_and_when_it_is_opened(run, tmp_path, caplog):
    network = tiny_models.network()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["llm.model.norm.weight"][3] = float("nan")
    export_model(tmp_path / "model", network, weights, None, Recipe(), _provenance(run[0]))
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1 and str(tmp_path / "model") in said[0] and "llm.model.norm.weight holds NaN" in said[0]
    with pytest.raises(SourceError, match=r"model\.norm\.weight holds NaN"):
        load_transformer(tmp_path / "model" / "transformer", tiny_models.layout())
