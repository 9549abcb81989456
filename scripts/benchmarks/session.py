"""How fast a session predicts, beside what it saves and what it can't beat; the last line is one JSON object.

In one process: the session (one cache, one prefill, context decoded once), with several samples and with one; the same greedy
ids with the whole prefix encoded anew for every frame, as the published code does with actions; and as the ceiling the bare
parts of a step in one loop, namely a transformer step and the output head per id, and one decoded frame. Pictures cost the
same whoever makes the ids but for the context, so what they cost each side is measured and taken off in a second comparison.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch

from pipeline.recipe import ModelConfig
from tokenize_offline.token_shards import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training import kv_cache
from training.session import WorldModel
from training.world_model import build_network

ACTION_DIM = 4
SIZES = {
    "tiny": (ModelConfig(layers=4, heads=4, width=256, mlp_width=1024, actions=True), (32, 64, 64), 1, 16),
    "published": (ModelConfig(actions=True), (128, 256, 512), 2, 64),
}


def build(size: str, device: str) -> WorldModel:
    """A world model of a given size with random weights."""
    model, channels, layers, latent = SIZES[size]
    config = CompressiveVQConfig(block_out_channels=channels, layers_per_block=layers, latent_channels=latent)
    geometry = config.geometry
    layout = TokenLayout(
        context_length=geometry.context_length,
        context_grid=geometry.context_grid,
        future_grid=geometry.future_grid,
        num_vq_embeddings=geometry.num_vq_embeddings,
        num_dyn_embeddings=geometry.num_dyn_embeddings,
        clip_length=16,
        resolution=config.resolution,
        goal=False,
        precision="fp32",
        tokenizer_sha256="",
        clips_fingerprint="",
    )
    torch.manual_seed(0)
    return WorldModel(CompressiveVQModel(config).to(device), build_network(model, layout, ACTION_DIM, 0).to(device))


def fastest(works: Sequence[Callable[[], object]], device: str, repeats: int) -> list[float]:
    """Seconds of the fastest of several runs of each work, run in turn so that other load hits all alike."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def by_session(model: WorldModel, context: torch.Tensor, actions: torch.Tensor, samples: int) -> torch.Tensor:
    """Ids after all steps."""
    session = model.start(context, samples=samples, temperature=0)
    session.rollout(actions)
    return session.ids


@torch.no_grad()
def by_reencoding(model: WorldModel, context: torch.Tensor, actions: torch.Tensor, samples: int) -> torch.Tensor:
    """Ids after all steps, for every frame a new cache over the whole prefix, and the context decoded with it."""
    network, geometry = model.network, model.geometry
    ids = model.tokenizer.tokenize(context[None]).repeat(samples, 1)
    lead = torch.zeros(samples, geometry.context_length - 1, actions.shape[1], device=ids.device)
    for step in range(len(actions)):
        slot = torch.full((samples, 1), geometry.start_of_future, device=ids.device)
        ids = torch.cat([ids, slot], dim=1)
        taken = torch.cat([lead, actions[: step + 1].expand(samples, -1, -1)], dim=1)
        cache = kv_cache.empty(network.config)
        embedded = network.embed(ids, taken)
        for _ in range(geometry.future_ids - 1):
            hidden = network.llm.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
            drawn = network.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, drawn], dim=1)
            embedded = network.llm.model.embed_tokens(drawn)
        model.tokenizer.detokenize(torch.cat([ids[:, : geometry.prefix_length - 1], ids[:, -geometry.future_ids :]], dim=1))
    return ids


@torch.no_grad()
def decode_once(model: WorldModel, ids: torch.Tensor) -> None:
    """Pictures of all ids as a session makes them: the context once, then frame by frame."""
    geometry = model.geometry
    prefix = geometry.prefix_length - 1
    _, features = model.tokenizer.decode_context(ids[:, :prefix])
    for frame in ids[:, prefix:].split(geometry.future_ids, dim=1):
        model.tokenizer.decode_future(frame[:, None, 1:], features)


@torch.no_grad()
def decode_anew(model: WorldModel, ids: torch.Tensor) -> None:
    """Pictures of all ids with the context decoded for every frame."""
    geometry = model.geometry
    prefix = geometry.prefix_length - 1
    for frame in ids[:, prefix:].split(geometry.future_ids, dim=1):
        model.tokenizer.detokenize(torch.cat([ids[:, :prefix], frame], dim=1))


@torch.no_grad()
def bare_parts(model: WorldModel, context: torch.Tensor, samples: int, steps: int) -> Callable[[], None]:
    """What does the arithmetic of so many steps, and nothing else, as often as it is called."""
    network, geometry = model.network, model.geometry
    ids = model.tokenizer.tokenize(context[None])
    prefix = kv_cache.empty(network.config)
    network.llm.model(inputs_embeds=network.llm.model.embed_tokens(ids), past_key_values=prefix, use_cache=True)
    embedded = network.llm.model.embed_tokens(ids[:, :1]).expand(samples, -1, -1)
    _, features = model.tokenizer.decode_context(ids.expand(samples, -1))
    frame_ids = torch.full((samples, 1, geometry.future_ids - 1), geometry.num_vq_embeddings, device=context.device)

    @torch.no_grad()
    def work() -> None:
        cache = kv_cache.buffered(prefix, network.config.max_position_embeddings, samples)
        for _ in range(steps):
            for _ in range(geometry.future_ids):
                network.logits(
                    network.llm.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
                )
            model.tokenizer.decode_future(frame_ids, features)

    return work


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = build(options.size, options.device)
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2, 3, 64, 64, generator=generator).to(options.device)
    actions = torch.randn(options.steps, ACTION_DIM, generator=generator).to(options.device)
    ids = by_session(model, context, actions, options.samples)
    same = by_reencoding(model, context, actions, options.samples)
    bare = bare_parts(model, context, options.samples, options.steps)
    works = [
        lambda: by_session(model, context, actions, options.samples),
        lambda: by_reencoding(model, context, actions, options.samples),
        bare,
        lambda: by_session(model, context, actions, 1),
        lambda: decode_once(model, ids),
        lambda: decode_anew(model, ids),
    ]
    session, reencoding, ceiling, single, once, anew = fastest(works, options.device, options.repeats)
    frames = options.steps * options.samples
    result = {
        "benchmark": "session",
        "size": options.size,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "samples": options.samples,
        "measured_frames_per_second": round(frames / session, 2),
        "milliseconds_per_step": round(1000 * session / options.steps, 1),
        "one_sample_frames_per_second": round(options.steps / single, 2),
        "reencoding_frames_per_second": round(frames / reencoding, 2),
        "speedup_over_reencoding": round(reencoding / session, 2),
        "speedup_over_reencoding_without_pictures": round((reencoding - anew) / (session - once), 2),
        "equal_ids": round((ids == same).float().mean().item(), 4),
        "ceiling_frames_per_second": round(frames / ceiling, 2),
        "ratio": round(ceiling / session, 3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
