"""Interactive prediction: a session steps a world model frame by frame.

A session has one key-value cache, and prefills and decodes the context once for all samples. So a frame costs only its own ids,
not hundreds of ids of the prefix. The last id of a frame enters the cache together with the first id of the next frame. Ids
that equal those of the frame before are checked many at a time (see `speculative_decoding`). When the positions are used up,
the session starts again from the last frames it predicted: it can run forever, but forgets older frames.

As in the published code, a model with actions does not sample the first id of a future frame, because the action is added to
that id's embedding. A model without actions samples it like any other id.
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
_FRAMES_AT_ONCE = 32  # frames decoded together; bounds the memory for feature maps


class StepResult(NamedTuple):
    """One predicted frame per sample. Rows are samples; with several clips, all samples of the first clip come first.

    Attributes:
        frame: (R, 3, S, S) fp32 in [0, 1].
        reward: (R,) fp32 reward of the action that led to the frame; None for a model without a reward head.
    """

    frame: torch.Tensor
    reward: torch.Tensor | None


class WorldModel:
    """A tokenizer and the transformer trained on its ids.

    Attributes:
        tokenizer: Turns frames into ids and ids into frames.
        network: Predicts the next id. All sessions share its weights; do not move or change it.
        decoder: Runs the network's Llama a few ids at a time.
        frames: Runs the tokenizer's decoders a few frames at a time.
    """

    def __init__(self, tokenizer: CompressiveVQModel, network: WorldModelNetwork, compile: bool = False) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.network = network.eval().requires_grad_(False)
        self.decoder = IncrementalLlama(network.llm, _spare_positions(tokenizer.id_layout), compile)
        self.frames = FrameDecoder(tokenizer)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None, compile: bool = False) -> Self:
        """Opens a model folder.

        Args:
            path: Folder or URL with `tokenizer/` and `transformer/`, folder of a training run, or id on the Hugging Face hub.
            device: Device such as `cpu` or `cuda:1`; None means the GPU if there is one.
            compile: Compile the steps of the transformer, to CUDA graphs on a GPU. Compiling takes a minute; it is worth it
                for many frames on a GPU.

        Raises:
            SourceError: Files are missing or damaged, contain NaN, or do not match their configuration.
            ConfigError: Tokenizer and transformer do not match, or the device is not available.
        """
        target = usable_device(device)
        folder = locate_model(str(path))
        tokenizer = CompressiveVQModel.from_pretrained(str(folder / TOKENIZER))
        network = load_transformer(folder / TRANSFORMER, tokenizer.id_layout)
        return cls(tokenizer.to(target), network.to(target), compile)

    @property
    def id_layout(self) -> IdLayout:
        """Positions of ids in the model's sequences."""
        return self.tokenizer.id_layout

    @property
    def action_dim(self) -> int:
        """Dimension of an action; 0 for a model without actions."""
        return self.network.action_dim

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.network.llm.lm_head.weight.device

    @property
    def max_steps(self) -> int:
        """Number of future frames that fit before the session must start again from its last frames."""
        positions = self.network.config.max_position_embeddings - self.id_layout.prefix_length + 1
        return positions // self.id_layout.tokens_per_future_frame

    def start(
        self,
        context_frames: Frames,
        samples: int = 1,
        top_k: int | None = 100,
        temperature: float = 1.0,
        seed: int | None = None,
        first_sample: int = 0,
    ) -> "Session":
        """Starts a session.

        Args:
            context_frames: (t, 3, S, S), or (B, t, 3, S, S) for several clips, in [0, 1] or uint8 in 0 to 255. t and S are the
                tokenizer's number of context frames and its resolution.
            samples: Number of futures per clip.
            top_k: Sample among the k most likely ids; None or 0 allows all.
            temperature: Sampling temperature; 0 = greedy.
            seed: Random seed; None chooses one. A sample does not depend on what else is in the batch.
            first_sample: Number of the first sample; for sampling one clip in several sessions.

        Raises:
            ConfigError: The frames or a sampling option are invalid.
        """
        side, context = self.tokenizer.config.resolution, self.id_layout.context_length
        frames = checked_context(context_frames, context, side, self.device)
        if samples < 1:
            raise ConfigError(f"samples must be at least 1, not {samples}")
        rule = SamplingRule(top_k, temperature)
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        return Session(self, self.tokenizer.tokenize(frames), frames, samples, rule, seed, first_sample)

    def start_from_ids(self, ids: torch.Tensor, top_k: int | None = 100, temperature: float = 1.0, seed: int = 0) -> "Session":
        """Starts a session from tokenized clips, with one future per clip.

        Args:
            ids: (B, 257 t - 1 or more) int64 for t context frames; ids after the context are ignored.
            top_k: Sample among the k most likely ids; None or 0 allows all.
            temperature: Sampling temperature; 0 = greedy.
            seed: Random seed.

        Raises:
            ConfigError: A sampling option is invalid.
            ValueError: There are fewer ids than the context needs, or a context id is not in the codebook.
        """
        context = ids[:, : self.id_layout.prefix_length - 1].to(self.device)
        frames, _ = self.tokenizer.decode_context(context)
        return Session(self, context, frames.clamp(0, 1), 1, SamplingRule(top_k, temperature), seed)


class Session:
    """Predicts one frame per step for all its rows. `WorldModel.start` makes it.

    Attributes:
        seed: Seed of the sampling noise.
        steps: Number of frames predicted so far.
        forward_passes: Number of transformer passes for these frames; prefills are not counted.
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
        self.steps = self.forward_passes = 0
        self._model = model
        self._rule = rule
        self._samples, self._first_sample = samples, first_sample
        self._recent = frames.repeat_interleave(samples, dim=0)
        self._undecoded: list[torch.Tensor] = []
        self._begin(ids, copies=samples)

    @property
    def ids(self) -> torch.Tensor:
        """Ids (R, 257 t - 1 + 17 n) int64 of the context and the n frames predicted from it, as `detokenize` takes them.

        After the session has started again from its last frames, these frames are the context.
        """
        return torch.cat(self._ids, dim=1)

    @torch.no_grad()
    def step(self, action: Action | None = None) -> StepResult:
        """Predicts the next frame of every row.

        Args:
            action: Action that leads to the frame, (A,) for all rows or (R, A); None for a model without actions.

        Raises:
            ConfigError: The action is missing, has another shape, is not finite, or the model has no actions.
        """
        reward = self._predict(action)
        return StepResult(self._decoded()[:, -1], reward)

    @torch.no_grad()
    def rollout(self, actions: Iterable[Action | None]) -> list[StepResult]:
        """Returns the result of `step` for each action; pass `[None] * n` for n frames of a model without actions.

        Frames are decoded together at the end. This is faster for small models; frames equal those of `step` up to rounding.
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
        """Returns an independent copy of the session in its present state.

        Args:
            seed: Seed of the copy's noise. None keeps this session's seed, so that futures differ only by their actions.
        """
        other = copy.copy(self)  # what both share from here on is never written to
        other._ids, other._undecoded = list(self._ids), list(self._undecoded)
        other._cache = self._model.decoder.copied(self._cache)
        other.seed = self.seed if seed is None else seed
        return other

    @property
    def _is_full(self) -> bool:
        """Whether no other frame fits into the positions."""
        positions = self._model.network.config.max_position_embeddings
        return self._position + 1 + self._model.id_layout.tokens_per_future_frame > positions

    def _predict(self, action: Action | None) -> torch.Tensor | None:
        """Samples the ids of the next frame, which `_decoded` decodes later; returns the reward."""
        offset, network = self._action_offset(action), self._model.network
        if self._is_full:
            self._decoded()
            self._begin(self._model.tokenizer.tokenize(self._recent), copies=1)
        frame_ids, hidden = self._sample_frame(offset)
        self._ids.append(frame_ids)
        self._undecoded.append(frame_ids)
        self.steps += 1
        return network.reward_linear(hidden).squeeze(-1).float() if network.has_reward else None

    def _decoded(self) -> torch.Tensor:
        """Returns the n frames (R, n, 3, S, S) whose ids were sampled since the last call."""
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
        """Prefills the ids of the context (B, 257 t - 1) and copies the result for each sample."""
        network, decoder = self._model.network, self._model.decoder
        prefix = decoder.prefill(network.llm.model.embed_tokens(ids[:, :-1]))
        self._cache: KeyValueCache = decoder.copied(prefix, copies)
        # Position of the last id of `_ids`. It is not in the cache yet: it enters together with the next frame's first id.
        self._position = ids.shape[1] - 1
        self._agreement = speculative_decoding.UNKNOWN_AGREEMENT
        self._features = tuple(feature.repeat_interleave(copies, dim=0) for feature in self._model.frames.context(ids))
        self._ids = [ids.repeat_interleave(copies, dim=0)]

    def _sample_frame(self, offset: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the next frame's ids (R, 17) and the hidden states (R, width) after its last id, which only rewards need.

        Rows advance independently, each as far as its proposal was right.
        """
        id_layout, network, decoder = self._model.id_layout, self._model.network, self._model.decoder
        rows, count, device = len(self._recent), id_layout.tokens_per_future_frame, self._model.device
        noise = torch.from_numpy(self._noise()).to(device)
        has_proposal = len(self._ids) > 1
        # The id before the frame, then the frame's ids, which start as proposals. Ids after them are fed but never used.
        ids = torch.full((rows, 2 + count + _LONGEST), id_layout.start_of_future, device=device)
        ids[:, 0] = self._ids[-1][:, -1]
        if has_proposal:
            ids[:, 2 : 1 + count] = self._ids[-1][:, 1:]
        # As in the published code, the first id of the first future frame is fixed.
        forced = offset is not None or not has_proposal
        agreement = self._agreement if has_proposal else 0.0
        fed = torch.zeros(rows, dtype=torch.int64, device=device)  # number of final ids of each row in the cache
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
            self.forward_passes += 1
            after = decoder.step(embedded, self._position + places, self._cache, self._position + ids.shape[1])
            sampled = self._rule.sample(
                decoder.logits(after).flatten(0, 1), noise.gather(1, places.clamp(max=count - 1)).flatten()
            ).view_as(block)
            if forced:
                sampled = sampled.where(places != 0, id_layout.start_of_future)
            right = speculative_decoding.accepted(sampled, block)[:, None]
            ids.scatter_(1, fed[:, None] + right, sampled.gather(1, right - 1))
            last = (places == count) & (torch.arange(length, device=device) < right)
            hidden = torch.where(last.any(dim=1, keepdim=True), (after * last[..., None]).sum(dim=1), hidden)
            fed = (fed + right[:, 0]).clamp(max=wanted)
            behind = int(fed.min())
        frame_ids = ids[:, 1 : 1 + count].clone()
        if has_proposal:
            self._agreement = (frame_ids == self._ids[-1])[:, 1:].double().mean().item()
        self._position += count
        return frame_ids, hidden

    def _noise(self) -> np.ndarray:
        """Returns (R, 17) uniform random numbers for the ids of the next frame."""
        count = self._model.id_layout.tokens_per_future_frame
        noise = uniforms(self.seed, self._samples, self.steps, count, self._first_sample)
        return np.tile(noise, (len(self._recent) // self._samples, 1))

    def _action_offset(self, action: Action | None) -> torch.Tensor | None:
        network = self._model.network
        checked = checked_action(action, network.action_dim, len(self._recent), self._model.device)
        return None if checked is None else network.embed_action(checked)


def _spare_positions(id_layout: IdLayout) -> int:
    """Returns the number of positions after the last valid one that a pass may write: all rows get blocks of one length."""
    return id_layout.tokens_per_future_frame + 2 + _LONGEST
