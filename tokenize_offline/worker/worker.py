"""Turns episode shards into token shards in one process: reads ahead, runs the tokenizer, and publishes in the background.

The next shards are read while one is encoded, and batches span shards. A clip's ids depend only on the clip, so a shard's bytes
don't depend on the process that makes it or on its other shards. A process that ends early loses the shards in progress,
usually two.
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
from tokenize_offline.shards.writer import RowSchemas, TokenizedEpisodes, publish
from tokenize_offline.tasks import ShardTask, TokenizeJob, fingerprint_of_keys
from tokenize_offline.worker.batching import Batcher, ShardTokens
from tokenize_offline.worker.encoder import BatchEncoder
from tokenize_offline.worker.prefetch import Prefetcher, ReserveBytes
from tokenize_offline.worker.reconstruction_sample import ReconstructionSample

log = logging.getLogger(__name__)

_PREFETCH_PER_READER = 4
# Memory for prefetched episodes and their clips, for all readers of this process together.
_PREFETCH_BYTES = 2 << 30


@dataclass(frozen=True)
class EpisodeWork:
    """An episode to read."""

    task: ShardTask
    episode: Episode


@dataclass(frozen=True)
class EndOfShard:
    """Ends the episodes of a shard: all were yielded, or the shard is damaged (`failure`), or another run has made it."""

    task: ShardTask
    failure: ShardError | None = None
    skipped_existing: bool = False


@dataclass
class WorkerReport:
    """The results of a worker; reports of several workers add up.

    Attributes:
        shards: Shards tokenized.
        skipped_existing: Shards that another run published after the plan was made.
        rows: Rows written, held-out ones included.
        held_out_rows: Held-out rows written.
        left_out: Episodes left out.
        waited: Seconds in which the model waited for clips.
        passed: Total seconds.
        batches: Final batch size in clips of each worker.
        failures: One message for each shard that could not be read.
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
    """A shard from its first episode until it is published."""

    tokens: ShardTokens = field(default_factory=ShardTokens)
    # (index of the episode's first clip among the unique clips of the shard, episode).
    episodes: list[tuple[int, EpisodeClips]] = field(default_factory=list)
    left_out: list[SkippedEpisode] = field(default_factory=list)
    # Held out or not -> sample.
    samples: dict[bool, ReconstructionSample] = field(
        default_factory=lambda: {held_out: ReconstructionSample() for held_out in (False, True)}
    )
    end: EndOfShard | None = None

    @property
    def complete(self) -> bool:
        if self.end is None:
            return False
        return self.end.failure is not None or self.end.skipped_existing or self.tokens.complete


def run_worker(
    tasks: Iterable[ShardTask],
    job: TokenizeJob,
    encoder: BatchEncoder,
    readers: int,
    on_progress: Callable[[WorkerProgress], None] = lambda progress: None,
) -> WorkerReport:
    """Tokenize shards. A shard that can't be read is listed in the report, and the work continues with the next one.

    Args:
        tasks: Shards to tokenize; another thread takes the next one when it has read the previous one.
        job: Settings of all shards.
        encoder: The tokenizer.
        readers: Number of processes that decode and resize frames.
        on_progress: Called after each episode and each shard, and at the end.

    Raises:
        ConfigError: The recipe needs something that an episode lacks, such as a rate.
    """
    with (
        ThreadPoolExecutor(1, "writer") as writer,
        ReaderPool(job.clips, job.layout.resolution, readers) as pool,
        Prefetcher(
            source=episodes_of(tasks, job),
            process=functools.partial(_read, pool, job),
            threads=readers,
            depth=_PREFETCH_PER_READER * readers,
            budget=_PREFETCH_BYTES,
        ) as events,
    ):
        report = _work(job, events, _Publisher(job, encoder, writer), Batcher(encoder), on_progress)
        return report + WorkerReport(batches=[encoder.batch])


def _read(pool: ReaderPool, job: TokenizeJob, work: EpisodeWork | EndOfShard) -> EpisodeClips | SkippedEpisode | EndOfShard:
    if isinstance(work, EndOfShard):
        return work
    try:
        return pool.read(work.episode, job.views(work.task, held_out=False), job.held_out_share(work.task))
    except BadEpisodeError as error:
        return SkippedEpisode(work.episode.source_file, work.episode.source_record, str(error))


def _work(
    job: TokenizeJob,
    events: Iterable[EpisodeClips | SkippedEpisode | EndOfShard],
    publisher: "_Publisher",
    batcher: Batcher,
    on_progress: Callable[[WorkerProgress], None],
) -> WorkerReport:
    # The last shard is being read; those before it wait for ids.
    shards = deque([_ShardInProgress()])
    done = WorkerProgress()
    began = time.monotonic()
    for event in events:
        received = time.monotonic()
        shard = shards[-1]
        rows = 0
        if isinstance(event, EpisodeClips):
            first_index = shard.tokens.submitted
            shard.samples[event.held_out].add(event, first_index)
            shard.episodes.append((first_index, dataclasses.replace(event, pixels=[])))
            batcher.add(event.pixels, shard.tokens)
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
        step = WorkerProgress(rows, int(isinstance(event, EndOfShard)), received - began, now - began)
        on_progress(step)
        done += step
        began = now
    batcher.flush()
    while shards[0].complete:
        publisher.publish(shards.popleft())
    report = publisher.finish()
    step = WorkerProgress(passed=time.monotonic() - began)
    on_progress(step)
    done += step
    return report + WorkerReport(waited=done.waited, passed=done.passed)


class _Publisher:
    """Publishes finished shards in a thread, one at a time, and adds up the results."""

    def __init__(self, job: TokenizeJob, encoder: BatchEncoder, writer: ThreadPoolExecutor) -> None:
        self._job = job
        self._encoder = encoder
        self._writer = writer
        self._report = WorkerReport()
        self._schemas = RowSchemas(job)
        self._publishing: Future[list[ShardManifest]] | None = None

    def publish(self, shard: _ShardInProgress) -> None:
        self.finish()
        assert shard.end is not None
        if shard.end.failure is not None:
            self._report += WorkerReport(failures=[str(shard.end.failure)])
            return
        if shard.end.skipped_existing:
            if not self._report.skipped_existing:
                log.info("another run works on %s: skipping the shards that it has made", self._job.folder(shard.end.task))
            self._report += WorkerReport(skipped_existing=1)
            return
        ids = shard.tokens.array()
        errors = {held_out: _squared_errors(self._encoder, sample, ids) for held_out, sample in shard.samples.items()}
        content = TokenizedEpisodes(shard.episodes, ids, shard.left_out, errors)
        self._publishing = self._writer.submit(publish, self._job, shard.end.task, content, self._schemas)

    def finish(self) -> WorkerReport:
        """Wait for the last shard; returns the report of all shards."""
        self._report += _publish_report(self._publishing)
        self._publishing = None
        return self._report


def _squared_errors(encoder: BatchEncoder, sample: ReconstructionSample, ids: np.ndarray) -> np.ndarray:
    """Mean squared errors of the decoded frames of a sample, (clips, T)."""
    errors = [
        encoder.squared_error(clip.pixels, torch.from_numpy(ids[clip.index].astype(np.int64))) for clip in sample.selected()
    ]
    return torch.stack(errors).cpu().numpy() if errors else np.empty((0, 0))


def _publish_report(publishing: Future[list[ShardManifest]] | None) -> WorkerReport:
    """Wait until a shard is published, and report it."""
    if publishing is None:
        return WorkerReport()
    try:
        manifests = publishing.result()
    except ShardError as error:
        return WorkerReport(failures=[str(error)])
    except OSError as error:
        # The next shard would fail too, so stop now.
        raise ShardError(f"can't write token shards ({error}): free some space, then run the same command again") from error
    rows = [manifest.samples for manifest in manifests]
    return WorkerReport(shards=1, rows=sum(rows), held_out_rows=sum(rows[:-1]), left_out=len(manifests[-1].left_out))


def episodes_of(tasks: Iterable[ShardTask], job: TokenizeJob) -> Iterator[EpisodeWork | EndOfShard | ReserveBytes]:
    """The episodes of shards, each after a `ReserveBytes`; an `EndOfShard` follows each shard.

    A shard that disagrees with its manifest ends early. A shard that another run has tokenized meanwhile is not opened.

    Raises:
        ConflictError: Another run has tokenized a shard with other inputs.
    """
    for task in tasks:
        if job.is_done(task):
            yield EndOfShard(task, skipped_existing=True)
            continue
        excluded, excluded_keys = frozenset(task.excluded), []
        try:
            with locked_folder("ivideogpt-shard-") as folder:
                shard = open_shard(_checked(task, folder))
                sizes = _prefetch_bytes(task, job)
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
                    f"{task.source} and {INDEX_FILE}, on which the recipe's quality limits rely, disagree about its episodes: "
                    "run ivideogpt-ingest again to rewrite the index, then run this command again"
                )
        except (ShardError, OSError) as error:
            failure = error if isinstance(error, ShardError) else ShardError(f"can't read {task.source}: {error}")
            yield EndOfShard(task, failure)
        else:
            yield EndOfShard(task)


def _prefetch_bytes(task: ShardTask, job: TokenizeJob) -> list[int]:
    """Memory of each prefetched episode of a shard: the episode, here and in its reader, and the pixels of its clips."""
    frames = job.clips.per_episode * job.views(task, held_out=False) * job.layout.clip_length
    pixels = frames * 3 * job.layout.resolution**2 * 4
    return [2 * int(entry.get("size", 0)) + pixels for entry in read_manifest(manifest_path(task.source)).entries]


def _checked(task: ShardTask, folder: Path) -> Path:
    """A local copy of the episode shard, after checking it against its manifest."""
    local = storage.local_copy(task.source, folder)
    if not local.exists():
        raise ShardError(
            f"{task.source} does not exist, but its manifest does. If other machines see it, give {socket.gethostname()} "
            "access to the same files; otherwise delete the manifest and ingest again"
        )
    if (found := sha256_of(local)) != task.sha256:
        raise ShardError(
            f"{task.source} has SHA-256 {found[:12]}.. but its manifest {storage.basename(manifest_path(task.source))} has "
            f"{task.sha256[:12]}..: it is damaged or was replaced; delete both and ingest again"
        )
    return local
