"""Small token shards with made-up ids, written as stage 2 writes them; for tests of training alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.common.manifests import ShardManifest, fingerprint, sha256_of, write_manifest
from tokenize_offline.shards.token_shards import TokenRows, TokenShardInfo, write_token_shard
from tokenize_offline.token_layout import TokenLayout

LAYOUT = TokenLayout(
    context_length=1,
    context_grid=4,
    future_grid=2,
    num_vq_embeddings=30,
    num_dyn_embeddings=20,
    clip_length=4,
    resolution=16,
    goal=False,
    precision="fp32",
    tokenizer_sha256="ab" * 32,
    clips_fingerprint="c" * 16,
)
# The published small model's clips.
PUBLISHED = dataclasses.replace(
    LAYOUT, context_length=2, clip_length=16, context_grid=16, future_grid=4, num_vq_embeddings=8192, num_dyn_embeddings=8192
)


def clip_ids(layout: TokenLayout, count: int, seed: int) -> np.ndarray:
    """(count, L) ids in the layout's own order; codes of future frames repeat one code per clip, so there is much to learn."""
    random = np.random.default_rng(seed)
    ids = np.empty((count, layout.sequence_length), np.int64)
    ids[:, : layout.prefix_length] = random.integers(0, layout.num_vq_embeddings, (count, layout.prefix_length))
    code = layout.num_vq_embeddings + random.integers(0, layout.num_dyn_embeddings, (count, 1))
    ids[:, layout.prefix_length :] = code
    ids[:, layout.prefix_length - 1 :: layout.tokens_per_future_frame] = layout.start_of_future
    for frame in range(1, layout.context_length):
        ids[:, frame * layout.tokens_per_context_frame - 1] = layout.start_of_context
    return ids


def write_shard(
    root: Path,
    dataset: str = "alpha",
    number: int = 0,
    positions: int = 10,
    views: int = 1,
    split: str = "train",
    layout: TokenLayout = LAYOUT,
    action_dim: int = 0,
    has_reward: bool = False,
    seed: int = 0,
    bad_rows: Sequence[int] = (),
    clips: Mapping[str, object] | None = None,
    seconds_per_frame: float | None = None,
) -> Path:
    """One token shard with its record; returns the shard's path. The actions of `bad_rows` are not finite."""
    count = positions * views
    name = f"{split}-{number:06d}"
    info = TokenShardInfo(
        layout, dataset, split, views, action_dim, "x" if action_dim else "", has_reward, f"{name}.tar", "0" * 64
    )
    random = np.random.default_rng(seed)
    action = random.normal(size=(count, layout.clip_length, action_dim)).astype(np.float32)
    action[list(bad_rows)] = np.nan
    rows = TokenRows(
        ids=clip_ids(layout, count, seed + 1000 * number),
        episode=[f"{split}-00000-{i // views:06d}" for i in range(count)],
        start=np.zeros(count, np.int32),
        stride=np.ones(count, np.float32),
        view=np.arange(count) % views,
        action=action if action_dim else None,
        reward=random.normal(size=(count, layout.clip_length)).astype(np.float32) if has_reward else None,
    )
    path = root / dataset / f"{name}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_token_shard(path, info, rows)
    inputs = {"layout": dataclasses.asdict(layout), **({"clips": clips} if clips else {})}
    record = ShardManifest(
        path.name,
        fingerprint(inputs),
        inputs,
        count,
        count * layout.clip_length,
        path.stat().st_size,
        sha256_of(path),
        statistics={"seconds_per_frame": seconds_per_frame} if seconds_per_frame else {},
    )
    write_manifest(str(path.parent), record)
    return path
