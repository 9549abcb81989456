"""Small models with random weights and the published structure, for tests."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from pipeline.config.model import ModelConfig
from tokenize_offline.token_layout import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.inference.session import WorldModel
from training.model.world_model import WorldModelNetwork, build_network, load_transformer

CLIP_LENGTH = 5
# 8 x 8 ids per context frame, 2 x 2 ids per future frame.
TOKENIZER = CompressiveVQConfig(
    resolution=32,
    context_length=2,
    block_out_channels=(32, 32, 32),
    layers_per_block=1,
    latent_channels=8,
    num_vq_embeddings=16,
    num_dyn_embeddings=24,
)
ACTION_DIM = 3


def layout(clip_length: int = CLIP_LENGTH, tokenizer: CompressiveVQConfig = TOKENIZER) -> TokenLayout:
    """The layout of the small tokenizer's clips."""
    id_layout = tokenizer.id_layout
    return TokenLayout(
        context_length=id_layout.context_length,
        context_grid=id_layout.context_grid,
        future_grid=id_layout.future_grid,
        num_vq_embeddings=id_layout.num_vq_embeddings,
        num_dyn_embeddings=id_layout.num_dyn_embeddings,
        clip_length=clip_length,
        resolution=tokenizer.resolution,
        goal=False,
        precision="fp32",
        tokenizer_sha256="0" * 64,
        clips_fingerprint="0" * 16,
    )


def network(actions: bool = False, rewards: bool = False, seed: int = 0, positions: int = 192) -> WorldModelNetwork:
    """A small network whose heads are not zero, so that they change results."""
    config = ModelConfig(
        layers=2, heads=2, width=16, mlp_width=32, positions=positions, attention_dropout=0.0, actions=actions, rewards=rewards
    )
    built = build_network(config, layout(), ACTION_DIM if actions else 0, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # With the usual deviation 0.02, attention has almost no effect; larger weights let ids and actions change results.
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.4, generator=generator)
    return built.eval()


def clip_ids(rows: int, seed: int = 0, clip_length: int = CLIP_LENGTH) -> torch.Tensor:
    """Random valid ids (rows, L) of a layout."""
    shape = layout(clip_length)
    random = np.random.default_rng(seed)
    grid = random.integers(0, shape.num_vq_embeddings, (rows, shape.context_length, shape.tokens_per_context_frame))
    grid[:, :, 0] = shape.start_of_context
    future = random.integers(
        0, shape.num_dyn_embeddings, (rows, clip_length - shape.context_length, shape.tokens_per_future_frame)
    )
    future += shape.num_vq_embeddings
    future[:, :, 0] = shape.start_of_future
    return torch.from_numpy(np.concatenate([grid.reshape(rows, -1)[:, 1:], future.reshape(rows, -1)], axis=1))


def tokenizer(seed: int = 0) -> CompressiveVQModel:
    """A small tokenizer with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CompressiveVQModel(TOKENIZER).eval()


def save_tokenizer(folder: Path) -> TokenLayout:
    """Write a small tokenizer; returns the layout of shards that it made."""
    tokenizer().save_pretrained(str(folder))
    return dataclasses.replace(layout(), tokenizer_sha256=CompressiveVQModel.from_pretrained(str(folder)).weights_sha256)


def world_model(actions: bool = False, rewards: bool = False, positions: int = 192) -> WorldModel:
    """A small world model on the CPU."""
    return WorldModel(tokenizer(), network(actions, rewards, positions=positions))


def save_model(folder: Path, model: WorldModel) -> Path:
    """Writes a model folder as training does."""
    model.tokenizer.save_pretrained(str(folder / "tokenizer"))
    model.network.save_transformer(folder / "transformer")
    return folder


def parity_network(shared: Path, context: int, actions: bool) -> WorldModelNetwork:
    """The transformer of a parity fixture."""
    fixture = shared / "parity" / f"context{context}"
    config = CompressiveVQModel.from_pretrained(str(fixture / "tokenizer")).config
    return load_transformer(fixture / ("transformer-action" if actions else "transformer"), config.id_layout)
