"""Implements `ivideogpt-evaluate`: scores a world model's predictions on whole data sets, on one or several processes.

Process i mod N scores clip i, and the noise depends only on the episode, so scores do not depend on the number of processes.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from pipeline.common import storage
from pipeline.common.errors import ProjectError, StorageError
from pipeline.common.measured_json import describe_not_finite
from pipeline.config.cli import CommandParser
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from training.cli.evaluate import main
from training.distributed import Processes, find_rank_info
from training.evaluation.card import CARD_MARKDOWN, EvaluationCard, versions, weights_hashes, write_card
from training.evaluation.coverage import counts_in_words, describe_coverage, in_words
from training.evaluation.data import TestData, TestSet, Wanted, open_test_data, require_enough
from training.evaluation.kept_scores import KeptScores
from training.evaluation.metrics import MetricSet, idle_weights_hint
from training.evaluation.plan import EvaluateOptions, Evaluation, describe_plan, plan, require_valid
from training.evaluation.scores import ClipScores, Rows, summarise
from training.evaluation.scoring import empty_scores, score_all
from training.inference.session import WorldModel
from training.model.files.clip_config import clips_as_trained
from training.model.files.locate import locate_model
from training.model.files.trained_on import TrainedOn, read_trained_on

log = logging.getLogger(__name__)
_ALL = "all data sets"


def _results(scores: ClipScores, sets: Sequence[TestSet], metrics: MetricSet, context: int) -> dict[str, Rows]:
    results: dict[str, Rows] = {}
    first = 0
    for test_set in sets:
        part = slice(first, first + len(test_set.clips))
        found = ClipScores(scores.frames[part], scores.features[part])
        results[test_set.dataset] = summarise(found, metrics.frame_metrics, context)
        first = part.stop
    if len(sets) > 1:
        results[_ALL] = summarise(scores, metrics.frame_metrics, context)
    return results


def _log_coverage(data: TestData, trained: TrainedOn, wanted: Wanted, asked: int | None) -> None:
    """Logs what is evaluated and what is left out; `asked` is the value of `--episodes`."""
    unsure = data.trained_on > 0 or trained.held_out is None
    log.log(logging.WARNING if unsure else logging.INFO, "%s", in_words(data, trained, wanted))
    for test_set in data.sets:
        log.info("%s: %s", test_set.dataset, counts_in_words(test_set))
        for reason, doubtful in test_set.time_steps.items():
            log.log(logging.WARNING if doubtful else logging.INFO, "%s: %s", test_set.dataset, reason)
        if asked is not None and len(test_set.clips) < asked:
            log.warning("--episodes %d: %s has only %d", asked, test_set.dataset, len(test_set.clips))
    for dataset, reason in data.left_out.items():
        log.warning("%s is left out: %s", dataset, reason)


def _publish(options: EvaluateOptions, card: EvaluationCard, kept: KeptScores) -> StorageError | None:
    """Writes the report and prints the results; returns the error if the report cannot be written."""
    output, failure = options.output, None
    try:
        write_card(output, card)
    except (OSError, ProjectError) as error:
        failure = StorageError(
            f"the report cannot be written to {output}: {error}. The results are on stdout, and the scores of all clips are in "
            f"{kept.folder}: run the same command again to write the report"
        )
        failure.__cause__ = error
    line = {"output": output, "evaluated": card["evaluated"]["in_words"], "results": card["results"]}
    if bad := describe_not_finite(card["results"]):
        log.warning("some results are not finite: %s", bad)
    show(line, options, look_at=None if failure else storage.join(output, CARD_MARKDOWN))
    return failure


def run(parser: CommandParser, recipe: Recipe, options: EvaluateOptions) -> int:
    """Runs the command; returns its exit status. Arguments are those of `training.predict.run`."""
    require_valid(options)
    folder = locate_model(options.model_dir)
    given = parser.given("clips")
    rank_info = find_rank_info(os.environ)
    first = rank_info.rank == 0
    if first and not options.held_out:
        log.warning("--held_out false: training episodes are scored too")
    clips, trained = clips_as_trained(folder, recipe.clips, given, verbose=first), read_trained_on(folder)
    with Processes(rank_info) as processes:
        model = WorldModel.from_pretrained(folder, str(processes.device))
        evaluation = plan(model, clips, options, given)
        wanted = evaluation.wanted
        metrics = MetricSet(
            options.metrics, options.vgg_weights, options.i3d_weights, evaluation.length, wanted.side, processes.device
        )
        data = open_test_data(options.shards, wanted, trained)
        require_enough(data.sets, metrics.with_fvd)
        if first:
            _log_coverage(data, trained, wanted, options.episodes)
            if hint := idle_weights_hint(options.metrics):
                log.info("%s", hint)
        weights = weights_hashes(folder)
        kept = KeptScores(options.output, _command(weights, evaluation, metrics), empty_scores(1, evaluation, metrics))
        scores = score_all(model, data.clips, evaluation, kept, metrics, processes)
        failure = None
        if scores is not None:
            card: EvaluationCard = {
                "evaluated": describe_coverage(data, trained, wanted),
                "model": {"name": str(options.model_dir), "weights": weights},
                "protocol": describe_plan(model, evaluation, data.sets),
                "sampling": dataclasses.asdict(evaluation.sampling) | {"samples_at_once": evaluation.at_once},
                "metrics": metrics.describe(),
                "data": {test_set.dataset: test_set.describe() for test_set in data.sets},
                "results": _results(scores, data.sets, metrics, wanted.context),
                "versions": versions(),
            }
            failure = _publish(options, card, kept)
        if processes.any(failure is not None):
            if failure is not None:
                raise failure
            return 1
        kept.remove()
    return 0


def _command(weights: Mapping[str, str], evaluation: Evaluation, metrics: MetricSet) -> dict[str, object]:
    """Returns everything except the clip that decides the scores of a clip."""
    clips = evaluation.wanted.clips
    return {
        "weights": weights,
        "sampling": dataclasses.asdict(evaluation.sampling),
        "clips": {"length": clips.length, "goal": clips.goal, "start": evaluation.wanted.start},
        "metrics": metrics.describe(),
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
