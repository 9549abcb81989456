"""Episode shards to token shards, in one process: read ahead, run the tokenizer, publish behind.

Batches never span two shards, so a shard's bytes depend on that shard alone, whoever makes it and after what; the price is
one partly filled batch a shard. Reading goes on into the next shard while the last batch of this one is computed.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline import storage
from pipeline.episode import Episode
from pipeline.errors import BadEpisodeError, ShardError
from pipeline.records import LeftOut, ShardRecord, record_path, sha256_of
from pipeline.shards import open_shard
from tokenize_offline.engine import TokenizerEngine
from tokenize_offline.plan import ShardTask, TokenizeJob
from tokenize_offline.prefetch import Prefetcher
from tokenize_offline.publish import publish
from tokenize_offline.reader import EpisodeClips, read_clips


@dataclass(frozen=True)
class EpisodeWork:
    """An episode to be read."""

    task: ShardTask
    episode: Episode


@dataclass(frozen=True)
class EndOfShard:
    """All episodes of a shard have been handed out, or it turned out to be bad."""

    task: ShardTask
    failure: ShardError | None = None


@dataclass
class WorkerReport:
    """What a worker did.

    Attributes:
        shards: Shards tokenized.
        rows: Rows in them, held-out ones included.
        held_out_rows: Of these, held out.
        left_out: Episodes left out.
        failures: One message for every shard that could not be read.
    """

    shards: int = 0
    rows: int = 0
    held_out_rows: int = 0
    left_out: int = 0
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: "WorkerReport") -> "WorkerReport":
        names = [item.name for item in dataclasses.fields(self)]
        return WorkerReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass
class _ShardInProgress:
    """Clips of one shard on their way through the model."""

    engine: TokenizerEngine
    waiting: list[Tensor] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    in_flight: Tensor | None = None
    # Each episode with the place of its first clip among all different clips of the shard.
    episodes: list[tuple[int, EpisodeClips]] = field(default_factory=list)
    clips: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, clips: EpisodeClips) -> None:
        self.waiting += clips.pixels
        self.episodes.append((self.clips, dataclasses.replace(clips, pixels=[])))
        self.clips += len(clips.pixels)
        while len(self.waiting) >= self.engine.batch:
            self._launch(self.engine.batch)

    def finish(self) -> np.ndarray:
        """Ids (clips, L) of all different clips, in order."""
        if self.waiting:
            self._launch(len(self.waiting))
        self._collect()
        return np.concatenate(self.ids) if self.ids else np.empty((0, 0), np.uint16)

    def _launch(self, count: int) -> None:
        # The previous batch is fetched after this one is queued, so that the device goes from one to the next.
        ids = self.engine.tokenize(self.waiting[:count])
        del self.waiting[:count]
        self._collect()
        self.in_flight = ids

    def _collect(self) -> None:
        if self.in_flight is not None:
            self.ids.append(self.in_flight.cpu().numpy().astype(np.uint16))
        self.in_flight = None


def run_worker(
    tasks: Iterable[ShardTask],
    job: TokenizeJob,
    engine: TokenizerEngine,
    readers: int,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> WorkerReport:
    """Tokenize shards one after the other.

    A shard that can't be read is noted in the report and the work goes on with the next.

    Args:
        tasks: Taken one at a time, when the reading of the one before has ended; from another thread.
        job: What is the same for all.
        engine: The tokenizer.
        readers: Threads that decode and resize.
        on_rows: Called with a number of rows whenever these have gone to the model.

    Raises:
        ConfigError: The recipe asks for something that an episode doesn't have, such as a rate.
    """

    def read(work: EpisodeWork | EndOfShard) -> EpisodeClips | LeftOut | EndOfShard:
        if isinstance(work, EndOfShard):
            return work
        views, share = job.views(work.task, held_out=False), job.held_out_share(work.task)
        try:
            return read_clips(work.episode, job.clips, views, share, job.layout.resolution)
        except BadEpisodeError as error:
            return LeftOut(work.episode.source_file, work.episode.source_record, str(error))

    report = WorkerReport()
    shard = _ShardInProgress(engine)
    publishing: Future[list[ShardRecord]] | None = None
    with ThreadPoolExecutor(1, "writer") as writer, Prefetcher(episodes_of(tasks), read, readers, 4 * readers) as ahead:
        for event in ahead:
            if isinstance(event, EpisodeClips):
                shard.add(event)
                on_rows(len(event.plans))
            elif isinstance(event, LeftOut):
                shard.left_out.append(event)
            else:
                report += _settle(publishing)
                publishing = None
                if event.failure is None:
                    publishing = writer.submit(publish, job, event.task, shard.episodes, shard.finish(), shard.left_out)
                else:
                    report.failures.append(str(event.failure))
                shard = _ShardInProgress(engine)
        return report + _settle(publishing)


def _settle(publishing: Future[list[ShardRecord]] | None) -> WorkerReport:
    if publishing is None:
        return WorkerReport()
    try:
        records = publishing.result()
    except ShardError as error:
        return WorkerReport(failures=[str(error)])
    rows = [record.samples for record in records]
    return WorkerReport(1, sum(rows), sum(rows[:-1]), len(records[-1].left_out))


def episodes_of(tasks: Iterable[ShardTask]) -> Iterator[EpisodeWork | EndOfShard]:
    """The episodes of shards, each shard followed by an `EndOfShard`; a shard that disagrees with its record ends early."""
    for task in tasks:
        try:
            with tempfile.TemporaryDirectory(prefix="ivideogpt-shard-") as folder:
                for episode in open_shard(_checked(task, Path(folder))):
                    yield EpisodeWork(task, episode)
        except (ShardError, OSError) as error:
            failure = error if isinstance(error, ShardError) else ShardError(f"{task.source} can't be read: {error}")
            yield EndOfShard(task, failure)
        else:
            yield EndOfShard(task)


def _checked(task: ShardTask, folder: Path) -> Path:
    """A local file of the episode shard, once it has proved to be the one that its record describes."""
    local = storage.local_copy(task.source, folder)
    if not local.exists():
        raise ShardError(f"{task.source} is not there although its record is; delete the record and ingest again")
    if (found := sha256_of(local)) != task.sha256:
        raise ShardError(
            f"{task.source} has SHA-256 {found[:12]}.. where its record {storage.basename(record_path(task.source))} says "
            f"{task.sha256[:12]}..: it is damaged or was replaced; delete both and ingest again"
        )
    return local
