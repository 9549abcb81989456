"""Small episode shards with made-up pictures, and a small tokenizer with random weights; written as the real ones are."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from pipeline.common.manifests import ShardManifest, fingerprint, write_manifest
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import encode_jpeg
from pipeline.episodes.naming import episode_key, shard_name
from pipeline.episodes.shards import EpisodeShardWriter
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.tasks import TokenizeJob, token_layout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel

TINY = CompressiveVQConfig(
    resolution=32,
    context_length=2,
    block_out_channels=(32, 32),
    layers_per_block=1,
    latent_channels=8,
    num_vq_embeddings=40,
    num_dyn_embeddings=24,
    patch_size=4,
    max_att_resolution=16,
)
SHA = "ab" * 32


def tiny_model(seed: int = 0, config: CompressiveVQConfig = TINY) -> CompressiveVQModel:
    """A tokenizer with random weights, spread so that many different codes occur."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CompressiveVQModel(config).eval()
        with torch.no_grad():
            model.quantize.embedding.weight.normal_(0, 0.5)
            model.dynamics_quantize.embedding.weight.normal_(0, 0.5)
            for name, parameter in model.named_parameters():
                if name.endswith("_pos_emb"):
                    parameter.normal_(0, 0.5)
    return model


def tiny_tokenizer(folder: Path, seed: int = 0) -> Path:
    """A folder with such a tokenizer."""
    tiny_model(seed).save_pretrained(str(folder))
    return folder


def make_episode(
    index: int, frames: int, dataset: str = "made_up", split: str = "train", actions: int = 3, rewards: bool = True
) -> Episode:
    """An episode of moving colour gradients; action[i] = (i, index, ..), reward[i] = i / 10."""
    height, width = 30, 44
    rows, columns = np.mgrid[0:height, 0:width]
    pictures = [
        np.stack([(rows * 6 + 9 * t + 31 * index) % 256, (columns * 5 + 5 * t) % 256, (rows * columns + 40 * index) % 256], -1)
        for t in range(frames)
    ]
    action = np.zeros((frames, actions), np.float32)
    if actions:
        action[:, 0], action[:, 1:] = np.arange(frames), index
    return Episode(
        key=episode_key(split, 0, index),
        dataset=dataset,
        frames=[encode_jpeg(picture.astype(np.uint8)) for picture in pictures],
        height=height,
        width=width,
        rate=5.0,
        base_step=6.0,
        camera="front",
        language="",
        source_file="made_up.tfrecord",
        source_record=index,
        action_meaning="step and episode" if actions else "",
        action=action if actions else None,
        reward=np.arange(frames, dtype=np.float32) / 10 if rewards else None,
    )


def write_shard(output: Path, number: int, episodes: list[Episode], dataset: str = "made_up", split: str = "train") -> Path:
    """Write `{output}/{dataset}/{split}-{number}.tar` and its record; returns the tar's path."""
    folder = output / dataset
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard_name(split, number, "tar")
    with EpisodeShardWriter(path) as writer:
        for episode in episodes:
            writer.add(episode)
    inputs = {"made up": number}
    record = ShardManifest(
        path.name, fingerprint(inputs), inputs, len(episodes), writer.frames, writer.size, writer.sha256, entries=writer.entries
    )
    write_manifest(str(folder), record)
    return path


def write_shards(output: Path, shards: int = 3, episodes: int = 4, dataset: str = "made_up", split: str = "train") -> Path:
    """Several shards of episodes of 5 to 24 frames; returns `output`."""
    for number in range(shards):
        indices = range(number * episodes, (number + 1) * episodes)
        made = [make_episode(index, 5 + index * 7 % 20, dataset, split) for index in indices]
        write_shard(output, number, made, dataset, split)
    return output


def broken(episode: Episode, frame: int = 0) -> Episode:
    """The same episode with one picture cut in half."""
    frames = list(episode.frames)
    frames[frame] = frames[frame][: len(frames[frame]) // 4]
    return dataclasses.replace(episode, frames=frames)


def tokenize_job(output, sha=SHA, overwrite=False, **clips):
    resolved = resolve_clips(ClipsConfig(**clips), 2)
    return TokenizeJob(resolved, token_layout(TINY, resolved, "fp32", sha), str(output), overwrite)
