import dataclasses

import pytest
import tiny_models
import torch

from tokenize_offline.tokenizer import CompressiveVQModel
from training.inference.frame_decoder import FrameDecoder


def tokenizer(**changes):
    """A tokenizer whose position embeddings and biases are not zero, so that a missing one changes the result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CompressiveVQModel(dataclasses.replace(tiny_models.TOKENIZER, **changes)).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "pos_emb" in name or parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def clips(model, rows, frames):
    id_layout = model.id_layout
    generator = torch.Generator().manual_seed(1)
    context = torch.randint(id_layout.num_vq_embeddings, (rows, id_layout.prefix_length - 1), generator=generator)
    future = torch.randint(
        id_layout.num_dyn_embeddings, (rows, frames, id_layout.tokens_per_future_frame - 1), generator=generator
    )
    return context, future + id_layout.num_vq_embeddings


# Attention at the two lowest resolutions, only at the lowest (as published), and at all resolutions.
@pytest.mark.parametrize("changes", [{}, {"max_att_resolution": 8}, {"max_att_resolution": 32}, {"context_length": 1}])
def test_frames_equal_those_of_the_tokenizer_up_to_rounding(changes):
    model = tokenizer(**changes)
    context, future = clips(model, rows=2, frames=3)
    _, features = model.decode_context(context)
    decoder = FrameDecoder(model)
    frames = decoder.frames(future, decoder.context(context))
    torch.testing.assert_close(frames, model.decode_future(future, features), atol=1e-4, rtol=1e-5)


def test_each_row_of_the_context_belongs_to_one_clip():
    model = tokenizer()
    context, future = clips(model, rows=2, frames=1)
    decoder = FrameDecoder(model)
    both = decoder.context(context)
    for row in range(2):
        alone = decoder.frames(future[row : row + 1], tuple(part[row : row + 1] for part in both))
        torch.testing.assert_close(alone[0], decoder.frames(future, both)[row], atol=1e-5, rtol=1e-5)


def test_the_tokenizer_is_not_changed():
    model = tokenizer()
    context, _ = clips(model, rows=1, frames=1)
    before = model.decode_context(context)[0]
    names = [name for name, _ in model.named_parameters()]
    FrameDecoder(model)
    assert torch.equal(model.decode_context(context)[0], before)
    assert [name for name, _ in model.named_parameters()] == names


def test_invalid_context_ids_are_refused():
    decoder = FrameDecoder(tokenizer())
    with pytest.raises(ValueError, match="context ids must be"):
        decoder.context(torch.full((1, 200), 99))
