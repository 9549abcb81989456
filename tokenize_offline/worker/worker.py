"""Episode shards to token shards, in one process: read ahead, run the tokenizer, publish behind.

Reading goes on into the next shards while this one is computed, and batches are filled across shards; ids of a clip depend on
the clip alone, so a shard's bytes do too, whoever makes it and beside what. A process that dies loses the shards it had read
into, two as a rule.
"""

import dataclasses
import functools
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, ShardError
from pipeline.common.manifests import ShardManifest, SkippedEpisode, manifest_path, read_manifest, sha256_of
from pipeline.common.temp_dirs import locked_folder
from pipeline.episodes.episode import Episode
from pipeline.episodes.index import INDEX_FILE
from pipeline.episodes.shards import open_shard
from tokenize_offline.clips.decode import EpisodeClips
from tokenize_offline.clips.decode_pool import ReaderPool
from tokenize_offline.distributed.progress import WorkerProgress
from tokenize_offline.shards.writer import RowSchemas, publish
from tokenize_offline.tasks import ShardTask, TokenizeJob, fingerprint_of_keys
from tokenize_offline.worker.batching import Batcher, ShardTokens
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.prefetch import Prefetcher, ReserveBytes
from tokenize_offline.worker.reconstruction_sample import Sample

log = logging.getLogger(__name__)

_AHEAD_PER_READER = 4
# Of encoded episodes and their clips, over all readers of this process.
_AHEAD_BYTES = 2 << 30


@dataclass(frozen=True)
class EpisodeWork:
    """An episode to be read."""

    task: ShardTask
    episode: Episode


@dataclass(frozen=True)
class EndOfShard:
    """No more episodes of a shard: all have been handed out, or it turned out to be bad, or somebody else has made it."""

    task: ShardTask
    failure: ShardError | None = None
    skipped_existing: bool = False


@dataclass
class WorkerReport:
    """What a worker did.

    Attributes:
        shards: Shards tokenized.
        skipped_existing: Shards that another run had published by the time they were due.
        rows: Rows in them, held-out ones included.
        held_out_rows: Of these, held out.
        left_out: Episodes left out.
        waited: Seconds in which the model had nothing to do for want of clips.
        passed: Seconds in all.
        batches: Clips per batch at the end, of every worker.
        failures: One message for every shard that could not be read.
    """

    shards: int = 0
    skipped_existing: int = 0
    rows: int = 0
    held_out_rows: int = 0
    left_out: int = 0
    waited: float = 0.0
    passed: float = 0.0
    batches: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: "WorkerReport") -> "WorkerReport":
        names = [item.name for item in dataclasses.fields(self)]
        return WorkerReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass
class _ShardInProgress:
    """One shard from its first episode until it is published."""

    ids: ShardTokens = field(default_factory=ShardTokens)
    # Each episode with the place of its first clip among all different clips of the shard.
    episodes: list[tuple[int, EpisodeClips]] = field(default_factory=list)
    left_out: list[SkippedEpisode] = field(default_factory=list)
    # By whether the episodes are held out.
    samples: dict[bool, Sample] = field(default_factory=lambda: {False: Sample(), True: Sample()})
    end: EndOfShard | None = None

    @property
    def complete(self) -> bool:
        if self.end is None:
            return False
        return self.end.failure is not None or self.end.skipped_existing or self.ids.complete


def run_worker(
    tasks: Iterable[ShardTask],
    job: TokenizeJob,
    engine: BatchEncoder,
    readers: int,
    on_progress: Callable[[WorkerProgress], None] = lambda progress: None,
) -> WorkerReport:
    """Tokenize shards one after the other.

    A shard that can't be read is noted in the report and the work goes on with the next.

    Args:
        tasks: Taken one at a time, when the reading of the one before has ended; from another thread.
        job: What is the same for all.
        engine: The tokenizer.
        readers: Processes that decode and resize.
        on_progress: Called after every episode and every shard, and at the end.

    Raises:
        ConfigError: The recipe asks for something that an episode doesn't have, such as a rate.
    """
    with (
        ThreadPoolExecutor(1, "writer") as writer,
        ReaderPool(job.clips, job.layout.resolution, readers) as pool,
        Prefetcher(
            episodes_of(tasks, job), functools.partial(_read, pool, job), readers, _AHEAD_PER_READER * readers, _AHEAD_BYTES
        ) as ahead,
    ):
        report = _work(job, ahead, _Publisher(job, engine, writer), Batcher(engine), on_progress)
        return report + WorkerReport(batches=[engine.batch])


def _read(pool: ReaderPool, job: TokenizeJob, work: EpisodeWork | EndOfShard) -> EpisodeClips | SkippedEpisode | EndOfShard:
    if isinstance(work, EndOfShard):
        return work
    try:
        return pool.read(work.episode, job.views(work.task, held_out=False), job.held_out_share(work.task))
    except BadEpisodeError as error:
        return SkippedEpisode(work.episode.source_file, work.episode.source_record, str(error))


def _work(
    job: TokenizeJob,
    ahead: Iterable[EpisodeClips | SkippedEpisode | EndOfShard],
    publisher: "_Publisher",
    batches: Batcher,
    on_progress: Callable[[WorkerProgress], None],
) -> WorkerReport:
    # The last one is being read; those before it wait for ids.
    shards = deque([_ShardInProgress()])
    done = WorkerProgress()
    began = time.monotonic()
    for event in ahead:
        got = time.monotonic()
        shard = shards[-1]
        rows = 0
        if isinstance(event, EpisodeClips):
            shard.samples[event.held_out].offer(event, shard.ids.asked)
            shard.episodes.append((shard.ids.asked, dataclasses.replace(event, pixels=[])))
            batches.add(event.pixels, shard.ids)
            rows = len(event.plans)
        elif isinstance(event, SkippedEpisode):
            shard.left_out.append(event)
        else:
            shard.end = event
            shards.append(_ShardInProgress())
            rows = job.planned_rows(event.task) if event.skipped_existing else 0
        while shards[0].complete:
            publisher.publish(shards.popleft())
        now = time.monotonic()
        step = WorkerProgress(rows, int(isinstance(event, EndOfShard)), got - began, now - began)
        on_progress(step)
        done += step
        began = now
    batches.flush()
    while shards[0].complete:
        publisher.publish(shards.popleft())
    report = publisher.finish()
    # The last batch is the only one where clips are few: its time is work as well.
    step = WorkerProgress(passed=time.monotonic() - began)
    on_progress(step)
    done += step
    return report + WorkerReport(waited=done.waited, passed=done.passed)


class _Publisher:
    """Publishes finished shards in a thread, one at a time, and adds up what became of them."""

    def __init__(self, job: TokenizeJob, engine: BatchEncoder, writer: ThreadPoolExecutor) -> None:
        self._job = job
        self._engine = engine
        self._writer = writer
        self._report = WorkerReport()
        self._kinds = RowSchemas(job)
        self._publishing: Future[list[ShardManifest]] | None = None

    def publish(self, shard: _ShardInProgress) -> None:
        self.finish()
        assert shard.end is not None
        if shard.end.failure is not None:
            self._report += WorkerReport(failures=[str(shard.end.failure)])
            return
        if shard.end.skipped_existing:
            if not self._report.skipped_existing:
                log.info("another run is at work on %s: what it has made is skipped", self._job.folder(shard.end.task))
            self._report += WorkerReport(skipped_existing=1)
            return
        ids = shard.ids.array()
        errors = {held_out: _squared_errors(self._engine, sample, ids) for held_out, sample in shard.samples.items()}
        self._publishing = self._writer.submit(
            publish, self._job, shard.end.task, shard.episodes, ids, shard.left_out, errors, self._kinds
        )

    def finish(self) -> WorkerReport:
        """Wait for the last shard; returns the report on all."""
        self._report += _settle(self._publishing)
        self._publishing = None
        return self._report


def _squared_errors(engine: BatchEncoder, sample: Sample, ids: np.ndarray) -> np.ndarray:
    """(clips of the sample, T) mean squared errors of the frames that their ids decode to."""
    errors = [engine.squared_error(clip.pixels, torch.from_numpy(ids[clip.place].astype(np.int64))) for clip in sample.drawn()]
    return torch.stack(errors).cpu().numpy() if errors else np.empty((0, 0))


def _settle(publishing: Future[list[ShardManifest]] | None) -> WorkerReport:
    if publishing is None:
        return WorkerReport()
    try:
        records = publishing.result()
    except ShardError as error:
        return WorkerReport(failures=[str(error)])
    except OSError as error:
        # It would be the same with the next shard: stop before work is thrown away.
        raise ShardError(f"token shards can't be written ({error}): make room, then run the same command again") from error
    rows = [record.samples for record in records]
    return WorkerReport(shards=1, rows=sum(rows), held_out_rows=sum(rows[:-1]), left_out=len(records[-1].left_out))


def episodes_of(tasks: Iterable[ShardTask], job: TokenizeJob) -> Iterator[EpisodeWork | EndOfShard | ReserveBytes]:
    """The episodes of shards, each after a `ReserveBytes`, each shard followed by an `EndOfShard`.

    A shard that disagrees with its record ends early. One whose token shards have appeared since the plan was made has
    been taken care of by a run that knows nothing of this one, and is not opened.

    Raises:
        ConflictError: Such a run has made it in another way.
    """
    for task in tasks:
        if job.is_done(task):
            yield EndOfShard(task, skipped_existing=True)
            continue
        excluded, excluded_keys = frozenset(task.excluded), []
        try:
            with locked_folder("ivideogpt-shard-") as folder:
                shard = open_shard(_checked(task, folder))
                sizes = _bytes_ahead(task, job)
                for number in itertools.count():
                    yield ReserveBytes(sizes[number] if number < len(sizes) else 0)
                    episode = next(shard, None)
                    if episode is None:
                        break
                    if number in excluded:
                        excluded_keys.append(episode.key)
                    else:
                        yield EpisodeWork(task, episode)
            if task.excluded_keys and fingerprint_of_keys(excluded_keys) != task.excluded_keys:
                raise ShardError(
                    f"{task.source} holds other episodes than {INDEX_FILE} beside it says, by which the recipe's quality "
                    "limits chose: run ivideogpt-ingest again, which writes the index anew, then this command"
                )
        except (ShardError, OSError) as error:
            failure = error if isinstance(error, ShardError) else ShardError(f"{task.source} can't be read: {error}")
            yield EndOfShard(task, failure)
        else:
            yield EndOfShard(task)


def _bytes_ahead(task: ShardTask, job: TokenizeJob) -> list[int]:
    """What each episode of a shard takes while it is read ahead: itself, here and in its reader, and its clips' pixels."""
    frames = job.clips.per_episode * job.views(task, held_out=False) * job.layout.clip_length
    pixels = frames * 3 * job.layout.resolution**2 * 4
    return [2 * int(entry.get("size", 0)) + pixels for entry in read_manifest(manifest_path(task.source)).entries]


def _checked(task: ShardTask, folder: Path) -> Path:
    """A local file of the episode shard, once it has proved to be the one that its record describes."""
    local = storage.local_copy(task.source, folder)
    if not local.exists():
        raise ShardError(
            f"{task.source} is not there although the plan has it from its record. If other machines see it, let "
            f"{socket.gethostname()} share their files; else delete the record and ingest again"
        )
    if (found := sha256_of(local)) != task.sha256:
        raise ShardError(
            f"{task.source} has SHA-256 {found[:12]}.. where its record {storage.basename(manifest_path(task.source))} says "
            f"{task.sha256[:12]}..: it is damaged or was replaced; delete both and ingest again"
        )
    return local
