"""Whatever number a recipe holds, it is refused by its key's name or works where it is used."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_tokens import LAYOUT

from pipeline.common.errors import ConfigError
from pipeline.config import bounds
from pipeline.config.model import ModelConfig, TokenizerConfig, TrainingConfig
from pipeline.config.recipe import ClipsConfig, DataConfig, QualityConfig
from tokenize_offline.clips.sampling import EpisodeShape, KeyedRandom, draw_augmentation, plan_clips, resolve_clips, stride_of
from tokenize_offline.tokenizer import CompressiveVQModel
from training.data.batch_plan import plan_batches
from training.data.sampler import DatasetSize, SampleOrder
from training.model.world_model import build_network
from training.tokenizer_training.data import StepBatches, sample_generator, training_frames
from training.tokenizer_training.start import model_config
from training.tokenizer_training.trainer import step_seed
from training.trainer.deepspeed_engine import deepspeed_config
from training.trainer.schedule import dropout_seed, learning_rate

SECTIONS = {
    "data": (DataConfig(), bounds.DATA_BOUNDS),
    "clips": (ClipsConfig(), bounds.CLIPS_BOUNDS),
    "quality": (QualityConfig(), bounds.QUALITY_BOUNDS),
    "tokenizer": (TokenizerConfig(), bounds.TOKENIZER_BOUNDS),
    "model": (ModelConfig(layers=1, heads=2, width=16, mlp_width=32, positions=64), bounds.MODEL_BOUNDS),
    "training": (TrainingConfig(), bounds.TRAINING_BOUNDS),
}
EPISODES = [EpisodeShape("made_up", "train-00000-000001", frames, 30, 44, 5.0, 6.0) for frames in (1, 40)]
WHOLE = st.sampled_from([-(2**70), -(2**63), -1, 0, 1, 2, 3, 7, 32, 1000, 2**20, 2**24, 2**32, 2**63 - 1, 2**63, 2**70])
REAL = st.sampled_from([-math.inf, -1.0, -1e-300, 0.0, 5e-324, 1e-9, 0.5, 1.0, 1.5, 1e300, math.inf, math.nan]) | st.floats()
STRIDES = st.sampled_from(["0", "0s", "1", "3", "0.33s", ".5s", "9" * 400, "9" * 400 + "s", "-1", "reference", "٣", "1e3", ""])


def _is_number(kind):
    """Whether a field of this type holds numbers."""
    return any(word in str(kind) for word in ("int", "float")) and "Literal" not in str(kind)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_number_of_a_recipe_has_bounds_and_no_other_key_has(name):
    section, bounds = SECTIONS[name]
    numbers = {field.name for field in dataclasses.fields(section) if _is_number(field.type)}
    assert set(bounds) - {"zero_stage"} == numbers


@st.composite
def changes(draw):
    name = draw(st.sampled_from(sorted(SECTIONS)))
    section, bounds = SECTIONS[name]
    key = draw(st.sampled_from(sorted(bounds)))
    kind = str(next(field.type for field in dataclasses.fields(section) if field.name == key))
    number = REAL if "float" in kind else WHOLE
    if "dict" in kind:
        return name, key, draw(st.dictionaries(st.sampled_from(["alpha", "beta"]), number, min_size=1))
    if "..." in kind:
        return name, key, tuple(draw(st.lists(number | st.sampled_from([32, 64, 33]), max_size=8)))
    if "tuple" in kind:
        return name, key, (draw(number), draw(number))
    return name, key, draw(number)


def _use_clips(clips):
    draws = KeyedRandom(clips.seed, "made_up", 3)
    try:
        resolved = resolve_clips(dataclasses.replace(clips, per_episode=min(clips.per_episode, 3)), 2)
    except ConfigError as error:
        assert "clips." in str(error)
        return
    if resolved.length > 1000:
        return
    for episode in EPISODES:
        for plan in plan_clips(episode, resolved, min(resolved.views, 2)):
            assert all(0 <= frame < episode.num_frames for frame in plan.frames)
        jitter = draw_augmentation(draws, resolved, episode).jitter
        assert all(math.isfinite(amount) for _, amount in jitter)


def _use_tokenizer(config):
    with torch.device("meta"):
        model = CompressiveVQModel(model_config(config))
    assert model.id_layout.vocabulary <= 1 << 16 and model.id_layout.future_grid >= 1
    torch.optim.AdamW(model.parameters(), config.learning_rate)
    torch.optim.AdamW(model.parameters(), config.disc_learning_rate)
    last = config.steps - 1
    next(iter(StepBatches(last, config.steps, min(config.batch_size, 4), 0, 1)))
    sample = config.batch_size * config.steps - 1
    frames = training_frames(9, 1.0, config, sample_generator(config.seed, sample)) if config.horizon <= 1000 else []
    assert all(0 <= frame < 9 for frame in frames)
    assert SampleOrder({"alpha": DatasetSize(9)}, None, config.seed)[sample][0] == "alpha"
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        torch.manual_seed(step_seed(config.seed, last, 4095))
    assert last % config.log_every >= 0 and last % config.checkpoint_every >= 0


def _use_model(model):
    dimension = 2 if model.actions else 0
    if model.positions < LAYOUT.sequence_length:
        return
    with torch.device("meta"):
        network = build_network(model, LAYOUT, dimension, 0)
    assert network.llm.config.num_hidden_layers == model.layers


def _use_training(training):
    rates = [learning_rate(training, step) for step in (0, training.steps // 2, training.steps - 1)]
    assert all(0 <= rate <= training.learning_rate for rate in rates)
    plan = plan_batches(dataclasses.replace(training, micro_batch=None), 1, 0)
    deepspeed_config(training, plan)
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.AdamW(
        [parameter], training.learning_rate, (training.adam_beta1, training.adam_beta2), 1e-8, training.weight_decay
    )
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        torch.manual_seed(dropout_seed(training.seed, training.steps, 0, 0))
    order = SampleOrder({"alpha": DatasetSize(9)}, None, training.seed)
    assert order[training.steps * training.global_batch - 1][0] == "alpha"


def _use_data(data):
    sizes = {name: DatasetSize(9) for name in ("alpha", "beta")}
    assert SampleOrder(sizes, data.weights or None)[10**6][0] in sizes


USES = {
    "clips": _use_clips,
    "tokenizer": _use_tokenizer,
    "model": _use_model,
    "training": _use_training,
    "data": _use_data,
    "quality": lambda quality: quality.active,
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(change=changes())
def test_a_number_is_refused_by_its_keys_name_or_works_where_it_is_used(change):
    name, key, value = change
    try:
        section = dataclasses.replace(SECTIONS[name][0], **{key: value})
    except ConfigError as error:
        assert f"{name}.{key}" in str(error) and "\n" not in str(error)
        return
    USES[name](section)


@given(stride=STRIDES | st.text(max_size=5))
def test_a_stride_is_refused_by_its_name_or_cuts_clips(stride):
    try:
        clips = ClipsConfig(stride=stride)
    except ConfigError as error:
        assert "clips.stride" in str(error)
        return
    _use_clips(clips)
    assert all(0 < stride_of(dataclasses.replace(clips, length=5), episode) <= 5e6 for episode in EPISODES)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        (TokenizerConfig, {"log_every": 0}, "tokenizer.log_every must be at least 1, not 0"),
        (TokenizerConfig, {"clips_per_batch": 0}, "tokenizer.clips_per_batch must be at least 1, not 0"),
        (TokenizerConfig, {"learning_rate": math.nan}, "tokenizer.learning_rate must be finite and above 0, not nan"),
        (TokenizerConfig, {"ema_decay": 1.0}, "tokenizer.ema_decay must be below 1, not 1.0"),
        (TokenizerConfig, {"block_out_channels": ()}, "tokenizer.block_out_channels must be one or more multiples of 32"),
        (TokenizerConfig, {"num_vq_embeddings": 65000}, "at most 65534"),
        (
            TokenizerConfig,
            {"resolution": 8, "block_out_channels": (32,) * 6},
            "tokenizer.resolution 8 must be a multiple of 128",
        ),
        (TokenizerConfig, {"lpips_weight": 1.0, "resolution": 8, "block_out_channels": (32,)}, "at least 16 pixels"),
        (TokenizerConfig, {"l1_weight": 0.0}, "reconstructions count for nothing"),
        (ModelConfig, {"heads": 0}, "model.heads must be at least 1, not 0"),
        (ModelConfig, {"attention_dropout": 1.5}, "model.attention_dropout must be below 1, not 1.5"),
        (TrainingConfig, {"warmup_steps": -1}, "training.warmup_steps must be at least 0, not -1"),
        (TrainingConfig, {"adam_beta2": 1.0}, "training.adam_beta2 must be below 1, not 1.0"),
        (TrainingConfig, {"learning_rate": math.inf}, "training.learning_rate must be finite and above 0, not inf"),
        (TrainingConfig, {"splits": ()}, "training.splits must name one or more splits"),
        (ClipsConfig, {"hue": 0.7}, "clips.hue must be at most 0.5, not 0.7"),
        (ClipsConfig, {"brightness": math.nan}, "clips.brightness must be finite and at least 0, not nan"),
        (ClipsConfig, {"stride": "0"}, "clips.stride must be above 0 and at most 1e+06 (frames or seconds), not 0"),
        (DataConfig, {"weights": {"alpha": math.inf}}, "data.weights must be finite and above 0"),
        (QualityConfig, {"max_static": math.nan}, "quality.max_static must be at least 0 and at most 1, not nan"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_bounds(section, changes, told):
    with pytest.raises(ConfigError) as caught:
        section(**changes)
    assert told in str(caught.value)


def test_steps_of_large_seeds_draw_apart_and_those_of_small_ones_as_ever():
    seeds = [0, 1, 2**23, 2**24, 2**24 + 1, 20240601, 2**40, 2**63 - 1]
    drawn = [step_seed(seed, step, process) for seed in seeds for step in (0, 1, 10**6) for process in (0, 7)]
    assert len(set(drawn)) == len(drawn) and all(0 <= number < 2**64 for number in drawn)
    assert step_seed(3, 5, 1) == (3 << 40) + (5 << 12) + 1
