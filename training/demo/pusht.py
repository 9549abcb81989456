"""Simulates PushT episodes (gym-pusht: a round agent pushes a T-shaped block) with a scripted pusher.

The pusher walks around the block to the side opposite its target and pushes. Noise and random targets make the futures of
one picture differ, so that actions matter.
"""

import os
from dataclasses import dataclass

import numpy as np

WORLD_SIZE = 512.0  # width of the simulated square, in the simulator's units
RATE = 10.0  # control rate of the simulator in Hz; one frame per action
IMAGE_SIZE = 96
ACTION_MEANING = "target of the agent: x, y, each -1 to 1 across the world"
_CLEARANCE = 110.0  # distance from the block's centre at which the agent walks around it
_PUSH_DEPTH = 120.0  # a push aims this far beyond the block's centre


@dataclass(frozen=True)
class SimulatedEpisode:
    """One simulated episode of N steps.

    Attributes:
        image: (N, 96, 96, 3) uint8 RGB, before each action.
        action: (N, 2) float32 in [-1, 1]: target position of the agent.
        state: (N, 5) float32: agent x, y, block x, y in [0, 512], block angle in radians.
        reward: (N,) float32 in [0, 1]: fraction of the goal that the block covers after the action.
    """

    image: np.ndarray
    action: np.ndarray
    state: np.ndarray
    reward: np.ndarray


class ScriptedPusher:
    """A policy that pushes the block to a target (the goal or a random point) and then chooses another target."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._noise = np.zeros(2)
        self._choose_target()

    def aim(self, target: tuple[float, float], decisions: int) -> None:
        """Sets a target, in the simulator's units, for a number of decisions or until the block is there."""
        self._target = np.array(target)
        self._decisions_left = decisions

    def _choose_target(self) -> None:
        to_goal = self._generator.random() < 0.3
        goal = np.array([256.0, 256.0])
        self._target = goal if to_goal else self._generator.uniform(120, WORLD_SIZE - 120, 2)
        self._decisions_left = int(self._generator.integers(12, 28))

    def act(self, agent: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Returns the next target position of the agent.

        Args:
            agent: (2,) position of the agent.
            block: (2,) position of the block.

        Returns:
            (2,) target position in the simulator's units.
        """
        if self._decisions_left == 0 or np.linalg.norm(self._target - block) < 25:
            self._choose_target()
        self._decisions_left -= 1
        direction = (self._target - block) / (np.linalg.norm(self._target - block) + 1e-6)
        from_block = agent - block
        behind = float(from_block @ direction) < -0.5 * np.linalg.norm(from_block)
        if behind:
            wanted = block + direction * _PUSH_DEPTH
        else:
            # Walk around on the agent's side of the block.
            side = np.array([-direction[1], direction[0]])
            side *= 1.0 if from_block @ side >= 0 else -1.0
            ahead = float(from_block @ direction) > 0.3 * np.linalg.norm(from_block)
            wanted = block + (side if ahead else side * 0.4 - direction) * _CLEARANCE
        self._noise = 0.8 * self._noise + self._generator.normal(0, 14, 2)
        return np.clip(wanted + self._noise, 20, WORLD_SIZE - 20)


def simulate_episode(
    seed: int, steps: int, target: tuple[float, float] | None = None, target_from: int = 0
) -> SimulatedEpisode:
    """Simulates an episode of the pusher in a new world.

    Args:
        seed: Seed of the world and of the pusher; equal seeds give equal episodes.
        steps: Number of frames N.
        target: Target of the block from step `target_from` on, in the simulator's units; None lets the pusher choose. Episodes
            of one seed are equal up to the frame of that step.
        target_from: Step at which the pusher gets the target.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gym_pusht.envs import PushTEnv

    env = PushTEnv(obs_type="pixels", observation_width=IMAGE_SIZE, observation_height=IMAGE_SIZE)
    image, _ = env.reset(seed=seed)
    pusher = ScriptedPusher(np.random.default_rng([seed, 1]))
    images, actions, states, rewards = [], [], [], []
    for step in range(steps):
        if target is not None and step == target_from:
            pusher.aim(target, steps)
        agent, block = np.array(env.agent.position), np.array(env.block.position)
        command = pusher.act(agent, block)
        images.append(image)
        states.append([*agent, *block, env.block.angle % (2 * np.pi)])
        actions.append(command / (WORLD_SIZE / 2) - 1)
        image, reward, *_ = env.step(command)
        rewards.append(reward)
    env.close()
    return SimulatedEpisode(
        image=np.stack(images).astype(np.uint8),
        action=np.asarray(actions, np.float32),
        state=np.asarray(states, np.float32),
        reward=np.asarray(rewards, np.float32),
    )
