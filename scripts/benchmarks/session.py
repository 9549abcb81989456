"""Measures how fast a session predicts, against re-encoding and against an upper bound; the last line is one JSON object.

Alternating frame by frame in one process, so that other load affects all alike: the session (one cache, one prefill, context
decoded once); the same sampling with the whole prefix encoded and the context decoded again for every frame, by `transformers`
(as the published code does with actions) and by the session's own transformer and decoder; the session with one sample; and as
the ceiling the bare parts of a step: transformer passes and one decoded frame. A rollout, which decodes its frames at the end,
is measured as a whole.

Without `--model`, weights are random and ids are sampled at temperature 1, so that speculative decoding never helps: the
smallest gain of a session. With `--model` and `--shards`, a trained model predicts real episodes. Then ids must equal those of
the published way; if greedy ids differ, the exit status is 1.

On a CPU, times are CPU times of the process, with wall times in addition; set OMP_NUM_THREADS=1, because the CPU time of all
threads is added up.
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
    """Create a world model of a given size with random weights."""
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
    """A clip to predict: context (t, 3, S, S), then n steps with actions (n, A) or without."""

    context: torch.Tensor
    actions: torch.Tensor | None
    steps: int
    samples: int
    rule: SamplingRule

    def first(self, steps: int) -> "Case":
        """The case with only its first steps."""
        return dataclasses.replace(self, steps=steps)

    def action(self, step: int) -> torch.Tensor | None:
        """The action that leads to a frame."""
        return None if self.actions is None else self.actions[step]


# A function from embeddings (R, n, width) to the last hidden state (R, width). It caches earlier embeddings.
Reader = Callable[[torch.Tensor], torch.Tensor]
# The result of a step: all ids so far (R, L), and the last frame (R, 3, S, S).
Outcome = tuple[torch.Tensor, torch.Tensor]
SEED = 0


def start(model: WorldModel, case: Case) -> Session:
    """Start a session."""
    return model.start(case.context, case.samples, case.rule.top_k, case.rule.temperature, SEED)


def by_session(model: WorldModel, case: Case, passes: Counter[str]) -> Iterator[Outcome]:
    """Predict frame by frame; counts transformer passes and the ids that could be compared with the previous frame."""
    session = start(model, case)
    for step in range(case.steps):
        frame = session.step(case.action(step)).frame
        yield session.ids, frame
    passes["passes"] += session.forward_passes
    frames = session.ids[:, model.id_layout.prefix_length - 1 :].unflatten(1, (case.steps, -1))[..., 1:]
    passes["drafted"] += frames[:, 1:].numel()
    passes["right"] += int((frames[:, 1:] == frames[:, :-1]).sum())


def by_rollout(model: WorldModel, case: Case) -> Iterator[Outcome]:
    """Predict all frames in one rollout."""
    session = start(model, case)
    results = session.rollout([case.action(step) for step in range(case.steps)])
    yield session.ids, results[-1].frame


def published_reader(model: WorldModel) -> Reader:
    """Encode a new prefix with `transformers`."""
    llama, cache = model.network.llm.model, DynamicCache(config=model.network.config)
    return lambda embedded: llama(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]


def published_frame(model: WorldModel, ids: torch.Tensor) -> torch.Tensor:
    """Decode the only future frame of ids (R, L), together with the context."""
    return model.tokenizer.detokenize(ids)[:, -1]


class OwnReader:
    """Encode a new prefix with the session's transformer."""

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
    """Like `published_frame`, with the session's decoder."""
    dynamics = ids[:, None, 1 - model.id_layout.tokens_per_future_frame :]
    return model.frames.frames(dynamics, model.frames.context(ids))[:, 0]


@torch.no_grad()
def by_reencoding(
    model: WorldModel,
    case: Case,
    reader: Callable[[WorldModel], Reader],
    decode: Callable[[WorldModel, torch.Tensor], torch.Tensor],
) -> Iterator[Outcome]:
    """Predict every frame with a new cache over the whole prefix, and decode the context again."""
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
    """Do only the arithmetic of the steps without speculative decoding; ids and frames are meaningless."""
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
    """Advance all works in turn, one frame at a time, until they end.

    Returns:
        The last outcome of each work, and its seconds: device or CPU time, and wall time, including its start.
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
    """The first episodes of a split, with the given number of steps or as many as episode and positions allow."""
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
    """Run all cases in all variants; returns the JSON result."""
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

    in_turn(works(cases[0].first(2)), device)  # the first calls allocate and choose kernels
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
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="Size of a model with random weights.")
    parser.add_argument("--model", help="Folder of a trained model.")
    parser.add_argument("--shards", help="Folder of episode shards, with --model.")
    parser.add_argument("--split", default="test", help="Split of the shards.")
    parser.add_argument("--episodes", type=int, default=4, help="Number of episodes.")
    parser.add_argument("--stride", type=int, default=1, help="Episode frames per step.")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="Sampling temperature; 0 = greedy.")
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="Compile the transformer's steps.")
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
