"""Interactive prediction: a world model that is stepped frame by frame.

One key-value cache lives as long as the session, the context is prefilled once for all samples and decoded once, so a frame
costs its own 17 ids, where re-encoding the prefix costs hundreds. Where positions run out the session starts anew on the
last frames it predicted: it can go on for ever, at the price of forgetting what is older.

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

from pipeline.errors import ConfigError
from tokenize_offline.geometry import IdGeometry
from tokenize_offline.tokenizer import CompressiveVQModel
from training import kv_cache
from training.model_folder import TOKENIZER, TRANSFORMER, locate_model
from training.sampling import SamplingRule, uniforms
from training.world_model import WorldModelNetwork, load_transformer

Action = torch.Tensor | np.ndarray | list[float]


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
        network: Ids to the next ids.
    """

    def __init__(self, tokenizer: CompressiveVQModel, network: WorldModelNetwork) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | None = None) -> Self:
        """Open a model folder.

        Args:
            path: A folder (or URL) that holds `tokenizer/` and `transformer/`, or an id on the Hugging Face hub.
            device: Where it runs; None takes the GPU where there is one.

        Raises:
            SourceError: Files are missing, damaged, or hold other parameters than their configuration.
            ConfigError: Tokenizer and transformer don't belong together.
        """
        folder = locate_model(str(path))
        tokenizer = CompressiveVQModel.from_pretrained(str(folder / TOKENIZER))
        network = load_transformer(folder / TRANSFORMER, tokenizer.geometry)
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(tokenizer.to(target), network.to(target))

    @property
    def geometry(self) -> IdGeometry:
        """Where ids stand in this model's sequences."""
        return self.tokenizer.geometry

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
        room = self.network.config.max_position_embeddings - self.geometry.prefix_length + 1
        return room // self.geometry.future_ids

    def start(
        self,
        context_frames: torch.Tensor,
        samples: int = 1,
        top_k: int | None = 100,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> "Session":
        """Begin to predict.

        Args:
            context_frames: (t, 3, S, S), or (B, t, 3, S, S) for several clips at once, in [0, 1], at the tokenizer's
                resolution and with its number of context frames.
            samples: Futures drawn per clip.
            top_k: Only the k likeliest ids are drawn; None allows all.
            temperature: Of sampling; 0 is greedy.
            seed: Sample s of a clip is the same whatever else is in the batch; None draws a seed.

        Raises:
            ConfigError: The frames' shape, or a sampling number, can't be.
        """
        side, context = self.tokenizer.config.resolution, self.geometry.context_length
        if context_frames.ndim not in (4, 5) or context_frames.shape[-4:] != (context, 3, side, side):
            raise ConfigError(
                f"context frames have shape {tuple(context_frames.shape)}; "
                f"this model starts from ({context}, 3, {side}, {side}) in [0, 1]"
            )
        if samples < 1:
            raise ConfigError(f"samples must be at least 1, not {samples}")
        rule = SamplingRule(top_k, temperature)
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        frames = context_frames.to(self.device, torch.float32)
        frames = frames if frames.ndim == 5 else frames[None]
        return Session(self, self.tokenizer.tokenize(frames), frames, samples, rule, seed)

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
        context = ids[:, : self.geometry.prefix_length - 1].to(self.device)
        frames, _ = self.tokenizer.decode_context(context)
        return Session(self, context, frames.clamp(0, 1), 1, SamplingRule(top_k, temperature), seed)


class Session:
    """Predicts one frame a step for all its rows. Made by `WorldModel.start`.

    Attributes:
        seed: Of the sampling noise.
        steps: Frames predicted so far.
    """

    @torch.no_grad()
    def __init__(
        self, model: WorldModel, ids: torch.Tensor, frames: torch.Tensor, samples: int, rule: SamplingRule, seed: int
    ) -> None:
        self.seed = seed
        self.steps = 0
        self._model = model
        self._rule = rule
        self._samples = samples
        # After the last id; None where none is fed yet, since the first start of a future frame is always forced.
        self._hidden: torch.Tensor | None = None
        self._recent = frames.repeat_interleave(samples, dim=0)
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
            ConfigError: An action is missing, of another dimension, or given to a model without actions.
        """
        geometry, network, rows = self._model.geometry, self._model.network, len(self._recent)
        offset = self._action_offset(action)
        if self._cache.get_seq_length() + geometry.future_ids > network.config.max_position_embeddings:
            self._begin(self._model.tokenizer.tokenize(self._recent), copies=1)
        noise = np.tile(uniforms(self.seed, self._samples, self.steps, geometry.future_ids), (rows // self._samples, 1))
        columns = torch.from_numpy(noise).to(self._model.device).unbind(dim=1)
        if self._hidden is None or offset is not None:
            drawn = [torch.full((rows,), geometry.start_of_future, device=self._model.device)]
        else:
            drawn = [self._rule.draw(network.logits(self._hidden), columns[0])]
        hidden = self._feed(drawn[0], offset)
        for column in columns[1:]:
            drawn.append(self._rule.draw(network.logits(hidden), column))
            hidden = self._feed(drawn[-1])
        self._hidden = hidden
        frame_ids = torch.stack(drawn, dim=1)
        self._ids.append(frame_ids)
        self.steps += 1
        frame = self._model.tokenizer.decode_future(frame_ids[:, None, 1:], self._features).clamp(0, 1)
        self._recent = torch.cat([self._recent, frame], dim=1)[:, 1:]
        reward = network.reward_linear(hidden).squeeze(-1).float() if network.has_reward else None
        return StepResult(frame[:, 0], reward)

    def rollout(self, actions: Iterable[Action | None]) -> list[StepResult]:
        """One `step` for every entry of `actions`; `[None] * n` for n frames of a model without actions."""
        return [self.step(action) for action in actions]

    def fork(self, seed: int | None = None) -> Self:
        """A session of its own that stands where this one stands; neither sees the other's steps.

        Args:
            seed: New noise for the fork. None keeps this session's, so that two futures differ by their actions alone.
        """
        other = copy.copy(self)  # all that is shared after this is never written to
        other._ids = list(self._ids)
        other._cache = kv_cache.buffered(self._cache, self._model.network.config.max_position_embeddings)
        other.seed = self.seed if seed is None else seed
        return other

    def _begin(self, ids: torch.Tensor, copies: int) -> None:
        """Prefill the context's ids (B, 257 t - 1), every row once, and copy the outcome for its samples."""
        network, tokenizer = self._model.network, self._model.tokenizer
        prefix = kv_cache.empty(network.config)
        network.llm.model(inputs_embeds=network.llm.model.embed_tokens(ids), past_key_values=prefix, use_cache=True)
        self._cache = kv_cache.buffered(prefix, network.config.max_position_embeddings, copies)
        _, features = tokenizer.decode_context(ids)
        self._features = tuple(feature.repeat_interleave(copies, dim=0) for feature in features)
        self._ids = [ids.repeat_interleave(copies, dim=0)]
        self._hidden = None

    def _feed(self, ids: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Append one id a row, with `offset` (R or 1, width) on its embedding; returns the hidden state (R, width) after it."""
        llama = self._model.network.llm.model
        embedded = llama.embed_tokens(ids)
        if offset is not None:
            embedded = embedded + offset
        return llama(inputs_embeds=embedded[:, None], past_key_values=self._cache, use_cache=True).last_hidden_state[:, 0]

    def _action_offset(self, action: Action | None) -> torch.Tensor | None:
        network, rows = self._model.network, len(self._recent)
        if not network.action_dim:
            if action is not None:
                raise ConfigError("this model was trained without actions: call step() without one")
            return None
        if action is None:
            raise ConfigError(f"this model is conditioned on actions: call step(action) with ({network.action_dim},) numbers")
        taken = torch.as_tensor(action, dtype=torch.float32, device=self._model.device)
        if tuple(taken.shape) not in {(network.action_dim,), (rows, network.action_dim)}:
            raise ConfigError(
                f"an action has shape {tuple(taken.shape)}; this model takes ({network.action_dim},) for all rows, "
                f"or ({rows}, {network.action_dim})"
            )
        return network.embed_action(taken)
