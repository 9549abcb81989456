"""How fast a session predicts, beside what it saves and what it can't beat; the last line is one JSON object.

In one process and frame by frame in turn, so that other load hits all alike: the session (one cache, one prefill, context
decoded once); the same draws with the whole prefix encoded anew for every frame and the context decoded with it, by
`transformers` as the published code does it with actions, and by the session's own transformer; the session with one sample;
and as the ceiling the bare parts of a step, namely passes of the transformer and one decoded frame. Weights are random and ids
drawn at temperature 1, so that the frame before is no help as a draft: what a trained model gains by drafts comes on top.

Times are those of the process's own CPU time where it runs on a CPU, and wall time beside; use OMP_NUM_THREADS=1, or the CPU
time of all threads is added up.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from transformers import DynamicCache

from pipeline.network_recipe import ModelConfig
from tokenize_offline.token_shards import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.sampling import SamplingRule, uniforms
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


# What embeds (R, n, width) and gives the last hidden state (R, width); it remembers what it was given.
Reader = Callable[[torch.Tensor], torch.Tensor]
SEED = 0


def by_session(model: WorldModel, context: torch.Tensor, actions: torch.Tensor, samples: int) -> Iterator[torch.Tensor]:
    """Ids so far, frame by frame."""
    session = model.start(context, samples=samples, seed=SEED)
    for action in actions:
        session.step(action)
        yield session.ids


def published_reader(model: WorldModel) -> Reader:
    """A new prefix, read by `transformers`."""
    llama, cache = model.network.llm.model, DynamicCache(config=model.network.config)
    return lambda embedded: llama(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]


class OwnReader:
    """A new prefix, read by the session's transformer."""

    def __init__(self, model: WorldModel) -> None:
        self._decoder = model.decoder
        self._read = 0

    def __call__(self, embedded: torch.Tensor) -> torch.Tensor:
        """See `Reader`."""
        if not self._read:
            self._cache = self._decoder.copied(self._decoder.prefill(embedded[:, :-1]))
            self._read = embedded.shape[1] - 1
            embedded = embedded[:, -1:]
        place = torch.full((len(embedded), 1), self._read, device=embedded.device)
        self._read += 1
        return self._decoder.step(embedded, place, self._cache, self._read)[:, -1]


@torch.no_grad()
def by_reencoding(
    model: WorldModel, context: torch.Tensor, actions: torch.Tensor, samples: int, reader: Callable[[WorldModel], Reader]
) -> Iterator[torch.Tensor]:
    """Ids so far, for every frame a new cache over the whole prefix, and the context decoded with it."""
    network, geometry, rule = model.network, model.geometry, SamplingRule()
    ids = model.tokenizer.tokenize(context[None]).repeat(samples, 1)
    lead = torch.zeros(samples, geometry.context_length - 1, actions.shape[1], device=ids.device)
    for step in range(len(actions)):
        noise = torch.from_numpy(uniforms(SEED, samples, step, geometry.future_ids)).to(ids.device)
        slot = torch.full((samples, 1), geometry.start_of_future, device=ids.device)
        ids = torch.cat([ids, slot], dim=1)
        taken = torch.cat([lead, actions[: step + 1].expand(samples, -1, -1)], dim=1)
        read = reader(model)
        embedded = network.embed(ids, taken)
        for number in range(1, geometry.future_ids):
            drawn = rule.draw(network.logits(read(embedded)), noise[:, number])[:, None]
            ids = torch.cat([ids, drawn], dim=1)
            embedded = network.llm.model.embed_tokens(drawn)
        model.tokenizer.detokenize(torch.cat([ids[:, : geometry.prefix_length - 1], ids[:, -geometry.future_ids :]], dim=1))
        yield ids


@torch.no_grad()
def bare_parts(model: WorldModel, context: torch.Tensor, samples: int, steps: int) -> Iterator[torch.Tensor]:
    """What does the arithmetic of so many steps without drafts, and nothing else; ids mean nothing."""
    network, geometry, decoder = model.network, model.geometry, model.decoder
    ids = model.tokenizer.tokenize(context[None])
    cache = decoder.copied(decoder.prefill(network.llm.model.embed_tokens(ids)), samples)
    embedded = network.llm.model.embed_tokens(ids[:, :1]).expand(samples, -1, -1)
    _, features = model.tokenizer.decode_context(ids.expand(samples, -1))
    frame_ids = torch.full((samples, 1, geometry.future_ids - 1), geometry.num_vq_embeddings, device=context.device)
    end = ids.shape[1]
    for _ in range(steps):
        for _ in range(geometry.future_ids - 1):
            place = torch.full((samples, 1), end, device=context.device)
            end += 1
            decoder.logits(decoder.step(embedded, place, cache, end))
        model.tokenizer.decode_future(frame_ids, features)
        yield frame_ids


def in_turn(works: dict[str, Iterator[torch.Tensor]], device: str) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Advance all works by a frame each until they end.

    Returns:
        What each yielded last; and of each the seconds that count on the device and those of the wall, its start included.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    outcomes: dict[str, torch.Tensor] = {}
    seconds = {name: [0.0, 0.0] for name in works}
    running = dict(works)
    while running:
        for name, work in list(running.items()):
            started, wall = clock(), time.perf_counter()
            outcome = next(work, None)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name][0] += clock() - started
            seconds[name][1] += time.perf_counter() - wall
            if outcome is None:
                del running[name]
            else:
                outcomes[name] = outcome
    return outcomes, seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = build(options.size, options.device)
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2, 3, 64, 64, generator=generator).to(options.device)
    actions = torch.randn(options.steps, ACTION_DIM, generator=generator).to(options.device)

    def works(steps: int) -> dict[str, Iterator[torch.Tensor]]:
        taken = actions[:steps]
        return {
            "session": by_session(model, context, taken, options.samples),
            "published": by_reencoding(model, context, taken, options.samples, published_reader),
            "own": by_reencoding(model, context, taken, options.samples, OwnReader),
            "single": by_session(model, context, taken, 1),
            "bare": bare_parts(model, context, options.samples, steps),
        }

    in_turn(works(1), options.device)  # first calls allocate and choose kernels
    ids, seconds = in_turn(works(options.steps), options.device)
    frames = options.steps * options.samples
    spent = {name: counted for name, (counted, _) in seconds.items()}
    result = {
        "benchmark": "session",
        "size": options.size,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "clock": "wall" if options.device == "cuda" else "cpu",
        "steps": options.steps,
        "samples": options.samples,
        "measured_frames_per_second": round(frames / spent["session"], 2),
        "milliseconds_per_step": round(1000 * spent["session"] / options.steps, 1),
        "one_sample_frames_per_second": round(options.steps / spent["single"], 2),
        "reencoding_frames_per_second": round(frames / spent["published"], 2),
        "speedup_over_reencoding": round(spent["published"] / spent["session"], 2),
        "speedup_over_reencoding_by_wall": round(seconds["published"][1] / seconds["session"][1], 2),
        "speedup_over_reencoding_by_the_same_transformer": round(spent["own"] / spent["session"], 2),
        "equal_ids": round((ids["session"] == ids["published"]).float().mean().item(), 4),
        "ceiling_frames_per_second": round(frames / spent["bare"], 2),
        "ratio": round(spent["bare"] / spent["session"], 3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
