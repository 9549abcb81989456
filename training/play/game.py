"""The state behind the page: episodes to start from, and running sessions with unguessable names.

One step runs at a time, because steps share the processor. A session of a closed page stays in memory until newer sessions
replace it.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import torch

from pipeline.common.errors import ConfigError, SourceError
from pipeline.episodes.episode import Episode
from training.inference.session import Session, WorldModel
from training.play.controls import read_action, recorded_actions, sliders_for
from training.prediction.clip_prediction import Sampling, clips_for, decode_frames, stride_for
from training.prediction.start_options import Start as EpisodeStart
from training.visuals.gallery import sprite

log = logging.getLogger(__name__)
MAX_FUTURES = 4
_MAX_SESSIONS = 4
_MAX_NUMBER = 2**53  # largest exact whole number in JavaScript
_MAX_RECORDED = 200  # maximum number of recorded actions sent with a start


@dataclass(frozen=True)
class GameStart:
    """A page's request to start.

    Attributes:
        episode: Number of the episode.
        frame: First context frame.
        futures: Number of futures side by side.
        temperature: Sampling temperature.
        seed: Random seed of sampling.
    """

    episode: int = 0
    frame: int = 0
    futures: int = 1
    temperature: float = 1.0
    seed: int = 0

    @classmethod
    def read(cls, value: object) -> "GameStart":
        """Returns the request in parsed JSON.

        Raises:
            ConfigError: A key is unknown, or a value has the wrong type.
        """
        whole, real = (int,), (int, float)
        kinds = {"episode": whole, "frame": whole, "futures": whole, "seed": whole, "temperature": real}
        if not isinstance(value, dict) or value.keys() - kinds.keys():
            raise ConfigError(f"a start must be an object with keys of {', '.join(kinds)}")
        for name, entry in value.items():
            if isinstance(entry, bool) or not isinstance(entry, kinds[name]) or not abs(entry) < _MAX_NUMBER:
                raise ConfigError(f"{name} must be a {'whole ' if kinds[name] is whole else ''}number, not {entry!r}")
        return cls(**value)


class Started(TypedDict):
    """The answer to a start; see `Game.start`."""

    session: str
    frames: list[str]
    recorded: list[list[float]]
    sees: int


class Stepped(TypedDict):
    """The answer to a step; see `Game.step`."""

    step: int
    frames: list[str]
    rewards: list[float | None] | None
    seconds: float


class Game:
    """A model, its starts and its sessions; safe to use from several threads.

    Args:
        model: World model.
        starts: Episodes to start from; the stride of their clips sets the distance of context frames.
        sampling: Top-k, and the page's defaults of the other options.

    Raises:
        SourceError: No episode is long enough for the context.
    """

    def __init__(self, model: WorldModel, starts: Sequence[EpisodeStart], sampling: Sampling) -> None:
        self._model = model
        self._starts = _long_enough(model, starts)
        self._episodes = [start.episode for start in self._starts]
        self._strides = [stride_for(start.episode, clips_for(model, start.clips, None)) for start in self._starts]
        self._sampling = sampling
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def describe(self) -> dict[str, object]:
        """Returns what the page shows before the first start."""
        context, action_dim = self._model.id_layout.context_length, self._model.action_dim
        return {
            "sliders": [asdict(slider) for slider in sliders_for(action_dim, self._episodes)],
            "meaning": next(
                (episode.action_meaning for episode in self._episodes if action_dim and episode.action_meaning), ""
            ),
            "episodes": [
                {
                    "name": f"{episode.dataset} · {episode.key}",
                    "last_start": _last_start(episode, stride, context),
                    "pace": _pace(start, stride),
                }
                for start, episode, stride in zip(self._starts, self._episodes, self._strides, strict=True)
            ],
            "max_futures": MAX_FUTURES,
            "start": asdict(
                GameStart(
                    futures=min(self._sampling.samples, MAX_FUTURES),
                    temperature=self._sampling.temperature,
                    seed=self._sampling.seed,
                )
            ),
        }

    def start(self, wanted: GameStart) -> Started:
        """Starts a session.

        Returns:
            `session`: its name. `frames`: the context frames as data URIs. `recorded`: the episode's actions from there on;
            empty if it has none. `sees`: the number of frames after which the model forgets older ones.

        Raises:
            ConfigError: The episode, frame or number of futures is invalid.
        """
        if not 0 <= wanted.episode < len(self._episodes):
            raise ConfigError(f"there is no episode {wanted.episode}; there are {len(self._episodes)}, numbered from 0")
        if not 1 <= wanted.futures <= MAX_FUTURES:
            raise ConfigError(f"futures must be 1 to {MAX_FUTURES}, not {wanted.futures}")
        episode, stride = self._episodes[wanted.episode], self._strides[wanted.episode]
        count = self._model.id_layout.context_length
        indices = [wanted.frame + round(number * stride) for number in range(count)]
        if wanted.frame < 0 or indices[-1] >= episode.num_frames:
            last = _last_start(episode, stride, count)
            raise ConfigError(
                f"episode {wanted.episode} has {episode.num_frames} frames: start at frame 0 to {last}, not {wanted.frame}"
            )
        frames = decode_frames(episode, indices, self._model.tokenizer.config.resolution)
        with self._lock:
            session = self._model.start(frames, wanted.futures, self._sampling.top_k, wanted.temperature, wanted.seed)
            name = secrets.token_urlsafe(16)
            self._sessions[name] = session
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return {
            "session": name,
            "frames": [sprite(frame[None]) for frame in frames],
            "recorded": self._recorded(episode, indices[-1], stride),
            "sees": self._model.max_steps,
        }

    def step(self, name: object, action: object) -> Stepped:
        """Predicts the next frame of each future.

        Args:
            name: Name of the session, from `start`.
            action: Parsed JSON: the numbers of the action, or null for a model without actions.

        Returns:
            `step`: number of the frame, from 1. `frames`: one data URI per future. `rewards`: one number per future, or null.
            `seconds`: duration of the step.

        Raises:
            ConfigError: The session has ended, or the action is invalid.
        """
        checked = read_action(action, self._model.action_dim)
        with self._lock:
            session = self._sessions.get(name) if isinstance(name, str) else None
            if session is None:
                raise ConfigError("this session has ended: start again")
            self._sessions.move_to_end(str(name))
            begun = time.perf_counter()
            result = session.step(checked)
            frames = result.frame.cpu()
            seconds = time.perf_counter() - begun
        return {
            "step": session.steps,
            "frames": [sprite(frame[None]) for frame in frames],
            "rewards": None if result.reward is None else _finite(result.reward),
            "seconds": round(seconds, 4),
        }

    def _recorded(self, episode: Episode, first: int, stride: float) -> list[list[float]]:
        actions = recorded_actions(episode, self._model.action_dim)
        if actions is None:
            return []
        places = (first + round(number * stride) for number in range(_MAX_RECORDED))
        return [actions[place].tolist() for place in places if place < len(actions)]


def _last_start(episode: Episode, stride: float, context: int) -> int:
    """Returns the last start frame at which the context fits into an episode; negative if it never fits."""
    return episode.num_frames - 1 - round((context - 1) * stride)


def _long_enough(model: WorldModel, starts: Sequence[EpisodeStart]) -> list[EpisodeStart]:
    """Returns the starts whose episodes are long enough for the context; logs the others."""
    context, kept, short = model.id_layout.context_length, [], []
    for start in starts:
        stride = stride_for(start.episode, clips_for(model, start.clips, None))
        last = _last_start(start.episode, stride, context)
        if last >= 0:
            kept.append(start)
        else:
            short.append(f"{start.episode.key} ({start.episode.num_frames} frames, {start.episode.num_frames - last} needed)")
    if not kept:
        raise SourceError(
            f"no episode is long enough for the model's {context} context frames: {short[0]}; use other episodes or a smaller "
            "--clips.stride"
        )
    if short:
        log.warning("%d of %d episodes are too short for the context, such as %s", len(short), len(starts), short[0])
    return kept


def _pace(start: EpisodeStart, stride: float) -> str:
    """Returns the stride and the time step of an episode, and how they were chosen."""
    rate = start.episode.rate
    seconds = "" if rate is None else f", {stride / rate:.3g} s a frame"
    return f"a stride of {stride:g}{seconds} ({start.time_step})"


def _finite(rewards: torch.Tensor) -> list[float | None]:
    """Returns rewards for JSON: None for values that are not finite."""
    return [value if torch.isfinite(torch.tensor(value)) else None for value in rewards.tolist()]
