"""Scoring the clips of an evaluation over all processes, and going on where a former one of the same command was ended."""

import logging
from collections.abc import Sequence

import torch

from pipeline.common import storage
from pipeline.common.errors import ProjectError, StorageError
from pipeline.common.manifests import canonical_json
from pipeline.common.progress import progress_line
from training.distributed import Processes
from training.evaluation.data import TestClip
from training.evaluation.kept_scores import KeptScores
from training.evaluation.metrics import MetricSet
from training.evaluation.plan import Evaluation
from training.evaluation.scores import ClipScores, score_clip
from training.inference.session import WorldModel
from training.metrics import i3d
from training.prediction.clip_prediction import cut_clip

log = logging.getLogger(__name__)


def score_all(
    model: WorldModel,
    clips: Sequence[TestClip],
    evaluation: Evaluation,
    kept: KeptScores,
    metrics: MetricSet,
    processes: Processes,
) -> ClipScores | None:
    """Score what was not scored before. Call it on all ranks.

    Args:
        model: To predict with.
        clips: Of all data sets.
        evaluation: How they are cut and predicted.
        kept: Scores by clip, in the output.
        metrics: To score with.
        processes: Each scores its share of the clips.

    Returns:
        Scores of all clips in order, on rank 0; None on the others.

    Raises:
        ConflictError: The output holds scores of another evaluation.
        StorageError: It can't be written.
    """
    names = [_name(clip) for clip in clips]
    done = _claim(kept, processes)
    # What is done, rank 0 says: it holds the scores.
    missing = processes.gather_tensor(torch.tensor([name not in done for name in names], dtype=torch.uint8))[0]
    todo = missing.nonzero().flatten().tolist()
    if processes.is_first and len(todo) < len(clips):
        log.info("%d of %d clips were scored before", len(clips) - len(todo), len(clips))
    own = empty_scores(-(-len(todo) // processes.world_size), evaluation, metrics)
    mine = todo[processes.rank :: processes.world_size]
    with progress_line(len(mine), "clip", "evaluate", shown=processes.is_first) as progress, kept:
        for number, index in enumerate(mine):
            clip = cut_clip(clips[index].read(), model, clips[index].clips, evaluation.wanted.start)
            scores = score_clip(model, clip, evaluation.sampling, evaluation.at_once, metrics)
            own.put(number, scores)
            kept.add(names[index], scores)
            progress.update()
    gathered = [_interleaved(processes.gather_tensor(part), len(todo)) for part in (own.frames, own.features)]
    if not processes.is_first:
        return None
    every = empty_scores(len(clips), evaluation, metrics)
    for number, index in enumerate(todo):
        every.put(index, ClipScores(*(part[number : number + 1] for part in gathered)))
    for index in (1 - missing).nonzero().flatten().tolist():
        every.put(index, done[names[index]])
    return every


def empty_scores(clips: int, evaluation: Evaluation, metrics: MetricSet) -> ClipScores:
    """Room for the scores of so many clips."""
    return ClipScores.empty(clips, evaluation.sampling.samples, metrics, evaluation.length, i3d.FEATURES)


def _claim(kept: KeptScores, processes: Processes) -> dict[str, ClipScores]:
    """What was scored before, on rank 0, else nothing. Where rank 0 can't take the output, all raise and none waits."""
    done: dict[str, ClipScores] = {}
    refusal: Exception | None = None
    if processes.is_first:
        try:
            done = kept.claim()
        except (OSError, ProjectError) as error:
            refusal = error
    refused = processes.any(refusal is not None)
    if refused:
        raise refusal or StorageError("process 0 can't take --output, and says why")
    return done


def _name(clip: TestClip) -> str:
    """Everything that tells a clip from all others of an evaluation, and its episode from one that was made anew."""
    row = clip.row
    return canonical_json([row.shape.dataset, row.shape.key, storage.basename(row.shard), row.offset, row.size, clip.stride])


def _interleaved(parts: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """What process r holds at place j belongs at j N + r."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]
