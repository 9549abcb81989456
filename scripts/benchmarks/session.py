"""How fast a session predicts, beside what it saves and what it can't beat; the last line is one JSON object.

In one process and frame by frame in turn, so that other load hits all alike: the session (one cache, one prefill, context
decoded once); the same draws with the whole prefix encoded anew for every frame and the context decoded with it, by
`transformers` as the published code does it with actions, and by the session's own transformer and decoder; the session with
one sample; and as the ceiling the bare parts of a step, passes of the transformer and one decoded frame. A rollout, which
decodes its frames at its end, is measured in one go.

Without `--model` weights are random and ids drawn at temperature 1, so that the frame before is no help as a draft: the least
that a session gains. With `--model` and `--shards` a trained model predicts real episodes, and drafts help as much as they do;
ids must be those of the published way, and greedy ones that aren't end the run with status 1.

Times are those of the process's own CPU time where it runs on a CPU, and wall time beside; use OMP_NUM_THREADS=1, or the CPU
time of all threads is added up.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from pipeline.common import storage
from pipeline.config.model import ModelConfig
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.naming import parse_shard_name
from tokenize_offline.token_layout import TokenLayout
from tokenize_offline.tokenizer import CompressiveVQConfig, CompressiveVQModel
from training.inference.sampling import SamplingRule, uniforms
from training.inference.session import Session, WorldModel
from training.model.world_model import build_network
from training.prediction.clip_prediction import clips_for, cut_clip
from training.prediction.episodes import open_episodes

ACTION_DIM = 4
SIZES = {
    "tiny": (ModelConfig(layers=4, heads=4, width=256, mlp_width=1024, actions=True), (32, 64, 64), 1, 16),
    "published": (ModelConfig(actions=True), (128, 256, 512), 2, 64),
}


def build(size: str, device: str, compiled: bool) -> WorldModel:
    """A world model of a given size with random weights."""
    model, channels, layers, latent = SIZES[size]
    config = CompressiveVQConfig(block_out_channels=channels, layers_per_block=layers, latent_channels=latent)
    id_layout = config.id_layout
    layout = TokenLayout(
        context_length=id_layout.context_length,
        context_grid=id_layout.context_grid,
        future_grid=id_layout.future_grid,
        num_vq_embeddings=id_layout.num_vq_embeddings,
        num_dyn_embeddings=id_layout.num_dyn_embeddings,
        clip_length=16,
        resolution=config.resolution,
        goal=False,
        precision="fp32",
        tokenizer_sha256="",
        clips_fingerprint="",
    )
    torch.manual_seed(0)
    network = build_network(model, layout, ACTION_DIM, 0).to(device)
    return WorldModel(CompressiveVQModel(config).to(device), network, compiled)


@dataclass(frozen=True)
class Case:
    """Futures of one clip: context (t, 3, S, S), then n steps by actions (n, A) or none."""

    context: torch.Tensor
    actions: torch.Tensor | None
    steps: int
    samples: int
    rule: SamplingRule

    def first(self, steps: int) -> "Case":
        """The first steps alone."""
        return dataclasses.replace(self, steps=steps)

    def action(self, step: int) -> torch.Tensor | None:
        """What leads to a frame."""
        return None if self.actions is None else self.actions[step]


# What embeds (R, n, width) and gives the last hidden state (R, width); it remembers what it was given.
Reader = Callable[[torch.Tensor], torch.Tensor]
# (R, L) ids so far, and (R, 3, S, S) the last frame: what a work has made after every step.
Outcome = tuple[torch.Tensor, torch.Tensor]
SEED = 0


def start(model: WorldModel, case: Case) -> Session:
    """A session at its beginning."""
    return model.start(case.context, case.samples, case.rule.top_k, case.rule.temperature, SEED)


def by_session(model: WorldModel, case: Case, passes: Counter[str]) -> Iterator[Outcome]:
    """Frame by frame; counts passes of the transformer, and how many ids there were to compare with the frame before."""
    session = start(model, case)
    for step in range(case.steps):
        frame = session.step(case.action(step)).frame
        yield session.ids, frame
    passes["passes"] += session.forward_passes
    frames = session.ids[:, model.id_layout.prefix_length - 1 :].unflatten(1, (case.steps, -1))[..., 1:]
    passes["drafted"] += frames[:, 1:].numel()
    passes["right"] += int((frames[:, 1:] == frames[:, :-1]).sum())


def by_rollout(model: WorldModel, case: Case) -> Iterator[Outcome]:
    """All frames at once."""
    session = start(model, case)
    results = session.rollout([case.action(step) for step in range(case.steps)])
    yield session.ids, results[-1].frame


def published_reader(model: WorldModel) -> Reader:
    """A new prefix, read by `transformers`."""
    llama, cache = model.network.llm.model, DynamicCache(config=model.network.config)
    return lambda embedded: llama(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]


def published_frame(model: WorldModel, ids: torch.Tensor) -> torch.Tensor:
    """The only future frame of (R, L) ids, the context decoded with it."""
    return model.tokenizer.detokenize(ids)[:, -1]


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


def own_frame(model: WorldModel, ids: torch.Tensor) -> torch.Tensor:
    """As `published_frame`, by the session's decoder."""
    dynamics = ids[:, None, 1 - model.id_layout.tokens_per_future_frame :]
    return model.frames.frames(dynamics, model.frames.context(ids))[:, 0]


@torch.no_grad()
def by_reencoding(
    model: WorldModel,
    case: Case,
    reader: Callable[[WorldModel], Reader],
    decode: Callable[[WorldModel, torch.Tensor], torch.Tensor],
) -> Iterator[Outcome]:
    """For every frame a new cache over the whole prefix, and the context decoded with it."""
    network, id_layout, samples = model.network, model.id_layout, case.samples
    ids = model.tokenizer.tokenize(case.context[None]).repeat(samples, 1)
    for step in range(case.steps):
        noise = torch.from_numpy(uniforms(SEED, samples, step, id_layout.tokens_per_future_frame)).to(ids.device)
        taken, forced = None, case.actions is not None or not step
        if case.actions is not None:
            lead = torch.zeros(samples, id_layout.context_length - 1, case.actions.shape[1], device=ids.device)
            taken = torch.cat([lead, case.actions[: step + 1].expand(samples, -1, -1)], dim=1)
        if forced:
            slot = torch.full((samples, 1), id_layout.start_of_future, device=ids.device)
            ids = torch.cat([ids, slot], dim=1)
        read = reader(model)
        embedded = network.embed(ids, taken)
        for number in range(int(forced), id_layout.tokens_per_future_frame):
            drawn = case.rule.sample(network.logits(read(embedded)), noise[:, number])[:, None]
            ids = torch.cat([ids, drawn], dim=1)
            embedded = network.llm.model.embed_tokens(drawn)
        frame = decode(
            model, torch.cat([ids[:, : id_layout.prefix_length - 1], ids[:, -id_layout.tokens_per_future_frame :]], dim=1)
        )
        yield ids, frame.clamp(0, 1)


@torch.no_grad()
def bare_parts(model: WorldModel, case: Case) -> Iterator[Outcome]:
    """What does the arithmetic of so many steps without drafts, and nothing else; ids and frames mean nothing."""
    network, id_layout, decoder, samples = model.network, model.id_layout, model.decoder, case.samples
    ids = model.tokenizer.tokenize(case.context[None])
    cache = decoder.copied(decoder.prefill(network.llm.model.embed_tokens(ids)), samples)
    embedded = network.llm.model.embed_tokens(ids[:, :1]).expand(samples, -1, -1)
    features = model.frames.context(ids.expand(samples, -1))
    frame_ids = torch.full((samples, 1, id_layout.tokens_per_future_frame - 1), id_layout.num_vq_embeddings, device=ids.device)
    end = ids.shape[1]
    for _ in range(case.steps):
        for _ in range(id_layout.tokens_per_future_frame - 1):
            place = torch.full((samples, 1), end, device=ids.device)
            end += 1
            decoder.logits(decoder.step(embedded, place, cache, end))
        yield ids, model.frames.frames(frame_ids, features)[:, 0]


def in_turn(works: dict[str, Iterator[Outcome]], device: str) -> tuple[dict[str, Outcome], dict[str, list[float]]]:
    """Advance all works by a frame each until they end.

    Returns:
        What each yielded last; and of each the seconds that count on the device and those of the wall, its start included.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    outcomes: dict[str, Outcome] = {}
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


def random_case(options: argparse.Namespace, rule: SamplingRule) -> Case:
    """A clip of noise."""
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2, 3, 64, 64, generator=generator).to(options.device)
    actions = torch.randn(options.steps, ACTION_DIM, generator=generator).to(options.device)
    return Case(context, actions, options.steps, options.samples, rule)


def episode_cases(model: WorldModel, options: argparse.Namespace, rule: SamplingRule) -> list[Case]:
    """The first episodes of a split from their beginning, as many steps as asked for or as episode and positions allow."""
    names = [name for name in storage.list_files(options.shards) if name.endswith(".tar")]
    names = [name for name in names if (parse_shard_name(name) or ("", 0))[0] == options.split]
    episodes = itertools.chain.from_iterable(open_episodes(storage.join(options.shards, name)) for name in names)
    context, cases = model.id_layout.context_length, []
    for episode in itertools.islice(episodes, options.episodes):
        steps = min(options.steps, model.max_steps, (episode.num_frames - 1) // options.stride + 1 - context)
        clip = cut_clip(episode, model, clips_for(model, ClipsConfig(stride=str(options.stride)), steps), start=0)
        actions = None if clip.action is None else clip.action[context - 1 : -1].to(options.device)
        cases.append(Case(clip.frames[:context].to(options.device), actions, steps, options.samples, rule))
    if not cases:
        raise SystemExit(f"{options.shards} holds no shard of the split {options.split}")
    return cases


def measure(model: WorldModel, cases: list[Case], device: str) -> dict[str, object]:
    """Run all cases in all ways; what the JSON says of them."""
    counts: Counter[str] = Counter()
    spent = defaultdict[str, float](float)
    wall = defaultdict[str, float](float)
    equal, apart = [], 0.0

    def works(case: Case) -> dict[str, Iterator[Outcome]]:
        chosen = {
            "session": by_session(model, case, counts),
            "rollout": by_rollout(model, case),
            "published": by_reencoding(model, case, published_reader, published_frame),
            "own": by_reencoding(model, case, OwnReader, own_frame),
            "bare": bare_parts(model, case),
        }
        return chosen | (
            {"single": by_session(model, dataclasses.replace(case, samples=1), Counter())} if case.samples > 1 else {}
        )

    in_turn(works(cases[0].first(2)), device)  # first calls allocate and choose kernels
    counts.clear()
    for case in cases:
        outcomes, seconds = in_turn(works(case), device)
        for name, (counted, passed) in seconds.items():
            spent[name] += counted
            wall[name] += passed
        (ids, frame), (wanted_ids, wanted_frame) = outcomes["session"], outcomes["published"]
        equal.append((ids == wanted_ids).double().mean().item())
        if torch.equal(ids, wanted_ids):
            apart = max(apart, (frame - wanted_frame).abs().max().item())
    steps = sum(case.steps for case in cases)
    frames, singles = steps * cases[0].samples, spent["single"] or spent["session"]
    return {
        "frames": frames,
        "measured_frames_per_second": round(frames / spent["session"], 2),
        "milliseconds_per_step": round(1000 * spent["session"] / steps, 1),
        "rollout_frames_per_second": round(frames / spent["rollout"], 2),
        "one_sample_frames_per_second": round(steps / singles, 2),
        "reencoding_frames_per_second": round(frames / spent["published"], 2),
        "speedup_over_reencoding": round(spent["published"] / spent["session"], 2),
        "speedup_over_reencoding_by_wall": round(wall["published"] / wall["session"], 2),
        "speedup_of_rollout_over_reencoding": round(spent["published"] / spent["rollout"], 2),
        "speedup_over_reencoding_by_the_same_parts": round(spent["own"] / spent["session"], 2),
        "passes_per_step": round(counts["passes"] / steps, 2),
        "accepted_drafts": round(counts["right"] / max(counts["drafted"], 1), 3),
        "equal_ids": round(sum(equal) / len(equal), 6),
        "largest_difference_of_equal_frames": float(f"{apart:.1e}"),
        "ceiling_frames_per_second": round(frames / spent["bare"], 2),
        "ratio": round(spent["bare"] / spent["session"], 3),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="of a model with random weights")
    parser.add_argument("--model", help="folder of a trained model")
    parser.add_argument("--shards", help="a data set's folder of episode shards, for --model")
    parser.add_argument("--split", default="test", help="of the shards")
    parser.add_argument("--episodes", type=int, default=4, help="so many of them, the first ones")
    parser.add_argument("--stride", type=int, default=1, help="frames of an episode from one frame to the next")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="compile the transformer's steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if bool(options.model) != bool(options.shards):
        parser.error("--model and --shards go together")
    rule = SamplingRule(options.top_k, options.temperature)
    if options.model:
        model = WorldModel.from_pretrained(options.model, options.device, options.compile)
        cases = episode_cases(model, options, rule)
    else:
        model = build(options.size, options.device, options.compile)
        cases = [random_case(options, rule)]
    told = {
        "benchmark": "session",
        "weights": "trained" if options.model else f"random, {options.size}",
        "device": options.device,
        "compiled": options.compile,
        "threads": torch.get_num_threads(),
        "clock": "wall" if options.device == "cuda" else "cpu",
        "clips": len(cases),
        "steps": cases[0].steps,
        "samples": options.samples,
        "temperature": options.temperature,
    }
    outcome = measure(model, cases, options.device)
    print(json.dumps(told | outcome))
    return int(options.temperature == 0 and outcome["equal_ids"] != 1.0)


if __name__ == "__main__":
    sys.exit(main())
