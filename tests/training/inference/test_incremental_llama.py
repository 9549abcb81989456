import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.inference.incremental_llama import IncrementalLlama

WIDTH, POSITIONS = 32, 160


def llama(seed=0, **changes):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        **changes,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # Norms other than 1 and biases other than 0, so that a missing one changes the result.
        parameter.normal_(float("norm" in name), 0.3)
    return model


def embeddings(rows, count, seed=0):
    return torch.randn(rows, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def in_pieces(decoder, embedded, lengths, copies=1):
    """Hidden states of steps of the given lengths after a prefill of the first length."""
    first, hidden = lengths[0], []
    cache = decoder.copied(decoder.prefill(embedded[::copies, :first]), copies)
    for length in lengths[1:]:
        positions = torch.arange(first, first + length).expand(len(embedded), -1)
        hidden.append(decoder.step(embedded[:, first : first + length], positions, cache, first + length))
        first += length
    return torch.cat(hidden, dim=1)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": True, "mlp_bias": True}])
def test_hidden_states_of_pieces_equal_those_of_one_pass(changes):
    model = llama(**changes)
    embedded = embeddings(2, 155)
    expected = model.model(inputs_embeds=embedded).last_hidden_state
    hidden = in_pieces(IncrementalLlama(model, spare=8), embedded, [100, 1, 2, 40, 12])
    torch.testing.assert_close(hidden, expected[:, 100:], atol=1e-5, rtol=1e-5)


def test_copies_of_a_prefilled_row_are_neighbours():
    model = llama()
    embedded = embeddings(2, 30).repeat_interleave(3, dim=0)
    expected = model.model(inputs_embeds=embedded).last_hidden_state
    hidden = in_pieces(IncrementalLlama(model, spare=0), embedded, [28, 2], copies=3)
    torch.testing.assert_close(hidden, expected[:, 28:], atol=1e-5, rtol=1e-5)


def test_rows_may_be_at_different_positions_and_stale_entries_are_not_attended_to():
    model = llama()
    decoder = IncrementalLlama(model, spare=8)
    embedded = embeddings(2, 20)
    expected = model.model(inputs_embeds=embedded).last_hidden_state
    cache = decoder.copied(decoder.prefill(embedded[:, :10]))
    decoder.step(embeddings(2, 8, seed=1), torch.arange(10, 18).expand(2, -1), cache, 18)
    starts, hidden = torch.tensor([[10], [13]]), None
    decoder.step(embedded[:, 10:13], torch.arange(10, 13).expand(2, -1), cache, 13)
    places = starts + torch.arange(4)
    hidden = decoder.step(embedded.gather(1, places[..., None].expand(-1, -1, WIDTH)), places, cache, 17)
    torch.testing.assert_close(hidden[0], expected[0, 10:14], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden[1], expected[1, 13:17], atol=1e-5, rtol=1e-5)


def test_the_model_still_works_and_shares_the_joined_weights():
    model = llama()
    embedded = embeddings(1, 12)
    expected = model.model(inputs_embeds=embedded).last_hidden_state
    IncrementalLlama(model, spare=0)
    torch.testing.assert_close(model.model(inputs_embeds=embedded).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    for parts in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1


@pytest.mark.soak
def test_compiled_steps_equal_plain_ones():
    embedded = embeddings(2, 20)
    plain, compiled = (IncrementalLlama(llama(), spare=8, compiled=compiled) for compiled in (False, True))
    lengths = [10, 2, 1, 1, 4]
    torch.testing.assert_close(
        in_pieces(compiled, embedded, lengths), in_pieces(plain, embedded, lengths), atol=1e-5, rtol=1e-5
    )


def test_logits_equal_those_of_the_model():
    model = llama()
    hidden = embeddings(2, 3)
    torch.testing.assert_close(IncrementalLlama(model, 0).logits(hidden), model.lm_head(hidden), atol=1e-5, rtol=1e-5)
