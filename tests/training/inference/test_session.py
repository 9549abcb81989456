import shutil

import fsspec
import numpy as np
import pytest
import tiny_models
import torch

from pipeline.common.errors import ConfigError, SourceError
from training import WorldModel
from training.inference.sampling import SamplingRule, uniforms

SIDE = tiny_models.TOKENIZER.resolution


def context(clips=None, seed=0):
    shape = (2, 3, SIDE, SIDE) if clips is None else (clips, 2, 3, SIDE, SIDE)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def some_actions(count, seed=0):
    return torch.randn(count, tiny_models.ACTION_DIM, generator=torch.Generator().manual_seed(seed)).unbind()


@pytest.fixture(scope="module")
def free():
    return tiny_models.world_model()


@pytest.fixture(scope="module")
def driven():
    return tiny_models.world_model(actions=True, rewards=True)


@pytest.mark.parametrize("number", [1, 2])
def test_greedy_ids_with_actions_equal_the_published_ones(shared, tmp_path, number):
    fixture = shared / "parity" / f"context{number}"
    shutil.copytree(fixture / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(fixture / "transformer-action", tmp_path / "transformer")
    expected = np.load(fixture / "expected.npz")
    frames, actions = torch.from_numpy(expected["frames"]), torch.from_numpy(expected["actions"])
    session = WorldModel.from_pretrained(tmp_path).start(frames[:, :number], temperature=0)
    session.rollout(actions[:, number - 1 : -1].unbind(dim=1))
    np.testing.assert_array_equal(session.ids.numpy(), expected["greedy_tokens_action"])


@pytest.mark.parametrize("number", [1, 2])
def test_greedy_ids_of_published_models_equal_those_of_generate(shared, number):
    fixture = shared / "parity" / f"context{number}"
    expected = np.load(fixture / "expected.npz")
    model = WorldModel.from_pretrained(fixture, device="cpu")
    session = model.start(torch.from_numpy(expected["frames"])[:, :number], temperature=0)
    session.rollout([None] * (16 - number))
    prefix = torch.from_numpy(expected["tokens"]).long()[:, : model.id_layout.prefix_length]
    wanted = session.ids.shape[1] - prefix.shape[1]
    generated = model.network.llm.generate(
        prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=wanted, do_sample=False
    )
    assert torch.equal(session.ids, generated)


def test_greedy_ids_with_actions_are_the_most_likely_ones_of_one_forward_pass(driven):
    session = driven.start(context(clips=2), temperature=0)
    actions = some_actions(4)
    session.rollout(actions)
    padded = torch.stack([torch.zeros(3), *actions])[None].expand(2, -1, -1)
    with torch.no_grad():
        best = driven.network.logits(driven.network.hidden_states(session.ids, padded)).argmax(dim=-1)
    first, step = driven.id_layout.prefix_length, driven.id_layout.tokens_per_future_frame
    ids, best = session.ids[:, first:], best[:, first - 1 : -1]
    forced = torch.arange(ids.shape[1]) % step == step - 1
    assert torch.equal(ids[:, ~forced], best[:, ~forced])
    assert (ids[:, forced] == driven.id_layout.start_of_future).all()


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_sampled_ids_equal_those_sampled_one_by_one_from_one_forward_pass(driven, temperature):
    samples, steps = 3, 5
    session = driven.start(context(), samples=samples, temperature=temperature, top_k=5, seed=3)
    actions = some_actions(steps)
    session.rollout(actions)
    padded = torch.stack([torch.zeros(3), *actions])[None].expand(samples, -1, -1)
    with torch.no_grad():
        logits = driven.network.logits(driven.network.hidden_states(session.ids, padded))
    first, step = driven.id_layout.prefix_length - 1, driven.id_layout.tokens_per_future_frame
    rule = SamplingRule(5, temperature)
    for frame in range(steps):
        noise = torch.from_numpy(uniforms(3, samples, frame, step))
        for number in range(1, step):
            place = first + frame * step + number
            assert torch.equal(session.ids[:, place], rule.sample(logits[:, place - 1], noise[:, number]))


@pytest.mark.parametrize("rewards", [False, True])
def test_ids_do_not_depend_on_whether_proposals_were_right(rewards):
    model = tiny_models.world_model(actions=True, rewards=rewards)
    # Under one action a greedy future soon stands still; changing actions make proposals wrong for some rows only.
    still, turning = some_actions(1)[0], some_actions(6, seed=2)
    apart = torch.stack([torch.stack([still, action * 3]) for action in turning])
    both = model.start(context(), samples=2, temperature=0)
    results = both.rollout(apart)
    for row in range(2):
        alone = model.start(context(), temperature=0)
        own = alone.rollout(apart[:, row])
        assert torch.equal(both.ids[row], alone.ids[0])
        if rewards:
            rewards_of_row = torch.stack([result.reward[row] for result in results])
            torch.testing.assert_close(rewards_of_row, torch.cat([result.reward for result in own]), atol=1e-5, rtol=1e-4)


@pytest.mark.soak
def test_compiled_model_predicts_the_same(tmp_path):
    folder = tiny_models.save_model(tmp_path, tiny_models.world_model(actions=True))
    ids = []
    for compiled in (False, True):
        session = WorldModel.from_pretrained(folder, device="cpu", compile=compiled).start(context(), samples=2, seed=0)
        session.rollout(some_actions(3))
        ids.append(session.ids)
    assert torch.equal(*ids)


def test_rewards_equal_those_of_one_forward_pass(driven):
    session = driven.start(context(), samples=2, seed=1)
    actions = some_actions(3)
    rewards = torch.stack([result.reward for result in session.rollout(actions)], dim=1)
    padded = torch.stack([torch.zeros(3), *actions])[None].expand(2, -1, -1)
    with torch.no_grad():
        expected = driven.network.rewards(driven.network.hidden_states(session.ids, padded))
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=1e-4)


def test_frames_equal_those_of_all_ids_decoded_together(free):
    session = free.start(context(), samples=3, seed=0)
    frames = torch.stack([result.frame for result in session.rollout([None] * 4)], dim=1)
    torch.testing.assert_close(frames, free.tokenizer.detokenize(session.ids)[:, 2:].clamp(0, 1), atol=1e-5, rtol=0)
    assert frames.shape == (3, 4, 3, SIDE, SIDE)


@pytest.mark.parametrize(("samples", "positions"), [(1, 192), (3, 192), (20, 192), (2, 144)])
def test_rollout_equals_single_steps(samples, positions):
    model = tiny_models.world_model(actions=True, rewards=True, positions=positions)
    actions = some_actions(5)  # with 144 positions the session starts again after three
    stepped, rolled = (model.start(context(), samples=samples, seed=2) for _ in range(2))
    one_by_one = [stepped.step(action) for action in actions]
    together = [*rolled.rollout(actions[:2]), rolled.step(actions[2]), *rolled.rollout(actions[3:]), *rolled.rollout([])]
    assert torch.equal(rolled.ids, stepped.ids)
    for result, expected in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(result.frame, expected.frame, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.reward, expected.reward, atol=1e-5, rtol=1e-4)


def test_session_continues_after_a_rollout_with_an_invalid_action(driven):
    refused, plain = (driven.start(context(), seed=2) for _ in range(2))
    actions = some_actions(4)
    with pytest.raises(ConfigError, match="takes"):
        refused.rollout([*actions[:2], torch.zeros(7)])
    assert refused.steps == 2
    fork = refused.fork()
    expected = [plain.step(action).frame for action in actions]
    for session in (refused, fork):
        frames = [result.frame for result in session.rollout(actions[2:])]
        torch.testing.assert_close(torch.stack(frames), torch.stack(expected[2:]), atol=1e-5, rtol=0)


def test_ids_decode_to_the_context_before_the_first_step(free):
    session = free.start(context(), samples=2)
    assert free.tokenizer.detokenize(session.ids).shape == (2, 2, 3, SIDE, SIDE)


def test_model_without_a_reward_head_predicts_no_reward(free):
    assert free.start(context()).step().reward is None


def test_a_sample_does_not_depend_on_the_number_of_samples(free):
    many = free.start(context(clips=2), samples=4, seed=7)
    many.rollout([None] * 3)
    for clip in range(2):
        few = free.start(context(clips=2)[clip], samples=2, seed=7)
        few.rollout([None] * 3)
        assert torch.equal(many.ids[4 * clip : 4 * clip + 2], few.ids)


def test_samples_and_seeds_differ(free):
    one = free.start(context(), samples=2, seed=1)
    other = free.start(context(), samples=2, seed=2)
    for session in (one, other):
        session.rollout([None] * 2)
    rows = torch.cat([one.ids, other.ids])
    assert len(torch.unique(rows, dim=0)) == 4


def test_a_missing_seed_is_chosen_and_reported(free):
    session = free.start(context())
    again = free.start(context(), seed=session.seed)
    for each in (session, again):
        each.step()
    assert torch.equal(session.ids, again.ids)
    assert free.start(context()).seed != session.seed


def test_prediction_does_not_change_the_global_random_state(free):
    before = torch.get_rng_state()
    free.start(context(), seed=0).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fork_equals_the_original_until_seed_or_actions_differ(driven):
    session = driven.start(context(), samples=2, seed=0)
    session.step(some_actions(1)[0])
    fork, reseeded, turned = session.fork(), session.fork(seed=1), session.fork()
    before = fork.ids.clone()
    actions = some_actions(2, seed=1)
    session.rollout(actions)
    assert torch.equal(fork.ids, before)
    fork.rollout(actions)
    assert torch.equal(fork.ids, session.ids)
    reseeded.rollout(actions)
    turned.rollout([action + 2 for action in actions])
    assert not torch.equal(reseeded.ids, session.ids)
    assert not torch.equal(turned.ids, session.ids)


def test_the_action_of_a_row_changes_only_that_row(driven):
    together = driven.start(context(), samples=3, seed=0)
    apart = driven.start(context(), samples=3, seed=0)
    action = some_actions(1)[0]
    actions = torch.stack([action, action + 3, action])
    together.step(action)
    apart.step(actions)
    together.step(action)
    apart.step(actions)
    same = (together.ids == apart.ids).all(dim=1)
    assert same.tolist() == [True, False, True]


def test_the_session_starts_again_from_its_last_frames_when_positions_are_used_up(driven):
    short = tiny_models.world_model(actions=True, rewards=True, positions=144)
    assert short.max_steps == 3
    session = short.start(context(), samples=2, seed=4)
    actions = some_actions(8)
    results = session.rollout(actions)
    assert session.steps == 8
    assert session.ids.shape[1] == short.id_layout.tokens_per_clip(2 + 2)
    # Frames 5 and 6 are the context of steps 7 and 8.
    slid = torch.stack([results[4].frame, results[5].frame], dim=1)
    assert torch.equal(session.ids[:, : short.id_layout.prefix_length - 1], short.tokenizer.tokenize(slid))
    long = driven.start(context(), samples=2, seed=4)
    for before_sliding, expected in zip(results[:3], long.rollout(actions[:3]), strict=True):
        assert torch.equal(before_sliding.frame, expected.frame)


@pytest.mark.parametrize("frames", [torch.rand(3, 3, SIDE, SIDE), torch.rand(2, 3, 16, 16), torch.rand(2, SIDE, SIDE, 3)])
def test_context_frames_of_another_shape_are_refused(free, frames):
    with pytest.raises(ConfigError, match=r"needs \(2, 3, 32, 32\)"):
        free.start(frames)


def test_actions_that_do_not_fit_the_model_are_refused(free, driven):
    with pytest.raises(ConfigError, match="without actions"):
        free.start(context()).step([0.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="needs actions"):
        driven.start(context()).step()
    with pytest.raises(ConfigError, match=r"\(4,\).*takes \(3,\)"):
        driven.start(context()).step([0.0] * 4)


@pytest.mark.parametrize("actions", [False, True])
def test_an_opened_model_predicts_what_the_saved_one_predicts(tmp_path, actions):
    model = tiny_models.world_model(actions)
    opened = WorldModel.from_pretrained(tiny_models.save_model(tmp_path, model), device="cpu")
    steps = some_actions(2) if actions else [None] * 2
    ids = []
    for each in (model, opened):
        session = each.start(context(), seed=0)
        session.rollout(steps)
        ids.append(session.ids)
    assert torch.equal(*ids)


def test_model_opens_from_a_url(tmp_path):
    tiny_models.save_model(tmp_path, tiny_models.world_model())
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/tiny-model", recursive=True)
    assert WorldModel.from_pretrained("memory://tiny-model", device="cpu").action_dim == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frames: frames * 255, r"from 0.* to 2.*use numbers in \[0, 1\]"),
        (lambda frames: frames * 2 - 1, r"use numbers in \[0, 1\]"),
        (lambda frames: torch.where(frames > 0.999, torch.nan, frames), "from nan to nan"),
    ],
    ids=["bytes as floats", "-1 to 1", "not a number"],
)
def test_context_frames_of_another_range_are_refused(free, spoil, message):
    with pytest.raises(ConfigError, match=message):
        free.start(spoil(context()))


def test_bytes_arrays_and_other_types_give_the_same_frames(free):
    pixels = (context() * 255).round().to(torch.uint8)
    expected = free.start(pixels.float() / 255, seed=1).step().frame
    for same in (pixels, pixels.numpy(), pixels.float().numpy() / 255, pixels.double() / 255):
        assert torch.equal(free.start(same, seed=1).step().frame, expected)


@pytest.mark.parametrize("action", ["left", ["a", "b", "c"], [[0.0], [1.0, 2.0]], [0, 1, float("nan")], [0, 1, float("inf")]])
def test_invalid_actions_are_refused_and_the_session_continues(driven, action):
    session, plain = (driven.start(context(), seed=4) for _ in range(2))
    with pytest.raises(ConfigError, match="an action"):
        session.step(action)
    good = some_actions(1)[0]
    assert torch.equal(session.step(good).frame, plain.step(good).frame)


def test_folder_without_a_transformer_is_refused(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(SourceError, match="no folder transformer"):
        WorldModel.from_pretrained(tmp_path)


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused():
    with pytest.raises(SourceError, match="neither a folder nor a Hugging Face hub id"):
        WorldModel.from_pretrained("nowhere")
