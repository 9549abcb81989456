"""What helps a tokenizer to tell in its ids what changed, and nothing else."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.config.model import TokenizerConfig
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from tokenize_offline.tokenizer.attention import CrossAttentionBlock
from training.tokenizer_training.attention import attend_locally, grid_positions
from training.tokenizer_training.codebooks import cluster_centres
from training.tokenizer_training.losses import static_patch_loss, static_probability, tokenizer_losses
from training.tokenizer_training.start import starting_model

SHAPE = CompressiveVQConfig(32, 2, (32, 32), 1, 8, 16, 16, max_att_resolution=16)


def test_static_probability_is_one_where_nothing_moved_since_the_last_context_frame_and_zero_elsewhere():
    frames = torch.rand(1, 1, 3, 32, 32).repeat(2, 4, 1, 1, 1)
    frames[:, 0] = 0
    frames[1, 3, :, 8:12, 24:28] = 0
    still = static_probability(frames, 2, 4)
    assert still.shape == (2, 2, 16)
    moved = torch.zeros(2, 2, 16, dtype=torch.bool)
    moved[1, 1, 1 * 4 + 3] = True
    assert (still[~moved] == 1).all()
    assert still[moved].item() < 1e-6


def test_the_static_patch_loss_moves_only_static_patches_to_their_most_frequent_code():
    torch.manual_seed(0)
    frames = torch.rand(1, 1, 3, 32, 32).repeat(2, 3, 1, 1, 1)
    frames[0, 2, :, :16] = torch.rand(3, 16, 32)
    output = CompressiveVQModel(SHAPE)(frames)
    vectors = output.future_vectors.detach().requires_grad_()
    static_patch_loss(frames, output._replace(future_vectors=vectors)).backward()
    pulled = vectors.grad.abs().sum(dim=1).reshape(2, 1, 16) > 1e-9
    assert not pulled[0, 0, :8].any()
    assert pulled[1].any()
    commonest = output.future_ids.reshape(2, -1)
    still_ids = torch.cat([commonest[0, 8:], commonest[1]])
    code = output.future_codes[(output.future_ids.reshape(-1) == still_ids.mode().values).nonzero()[0, 0]]
    assert static_patch_loss(frames, output._replace(future_vectors=code.expand_as(vectors))).item() == pytest.approx(
        0, abs=1e-9
    )


def test_static_patches_are_decoded_from_their_most_frequent_code_and_others_from_their_own():
    torch.manual_seed(0)
    model, frames = CompressiveVQModel(SHAPE).eval(), torch.rand(1, 3, 3, 32, 32)
    still = torch.zeros(1, 1, 16, dtype=torch.bool)
    still[0, 0, :9] = True
    output = model(frames, still)
    ids = output.future_ids.clone()
    ids[still] = ids[still].mode().values
    context = model.decode_context(model.tokenize(frames))[1]
    wanted = model.decode_future(ids + SHAPE.num_vq_embeddings, context)
    assert torch.allclose(output.future_reconstruction, wanted, atol=1e-5)
    assert not torch.allclose(model(frames).future_reconstruction, wanted, atol=1e-5)


def test_the_static_patch_loss_is_a_term_if_the_recipe_gives_it_a_weight():
    frames = torch.rand(1, 3, 3, 32, 32)
    output = CompressiveVQModel(SHAPE)(frames)
    assert "still" not in tokenizer_losses(frames, output, TokenizerConfig())
    terms = tokenizer_losses(frames, output, TokenizerConfig(static_patch_weight=2.0))
    assert terms["still"].item() == pytest.approx(2 * static_patch_loss(frames, output).item())


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([4, 8, 16]), st.sampled_from([32, 64, 128]))
def test_a_position_of_the_grid_is_most_similar_to_itself(side: int, channels: int):
    positions = grid_positions(side, channels)
    assert positions.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal((positions @ positions.T).argmax(dim=1), torch.arange(side * side))


def test_local_attention_attends_to_its_own_position_of_every_context_frame_and_plain_attention_is_uniform():
    torch.manual_seed(0)
    config = TokenizerConfig(resolution=32, block_out_channels=(32, 64), layers_per_block=1, latent_channels=8)
    own = []
    for local in (False, True):
        model = starting_model(dataclasses.replace(config, local_attention=local), None).eval()
        for block in model.modules():
            if isinstance(block, CrossAttentionBlock):
                features, context = (
                    torch.randn(1, block.q_norm.num_channels, 16, 16),
                    torch.randn(1, block.q_norm.num_channels, 32, 16),
                )
                queries = block.q_norm(features).flatten(2).transpose(1, 2) + block.q_pos_emb
                keys = block.kv_norm(context).flatten(2).transpose(1, 2) + block.kv_pos_emb
                weights = block.att(queries, keys, keys)[1][0]
                own.append((local, (weights[:, :256] + weights[:, 256:]).diagonal().mean().item()))
    assert all(share < 0.02 for local, share in own if not local)
    assert all(share > 0.1 for local, share in own if local)


def test_local_attention_keeps_all_other_weights_of_a_trained_tokenizer():
    trained = CompressiveVQModel(SHAPE)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    attend_locally(trained)
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("cross_att_blocks" in name and ("pos_emb" in name or ".att." in name) for name in changed)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_cluster_centres_have_the_wanted_number_and_lie_among_the_codes(count: int, seed: int):
    codes = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    centres = cluster_centres(codes, count)
    assert centres.shape == (count, 3)
    assert (centres >= codes.amin(dim=0) - 1e-5).all() and (centres <= codes.amax(dim=0) + 1e-5).all()
    if count == 40:
        assert F.mse_loss(torch.cdist(codes, centres).amin(dim=1), torch.zeros(40)).item() < 1e-6
