"""Interactive prediction: a world model that is stepped frame by frame.

One key-value cache lives as long as the session, the context is prefilled once for all samples and decoded once, so a frame
costs its own ids, where re-encoding the prefix costs hundreds. A frame's last id enters the cache together with the start of
the next one, and ids that the frame before already had are checked many at a time (see `drafting`). Where positions run out
the session starts anew on the last frames it predicted: it can go on for ever, at the price of forgetting what is older.

As in the published code, a model with actions has the start of every future frame forced, since the action rides on it; a
model without samples it like any other id.
"""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from pipeline.common.errors import ConfigError
from tokenize_offline.token_layout import IdLayout
from tokenize_offline.tokenizer import CompressiveVQModel
from training.inference import speculative_decoding
from training.inference.devices import usable_device
from training.inference.frame_decoder import FrameDecoder
from training.inference.incremental_llama import IncrementalLlama
from training.inference.kv_cache import KeyValueCache
from training.inference.sampling import SamplingRule, uniforms
from training.inference.session_inputs import Action, Frames, checked_action, checked_context
from training.model.files.locate import TOKENIZER, TRANSFORMER, locate_model
from training.model.world_model import WorldModelNetwork, load_transformer

_LONGEST = max(speculative_decoding.BLOCK_LENGTHS)
_FRAMES_AT_ONCE = 32  # decoded together, which bounds the memory for maps


class StepResult(NamedTuple):
    """One predicted frame a sample. Rows are samples; with several clips, all samples of the first clip come first.

    Attributes:
        frame: (R, 3, S, S) fp32 in [0, 1].
        reward: (R,) fp32, of the action that led to the frame; None for a model without a reward head.
    """

    frame: torch.Tensor
    reward: torch.Tensor | None


class WorldModel:
    """A tokenizer and a transformer that belong together.

    Attributes:
        tokenizer: Frames to ids and back.
        network: Ids to the next ids. It stays where it is and what it is: sessions share its weights.
        decoder: The same network's Llama, a few ids at a time.
        frames: The tokenizer's decoders, a few frames at a time.
    """

    def __init__(self, tokenizer: CompressiveVQModel, network: WorldModelNetwork, compile: bool = False) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.network = network.eval().requires_grad_(False)
        self.decoder = IncrementalLlama(network.llm, _spare_positions(tokenizer.id_layout), compile)
        self.frames = FrameDecoder(tokenizer)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None, compile: bool = False) -> Self:
        """Open a model folder.

        Args:
            path: A folder (or URL) that holds `tokenizer/` and `transformer/`, the folder of a run that trained such a model,
                or an id on the Hugging Face hub.
            device: Where it runs, such as `cpu` or `cuda:1`; None takes the GPU where there is one.
            compile: Whether the transformer's steps are compiled, on a GPU to CUDA graphs. It takes a minute at first and
                pays where many frames are predicted on a GPU.

        Raises:
            SourceError: Files are missing, damaged, hold other parameters than their configuration, or what is no number.
            ConfigError: Tokenizer and transformer don't belong together, or there is no such device.
        """
        target = usable_device(device)
        folder = locate_model(str(path))
        tokenizer = CompressiveVQModel.from_pretrained(str(folder / TOKENIZER))
        network = load_transformer(folder / TRANSFORMER, tokenizer.id_layout)
        return cls(tokenizer.to(target), network.to(target), compile)

    @property
    def id_layout(self) -> IdLayout:
        """Where ids stand in this model's sequences."""
        return self.tokenizer.id_layout

    @property
    def action_dim(self) -> int:
        """Columns of an action; 0 for a model without actions."""
        return self.network.action_dim

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.network.llm.lm_head.weight.device

    @property
    def max_steps(self) -> int:
        """Future frames that fit into the positions before the context slides."""
        room = self.network.config.max_position_embeddings - self.id_layout.prefix_length + 1
        return room // self.id_layout.tokens_per_future_frame

    def start(
        self,
        context_frames: Frames,
        samples: int = 1,
        top_k: int | None = 100,
        temperature: float = 1.0,
        seed: int | None = None,
        first_sample: int = 0,
    ) -> "Session":
        """Begin to predict.

        Args:
            context_frames: (t, 3, S, S), or (B, t, 3, S, S) for several clips at once, in [0, 1] (or bytes in 0 to 255), at
                the tokenizer's resolution and with its number of context frames.
            samples: Futures drawn per clip.
            top_k: Only the k likeliest ids are drawn; None or 0 allows all.
            temperature: Of sampling; 0 is greedy.
            seed: Sample s of a clip is the same whatever else is in the batch; None draws a seed.
            first_sample: Number of the first sample, where many are drawn in several sessions.

        Raises:
            ConfigError: The frames' shape or values, or a sampling number, can't be.
        """
        side, context = self.tokenizer.config.resolution, self.id_layout.context_length
        frames = checked_context(context_frames, context, side, self.device)
        if samples < 1:
            raise ConfigError(f"samples must be at least 1, not {samples}")
        rule = SamplingRule(top_k, temperature)
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        return Session(self, self.tokenizer.tokenize(frames), frames, samples, rule, seed, first_sample)

    def start_from_ids(self, ids: torch.Tensor, top_k: int | None = 100, temperature: float = 1.0, seed: int = 0) -> "Session":
        """Begin to predict from clips that are tokenized already, one future of each.

        Args:
            ids: (B, 257 t - 1 or more) int64; what follows the context's ids is not looked at.
            top_k: See `start`, as for the other arguments.
            temperature: See `start`.
            seed: See `start`.

        Raises:
            ConfigError: A sampling number can't be.
            ValueError: Fewer ids than the context takes, or a context id that is no code.
        """
        context = ids[:, : self.id_layout.prefix_length - 1].to(self.device)
        frames, _ = self.tokenizer.decode_context(context)
        return Session(self, context, frames.clamp(0, 1), 1, SamplingRule(top_k, temperature), seed)


class Session:
    """Predicts one frame a step for all its rows. Made by `WorldModel.start`.

    Attributes:
        seed: Of the sampling noise.
        steps: Frames predicted so far.
        passes: Passes of the transformer that they took, those over contexts not counted.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: WorldModel,
        ids: torch.Tensor,
        frames: torch.Tensor,
        samples: int,
        rule: SamplingRule,
        seed: int,
        first_sample: int = 0,
    ) -> None:
        self.seed = seed
        self.steps = self.passes = 0
        self._model = model
        self._rule = rule
        self._samples, self._first_sample = samples, first_sample
        self._recent = frames.repeat_interleave(samples, dim=0)
        self._undecoded: list[torch.Tensor] = []
        self._begin(ids, copies=samples)

    @property
    def ids(self) -> torch.Tensor:
        """(R, 257 t - 1 + 17 n) int64: the ids of the context and of the n frames predicted since, as `detokenize` takes them.

        After the context has slid, the context is that of the last slide.
        """
        return torch.cat(self._ids, dim=1)

    @torch.no_grad()
    def step(self, action: Action | None = None) -> StepResult:
        """Predict the next frame of every row.

        Args:
            action: The action that leads to the frame, (A,) for all rows or (R, A). A model with actions needs it, one
                without takes none.

        Raises:
            ConfigError: An action is missing, of another dimension or not finite, or given to a model without actions.
        """
        reward = self._predict(action)
        return StepResult(self._decoded()[:, -1], reward)

    @torch.no_grad()
    def rollout(self, actions: Iterable[Action | None]) -> list[StepResult]:
        """What `step` gives for every entry of `actions`; `[None] * n` for n frames of a model without actions.

        Frames are decoded many at a time at the end: a small model's are quicker than one by one, and differ by rounding alone.
        """
        rewards, frames = [], []
        for action in actions:
            if self._is_full:
                frames.append(self._decoded())
            rewards.append(self._predict(action))
        frames.append(self._decoded())
        decoded = torch.cat(frames, dim=1)[:, -len(rewards) :].unbind(dim=1)
        return [StepResult(frame, reward) for frame, reward in zip(decoded, rewards, strict=True)] if rewards else []

    def fork(self, seed: int | None = None) -> Self:
        """A session of its own that stands where this one stands; neither sees the other's steps.

        Args:
            seed: New noise for the fork. None keeps this session's, so that two futures differ by their actions alone.
        """
        other = copy.copy(self)  # all that is shared after this is never written to
        other._ids, other._undecoded = list(self._ids), list(self._undecoded)
        other._cache = self._model.decoder.copied(self._cache)
        other.seed = self.seed if seed is None else seed
        return other

    @property
    def _is_full(self) -> bool:
        """Whether no further frame fits into the positions."""
        positions = self._model.network.config.max_position_embeddings
        return self._position + 1 + self._model.id_layout.tokens_per_future_frame > positions

    def _predict(self, action: Action | None) -> torch.Tensor | None:
        """Draw the next frame's ids, which `_decoded` decodes later; gives the reward. See `step`."""
        offset, network = self._action_offset(action), self._model.network
        if self._is_full:
            self._decoded()
            self._begin(self._model.tokenizer.tokenize(self._recent), copies=1)
        frame_ids, hidden = self._draw_frame(offset)
        self._ids.append(frame_ids)
        self._undecoded.append(frame_ids)
        self.steps += 1
        return network.reward_linear(hidden).squeeze(-1).float() if network.has_reward else None

    def _decoded(self) -> torch.Tensor:
        """(R, n, 3, S, S): the n frames whose ids were drawn since the last call."""
        frames = [self._recent[:, :0]]
        if self._undecoded:
            ids = torch.stack(self._undecoded, dim=1)[..., 1:]
            parts = ids.split(max(1, _FRAMES_AT_ONCE // len(ids)), dim=1)
            frames += [self._model.frames.frames(part, self._features).clamp(0, 1) for part in parts]
        self._undecoded = []
        decoded = torch.cat(frames, dim=1)
        self._recent = torch.cat([self._recent, decoded], dim=1)[:, -self._model.id_layout.context_length :]
        return decoded

    def _begin(self, ids: torch.Tensor, copies: int) -> None:
        """Prefill the context's ids (B, 257 t - 1), every row once, and copy the outcome for its samples."""
        network, decoder = self._model.network, self._model.decoder
        prefix = decoder.prefill(network.llm.model.embed_tokens(ids[:, :-1]))
        self._cache: KeyValueCache = decoder.copied(prefix, copies)
        # Of the last id of `_ids`, which is not in the cache yet: it is fed together with the next frame's start.
        self._position = ids.shape[1] - 1
        self._agreement = speculative_decoding.UNKNOWN_AGREEMENT
        self._features = tuple(feature.repeat_interleave(copies, dim=0) for feature in self._model.frames.context(ids))
        self._ids = [ids.repeat_interleave(copies, dim=0)]

    def _draw_frame(self, offset: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The next frame's ids (R, 17), and the hidden states (R, width) after its last id, which only rewards need.

        Rows advance apart: each as far as its draft was right.
        """
        id_layout, network, decoder = self._model.id_layout, self._model.network, self._model.decoder
        rows, count, device = len(self._recent), id_layout.tokens_per_future_frame, self._model.device
        noise = torch.from_numpy(self._noise()).to(device)
        drafted = len(self._ids) > 1
        # The id before the frame and the frame's own, drafted at first; what stands beyond is fed but never looked at.
        ids = torch.full((rows, 2 + count + _LONGEST), id_layout.start_of_future, device=device)
        ids[:, 0] = self._ids[-1][:, -1]
        if drafted:
            ids[:, 2 : 1 + count] = self._ids[-1][:, 1:]
        # As in the published code, the first start follows the context whatever the model says.
        forced = offset is not None or not drafted
        agreement = self._agreement if drafted else 0.0
        fed = torch.zeros(rows, dtype=torch.int64, device=device)  # ids of a row in the cache, all of them right
        wanted = count + network.has_reward
        hidden = torch.empty(rows, network.config.hidden_size, device=device, dtype=network.llm.lm_head.weight.dtype)
        behind = 0
        while behind < wanted:
            length = speculative_decoding.block_length(agreement, rows, wanted - behind, device.type == "cpu")
            length = max(length, 2) if forced and behind == 0 else length
            places = fed[:, None] + torch.arange(length, device=device)
            block = ids.gather(1, places)
            embedded = network.llm.model.embed_tokens(block)
            if offset is not None:
                embedded = embedded + (places == 1)[..., None] * offset.view(-1, 1, embedded.shape[-1])
            self.passes += 1
            after = decoder.step(embedded, self._position + places, self._cache, self._position + ids.shape[1])
            drawn = self._rule.draw(
                decoder.logits(after).flatten(0, 1), noise.gather(1, places.clamp(max=count - 1)).flatten()
            ).view_as(block)
            if forced:
                drawn = drawn.where(places != 0, id_layout.start_of_future)
            right = speculative_decoding.accepted(drawn, block)[:, None]
            ids.scatter_(1, fed[:, None] + right, drawn.gather(1, right - 1))
            last = (places == count) & (torch.arange(length, device=device) < right)
            hidden = torch.where(last.any(dim=1, keepdim=True), (after * last[..., None]).sum(dim=1), hidden)
            fed = (fed + right[:, 0]).clamp(max=wanted)
            behind = int(fed.min())
        frame_ids = ids[:, 1 : 1 + count].clone()
        if drafted:
            self._agreement = (frame_ids == self._ids[-1])[:, 1:].double().mean().item()
        self._position += count
        return frame_ids, hidden

    def _noise(self) -> np.ndarray:
        """(R, 17) uniform numbers for the ids of the next frame."""
        count = self._model.id_layout.tokens_per_future_frame
        drawn = uniforms(self.seed, self._samples, self.steps, count, self._first_sample)
        return np.tile(drawn, (len(self._recent) // self._samples, 1))

    def _action_offset(self, action: Action | None) -> torch.Tensor | None:
        network = self._model.network
        taken = checked_action(action, network.action_dim, len(self._recent), self._model.device)
        return None if taken is None else network.embed_action(taken)


def _spare_positions(id_layout: IdLayout) -> int:
    """Positions that a pass may touch beyond the last that counts, since all rows are fed blocks of one length."""
    return id_layout.tokens_per_future_frame + 2 + _LONGEST
