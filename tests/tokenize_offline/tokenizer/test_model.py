"""The tokenizer matches published shapes and outputs, and its ids, pixels and gradients have the promised properties."""

import json

import numpy as np
import pytest
import torch
from synthetic_episodes import TINY, tiny_model

from pipeline.common.errors import ConfigError
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from tokenize_offline.tokenizer.attention import CrossAttentionBlock, stack_context
from tokenize_offline.tokenizer.model import patchify, unpatchify

PUBLISHED_256 = CompressiveVQConfig(resolution=256, block_out_channels=(128, 256, 256, 512, 768), max_att_resolution=32)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def clips():
    return torch.from_numpy(np.random.default_rng(1).random((2, 5, 3, 32, 32), dtype=np.float32))


@pytest.fixture(scope="module", params=["context1", "context2"])
def parity(request, shared):
    folder = shared / "parity" / request.param
    with np.load(folder / "expected.npz") as expected:
        return CompressiveVQModel.from_pretrained(str(folder)), {name: torch.from_numpy(expected[name]) for name in expected}


def test_ids_and_labels_equal_the_published_ones(parity):
    model, expected = parity
    ids = model.tokenize(expected["frames"])
    assert ids.shape == expected["tokens"].shape
    assert (ids == expected["tokens"]).float().mean() >= 0.999
    assert torch.equal(model.labels(expected["tokens"].long()), expected["labels"].long())


def test_reconstructions_equal_the_published_ones(parity):
    model, expected = parity
    assert torch.allclose(model.detokenize(expected["tokens"].long()), expected["reconstruction"], rtol=0, atol=1e-4)


def test_parameter_names_and_shapes_are_the_published_ones(shared):
    expected = json.loads((shared / "facts" / "tokenizer-64-state.json").read_text())
    with torch.device("meta"):
        model = CompressiveVQModel(CompressiveVQConfig())
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected


@pytest.mark.parametrize(("config", "millions"), [(CompressiveVQConfig(), 114.16), (PUBLISHED_256, 310.47)])
def test_parameter_counts_are_the_published_ones(config, millions):
    with torch.device("meta"):
        model = CompressiveVQModel(config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions
    assert (config.latent_grid, config.id_layout.future_grid) == (16, 4)


def test_published_sequences_have_the_published_lengths():
    id_layout = CompressiveVQConfig().id_layout
    assert (id_layout.vocabulary, id_layout.tokens_per_clip(16), id_layout.future_frames(751)) == (16386, 751, 14)
    with pytest.raises(ValueError, match="750 ids are not a whole clip"):
        id_layout.future_frames(750)


def test_special_ids_are_at_the_positions_of_the_layout(model, clips):
    ids, id_layout = model.tokenize(clips), model.id_layout
    assert ids.shape == (2, id_layout.tokens_per_clip(5))
    special = (ids >= id_layout.start_of_context).nonzero()[:, 1].reshape(2, -1)
    assert special.tolist() == [[256, 513, 530, 547]] * 2
    assert (ids[:, 256] == id_layout.start_of_context).all()
    assert (ids[:, [513, 530, 547]] == id_layout.start_of_future).all()
    future = ids[:, 514:].reshape(2, -1)[:, torch.arange(50) % 17 != 16]
    assert (future >= id_layout.num_vq_embeddings).all()
    assert (model.labels(ids)[:, :514] == -100).all() and torch.equal(model.labels(ids)[:, 514:], ids[:, 514:])


def test_the_context_alone_gives_the_same_context_ids(model, clips):
    assert torch.equal(model.tokenize(clips[:, :2]), model.tokenize(clips)[:, :513])


def test_future_frames_depend_on_their_context_and_not_on_each_other(model, clips):
    ids = model.tokenize(clips)
    changed = clips.clone()
    changed[:, 4] = 0.5
    assert torch.equal(model.tokenize(changed)[:, :547], ids[:, :547])
    changed = clips.clone()
    changed[:, 0] = 0.5
    assert not torch.equal(model.tokenize(changed)[:, 514:], ids[:, 514:])


def test_decoding_frame_by_frame_equals_decoding_at_once(model, clips):
    ids = model.tokenize(clips)
    whole = model.detokenize(ids)
    context, features = model.decode_context(ids[:, :513])
    frames = [model.decode_future(ids[:, None, start + 1 : start + 17], features) for start in (513, 530, 547)]
    assert torch.allclose(torch.cat([context, *frames], dim=1), whole, atol=1e-5)


def test_ids_outside_the_codebook_are_an_error_in_the_context_and_clamped_in_the_future(model, clips):
    ids = model.tokenize(clips)
    clamped, wild = ids.clone(), ids.clone()
    wild[:, 514], clamped[:, 514] = 3, model.id_layout.num_vq_embeddings
    assert torch.equal(model.detokenize(wild), model.detokenize(clamped))
    ids[:, 5] = model.id_layout.num_vq_embeddings
    with pytest.raises(ValueError, match="context ids must be 0 to 39"):
        model.detokenize(ids)
    with pytest.raises(ValueError, match="context frames take 513"):
        model.decode_context(ids[:, :500])


def test_a_shorter_context_keeps_the_last_positions(clips):
    model = tiny_model()
    block = model.cond_encoder.cross_att_blocks[0]
    before = block.kv_pos_emb.detach().clone()
    model.set_context_length(1)
    assert torch.equal(block.kv_pos_emb, before[256:])
    assert model.config.context_length == 1
    assert model.tokenize(clips).shape == (2, 256 + 4 * 17)
    with pytest.raises(ConfigError, match="1 to 1, not 2"):
        model.set_context_length(2)


def test_frames_of_another_size_are_an_error_that_names_both_sizes(model):
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 64, 64\).*32, 32"):
        model.tokenize(torch.zeros(1, 5, 3, 64, 64))


def test_attention_of_all_frames_together_equals_attention_frame_by_frame():
    torch.manual_seed(0)
    block = CrossAttentionBlock(32, 4, 2).eval()
    torch.nn.init.normal_(block.kv_pos_emb)
    torch.nn.init.normal_(block.q_pos_emb)
    features, context = torch.randn(6, 32, 4, 4), stack_context(torch.randn(4, 32, 4, 4), 2)
    together = block(features, context)
    for frame in range(6):
        alone = block(features[frame : frame + 1], context[frame // 3 : frame // 3 + 1])
        assert torch.allclose(alone[0], together[frame], atol=1e-5)


def test_context_maps_are_stacked_along_height_in_time_order():
    maps = torch.arange(2 * 3 * 1 * 2 * 2).reshape(6, 1, 2, 2)
    stacked = stack_context(maps, 2)
    assert stacked.shape == (2, 1, 6, 2)
    assert torch.equal(stacked[1, 0], torch.cat([maps[3, 0], maps[4, 0], maps[5, 0]]))


def test_unpatchify_inverts_patchify():
    latents = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    cut = patchify(latents, 2)
    assert cut.shape == (2, 4, 12)
    assert torch.equal(cut[0, 1], latents[0, :, 0:2, 2:4].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(cut, 4, 2), latents)


def test_the_training_forward_reaches_every_parameter_and_agrees_with_the_ids(clips):
    model = tiny_model()
    output = model(clips)
    loss = (output.context_reconstruction - clips[:, :2]).abs().mean() + (
        output.future_reconstruction - clips[:, 2:]
    ).abs().mean()
    (loss + output.context_commitment + output.future_commitment).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # The biases have no gradient: a constant added to all keys shifts all attention scores equally.
    assert [name for name in without if not name.endswith("in_proj_bias")] == []
    id_layout, ids = model.id_layout, model.tokenize(clips)
    assert torch.equal(output.context_ids[:, 1], ids[:, 257:513])
    assert torch.equal(output.future_ids[:, 2], ids[:, 548:564] - id_layout.num_vq_embeddings)
    assert torch.allclose(
        torch.cat([output.context_reconstruction, output.future_reconstruction], 1), model.detokenize(ids), atol=1e-4
    )
    nearest = model.quantize.nearest(output.context_vectors).reshape(output.context_ids.shape)
    assert torch.equal(nearest, output.context_ids)
    assert output.future_vectors.shape == (2 * 3 * 16, TINY.latent_channels)


@pytest.mark.parametrize(
    "config",
    [
        CompressiveVQConfig(32, 1, (32, 32, 32), 1, 8, 16, 16, 2),
        CompressiveVQConfig(64, 2, (32, 32, 32, 32), 1, 8, 16, 16, 4, max_att_resolution=32),
    ],
)
def test_other_grids_follow_from_resolution_and_blocks(config):
    model = tiny_model(config=config)
    frames = torch.rand(1, 4, 3, config.resolution, config.resolution)
    ids = model.tokenize(frames)
    assert ids.shape[1] == config.id_layout.tokens_per_clip(4)
    assert model.detokenize(ids).shape == frames.shape
