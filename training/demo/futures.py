"""Tests whether actions matter: plays several plans from one start in the simulator and in the model, and compares the futures.

    python -m training.demo.futures --model demo_run/run/model --output futures

A model that ignores actions predicts the same future for each plan. With a model that uses them, the prediction from a plan's
own actions is the best prediction of its future (`own_predicts_best`), and each prediction is nearest to the future of its own
plan (`own_is_nearest`). The second is harder: a prediction with too little motion is nearest to the future with least motion.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.common.measured_json import measured_json
from pipeline.common.progress import progress_line
from pipeline.config.cli import run_command
from tokenize_offline.clips.transforms import to_square
from training.demo.pusht import WORLD_SIZE, SimulatedEpisode, simulate_episode
from training.inference.session import WorldModel
from training.metrics.frame_metrics import psnr_per_frame
from training.visuals.pictures import Strip, write_contact_sheet, write_gif

_MIDDLE, _NEAR, _FAR = WORLD_SIZE / 2, 0.12 * WORLD_SIZE, 0.88 * WORLD_SIZE
# Target of the block in each plan, in the simulator's units; y points down.
PLANS = {"left": (_NEAR, _MIDDLE), "right": (_FAR, _MIDDLE), "up": (_MIDDLE, _NEAR), "down": (_MIDDLE, _FAR)}
# Number of free steps before a plan, so that the start resembles the training data.
_FREE_STEPS = 14
_FIRST_SEED = 70_000
_Averaged = Literal["own_psnr", "others_psnr", "repeat_psnr", "own_predicts_best", "own_is_nearest"]


class PlanFractions(TypedDict):
    """See `own_plan_fractions`."""

    own_predicts_best: float
    own_is_nearest: float


class Scene(PlanFractions):
    """Scores of one start; PSNR in dB."""

    seed: int
    psnr: list[list[float]]
    repeat_psnr: float
    own_psnr: float
    others_psnr: float


def predict_plans(model: WorldModel, episodes: Sequence[SimulatedEpisode], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicts the future of each plan from the common start, with greedy sampling.

    Args:
        model: World model with actions of dimension 2.
        episodes: One episode per plan; all are equal up to and including frame `_FREE_STEPS`.
        steps: Number of frames to predict.

    Returns:
        Truth and prediction, (plans, t + steps, 3, S, S) in [0, 1]; both start with the t true context frames.
    """
    side, context = model.tokenizer.config.resolution, model.id_layout.context_length
    first = _FREE_STEPS + 1 - context
    truth = torch.stack([to_square(episode.image[first : first + context + steps], side) for episode in episodes])
    session = model.start(truth[:, :context], temperature=0.0)
    actions = np.stack([episode.action[_FREE_STEPS : _FREE_STEPS + steps] for episode in episodes])
    predicted = [session.step(actions[:, step]).frame.cpu() for step in range(steps)]
    return truth, torch.cat([truth[:, :context], torch.stack(predicted, dim=1)], dim=1)


def psnr_matrix(truth: torch.Tensor, predicted: torch.Tensor) -> np.ndarray:
    """Returns (plans, plans): mean PSNR in dB of the prediction of plan i (row) and the truth of plan j (column).

    Args:
        truth: (plans, steps, 3, S, S) in [0, 1].
        predicted: Same shape and range.
    """
    return np.array([[psnr_per_frame(made, true).mean().item() for true in truth] for made in predicted])


def own_plan_fractions(psnr: np.ndarray) -> PlanFractions:
    """Returns the fraction of futures that their own plan predicts best, and of predictions nearest to their own future.

    Args:
        psnr: (plans, plans) from `psnr_matrix`.
    """
    own = np.arange(len(psnr))
    return {
        "own_predicts_best": float((psnr.argmax(axis=0) == own).mean()),
        "own_is_nearest": float((psnr.argmax(axis=1) == own).mean()),
    }


def _play_scene(model: WorldModel, seed: int, steps: int, output: str) -> Scene:
    context = model.id_layout.context_length
    episodes = [simulate_episode(seed, _FREE_STEPS + steps + 1, target, _FREE_STEPS) for target in PLANS.values()]
    truth, predicted = predict_plans(model, episodes, steps)
    strips = []
    for number, plan in enumerate(PLANS):
        strips.append(Strip(f"{plan}: truth", truth[number], context + steps))
        strips.append(Strip(f"{plan}: predicted", predicted[number], context))
    name = f"scene-{seed}"
    write_contact_sheet(storage.join(output, f"{name}.png"), strips, context)
    write_gif(storage.join(output, f"{name}.gif"), strips, context)
    psnr = psnr_matrix(truth[:, context:], predicted[:, context:])
    repeated = truth[:, context - 1 : context].expand(-1, steps, -1, -1, -1)
    return {
        "seed": seed,
        "psnr": psnr.round(3).tolist(),
        "repeat_psnr": float(np.diag(psnr_matrix(truth[:, context:], repeated)).mean()),
        "own_psnr": float(np.diag(psnr).mean()),
        "others_psnr": float(psnr[~np.eye(len(PLANS), dtype=bool)].mean()),
        **own_plan_fractions(psnr),
    }


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Model folder of a PushT run.")
    parser.add_argument("--output", type=Path, required=True, help="Output folder for pictures and futures.json.")
    parser.add_argument("--scenes", type=int, default=8, help="Number of starts; each is played with all plans.")
    parser.add_argument("--steps", type=int, default=11, help="Number of frames to predict.")
    parser.add_argument("--seed", type=int, default=_FIRST_SEED, help="Seed of the first scene; not used in training.")
    options = parser.parse_args(arguments)
    if min(options.scenes, options.steps) < 1:
        raise ConfigError("--scenes and --steps must be at least 1")
    model = WorldModel.from_pretrained(options.model)
    if model.action_dim != 2:
        raise ConfigError(f"{options.model} has actions of dimension {model.action_dim}, but PushT has 2: use a model of PushT")
    scenes = []
    with progress_line(options.scenes, "scene", "futures") as progress:
        for seed in range(options.seed, options.seed + options.scenes):
            scenes.append(_play_scene(model, seed, options.steps, str(options.output)))
            progress.update()
    names: tuple[_Averaged, ...] = ("own_psnr", "others_psnr", "repeat_psnr", "own_predicts_best", "own_is_nearest")
    summary: dict[str, float] = {name: round(float(np.mean([scene[name] for scene in scenes])), 3) for name in names}
    storage.write_bytes(str(options.output / "futures.json"), measured_json(summary | {"scenes": scenes}, indent=1).encode())
    print(measured_json(summary))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays and predicts the plans; prints the PSNR with the futures of the own plan and of other plans."""
    return run_command(_main, arguments)


if __name__ == "__main__":
    sys.exit(main())
