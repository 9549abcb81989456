"""Scores the clips of an evaluation on all processes, and resumes an earlier run of the same command."""

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
    """Scores all clips that have no score yet. Call it on all ranks.

    Args:
        model: World model.
        clips: Clips of all data sets.
        evaluation: How to cut and predict clips.
        kept: Scores kept in the output folder.
        metrics: Metrics to compute.
        processes: Process group; each process scores a part of the clips.

    Returns:
        Scores of all clips in order, on rank 0; None on other ranks.

    Raises:
        ConflictError: The output has scores of another evaluation.
        StorageError: The output cannot be written.
    """
    names = [_name(clip) for clip in clips]
    done = _claim(kept, processes)
    # Rank 0 says what is done, because it has the scores.
    missing = processes.gather_tensor(torch.tensor([name not in done for name in names], dtype=torch.uint8))[0]
    todo = missing.nonzero().flatten().tolist()
    if processes.is_first and len(todo) < len(clips):
        log.info("%d of %d clips are already scored", len(clips) - len(todo), len(clips))
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
    """Returns empty scores for a number of clips."""
    return ClipScores.empty(clips, evaluation.sampling.samples, metrics, evaluation.length, i3d.FEATURES)


def _claim(kept: KeptScores, processes: Processes) -> dict[str, ClipScores]:
    """Returns the scores kept so far on rank 0, and nothing on other ranks. If rank 0 fails, all ranks raise."""
    done: dict[str, ClipScores] = {}
    failure: Exception | None = None
    if processes.is_first:
        try:
            done = kept.claim()
        except (OSError, ProjectError) as error:
            failure = error
    failed = processes.any(failure is not None)
    if failed:
        raise failure or StorageError("process 0 cannot use --output; its message says why")
    return done


def _name(clip: TestClip) -> str:
    """Returns a unique name of a clip, which changes if its episode is ingested again."""
    row = clip.row
    return canonical_json([row.shape.dataset, row.shape.key, storage.basename(row.shard), row.offset, row.size, clip.stride])


def _interleaved(parts: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """Returns parts in order: entry j of process r is entry j N + r of the result, for N processes."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]
