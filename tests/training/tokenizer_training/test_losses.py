"""The adversarial loss, the averaged weights and the start from a trained tokenizer."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.common.errors import ConfigError
from pipeline.config.catalog import mixture
from pipeline.config.cli import parse_recipe, recipe_parser
from pipeline.config.model import TokenizerConfig
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.tokenizer_training.discriminator import AdversarialLoss, Discriminator, adaptive_ratio, discriminator_loss
from training.tokenizer_training.ema import ExponentialMovingAverage
from training.tokenizer_training.start import model_config, starting_model, take_shape

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHAPE = CompressiveVQConfig(32, 2, (32, 32), 1, 8, 16, 16, max_att_resolution=16)
RECIPE = TokenizerConfig(
    resolution=32,
    block_out_channels=(32, 32),
    layers_per_block=1,
    latent_channels=8,
    num_vq_embeddings=16,
    num_dyn_embeddings=16,
)


def _accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_the_discriminator_has_spectral_norm_one():
    torch.manual_seed(0)
    network = Discriminator().train()
    frames = torch.rand(4, 3, 32, 32)
    for _ in range(50):
        scores = network(frames)
    assert scores.shape == (4, 1, 2, 2)
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d) and layer.out_channels > 1:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_the_hinge_loss_is_zero_beyond_the_margin_and_two_for_scores_of_zero():
    assert discriminator_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -9.0])) == 0
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)) == 2


def test_the_adaptive_ratio_is_that_of_gradient_norms_and_has_a_limit():
    layer = nn.Parameter(torch.ones(3))
    wanted, small = (6 * layer).sum(), (2 * layer).sum()
    assert adaptive_ratio(wanted, small, layer, _accelerator()) == 3
    assert adaptive_ratio(wanted, 1e-9 * small, layer, _accelerator()) == 1e4


def test_a_discriminator_learns_and_the_tokenizers_term_leaves_it_unchanged():
    torch.manual_seed(0)
    accelerator = _accelerator()
    adversary = AdversarialLoss(1e-3, 0.8, 5, accelerator)
    assert [adversary.active(step) for step in (4, 5)] == [False, True]
    frames, made = torch.rand(8, 3, 32, 32), torch.full((8, 3, 32, 32), 0.5) + 0.01 * torch.rand(8, 3, 32, 32)
    losses = [adversary.learn(frames, made, warmup=1.0).item() for _ in range(12)]
    assert losses[-1] < losses[0]
    before = {name: tensor.clone() for name, tensor in adversary._network.state_dict().items()}
    scale = nn.Parameter(torch.ones(1))
    term = adversary.tokenizer_term(made * scale, (3 * scale).sum(), scale)
    # Weighted so that its gradient is 0.8 times that of the other loss.
    assert abs(torch.autograd.grad(term, scale)[0].item()) == pytest.approx(0.8 * 3, rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adversary._network.state_dict().items())


def test_the_average_follows_the_weights_and_restores_them():
    model = nn.Linear(1, 1, bias=False)
    average = ExponentialMovingAverage(model, 0.5)
    expected = start = model.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert not torch.equal(expected, start)
    with average.applied(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert model.weight.item() == 19
    other = ExponentialMovingAverage(nn.Linear(1, 1, bias=False), 0.5)
    other.load_state_dict(average.state_dict())
    assert other.steps == 20
    assert torch.equal(other.values["weight"], average.values["weight"])


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_a_trained_tokenizer_can_get_another_context_length(context_length: int):
    torch.manual_seed(0)
    trained = CompressiveVQModel(SHAPE).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_()
    recipe = take_shape(TokenizerConfig(context_length=context_length), SHAPE, ["context_length"])
    model = starting_model(recipe, trained)
    assert model.config.context_length == context_length
    rows = 16 * 16
    new, old = (dict(each.named_parameters())["cond_encoder.cross_att_blocks.0.kv_pos_emb"] for each in (model, trained))
    assert len(new) == context_length * rows
    kept = min(context_length, 2) * rows
    assert torch.equal(new[-kept:], old[-kept:])
    if context_length == 3:
        assert torch.equal(new[:rows], old[:rows])
    frames = torch.rand(1, context_length + 1, 3, 32, 32)
    if context_length == 2:
        assert torch.equal(model.eval().tokenize(frames), trained.tokenize(frames))
    assert model.eval().tokenize(frames).shape[1] == model.id_layout.prefix_length - 1 + model.id_layout.tokens_per_future_frame


def test_a_trained_tokenizer_can_get_a_larger_codebook():
    trained = CompressiveVQModel(SHAPE)
    recipe = take_shape(TokenizerConfig(num_dyn_embeddings=40), SHAPE, ["num_dyn_embeddings"])
    model = starting_model(recipe, trained)
    codes = model.dynamics_quantize.embedding.weight
    assert len(codes) == 40
    assert torch.equal(codes[: SHAPE.num_dyn_embeddings], trained.dynamics_quantize.embedding.weight)
    assert len(model.quantize.embedding.weight) == SHAPE.num_vq_embeddings


def test_a_trained_tokenizer_can_get_a_smaller_codebook_that_covers_the_same():
    trained = CompressiveVQModel(SHAPE)
    old = trained.dynamics_quantize.embedding.weight
    with torch.no_grad():
        old.copy_(torch.arange(4).repeat_interleave(4)[:, None] + 0.01 * torch.randn(16, SHAPE.latent_channels))
    recipe = take_shape(TokenizerConfig(num_dyn_embeddings=4), SHAPE, ["num_dyn_embeddings"])
    codes = starting_model(recipe, trained).dynamics_quantize.embedding.weight
    assert torch.allclose(codes.sort(dim=0).values, torch.arange(4.0)[:, None].expand(4, SHAPE.latent_channels), atol=0.03)


def test_a_recipe_of_another_shape_than_the_tokenizer_it_starts_from_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer.latent_channels is 9, but the tokenizer of --init_from has 8"):
        take_shape(TokenizerConfig(latent_channels=9), SHAPE, ["latent_channels"])
    assert take_shape(RECIPE, SHAPE, ["block_out_channels"]).resolution == 32


def test_an_adversarial_loss_on_frames_that_are_too_small_is_refused():
    with pytest.raises(ConfigError, match="disc_weight needs frames of at least 32"):
        TokenizerConfig(resolution=16, patch_size=4, block_out_channels=(32, 32), disc_weight=0.8)


@pytest.mark.parametrize(("side", "millions"), [(64, 114.16), (256, 310.5)])
def test_the_recipes_that_ship_train_the_published_networks(side: int, millions: float):
    recipe, _ = parse_recipe(recipe_parser("test", ""), ["--config", str(CONFIGS / f"tokenizer-oxe-{side}.yaml")])
    with torch.device("meta"):
        network = CompressiveVQModel(model_config(recipe.tokenizer))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert recipe.tokenizer.lpips_weight == 1
    assert mixture(str(recipe.data.mixture))["sthsth"] == pytest.approx(0.15)
