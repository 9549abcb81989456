"""Saves a checkpoint: all ranks write and hash their parts, then the folder gets its final name."""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.common import storage
from training.distributed import Processes
from training.trainer.checkpoints.files import (
    LATEST_NAME,
    checkpoint_files,
    mark_complete,
    staging_folder,
    prune,
    publish_checkpoint,
    remove_leftovers,
)
from training.trainer.checkpoints.states import RunProgress, sync_and_hash, tag

log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, write: Callable[[Path], None], processes: Processes, progress: RunProgress, keep: int, keep_every: int
) -> None:
    """Writes a checkpoint and removes old ones. Call it on all ranks.

    Args:
        folder: Folder of all checkpoints; every rank must see the same one.
        write: Writes this rank's part of the state into a folder; called on all ranks.
        processes: Processes of the run.
        progress: Progress of the run.
        keep: Number of newest checkpoints to keep.
        keep_every: Keep checkpoints of multiples of this many steps forever; 0 = off.
    """
    made = staging_folder(folder / tag(progress.step))
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        # First, because they may fill the disk.
        remove_leftovers(folder)
    processes.barrier()
    write(made)
    processes.barrier()
    digests = _hash_files(made, processes)
    if processes.is_first:
        mark_complete(made, progress, digests)
        publish_checkpoint(made, folder / tag(progress.step))
        storage.write_bytes(str(folder / LATEST_NAME), tag(progress.step).encode())
        prune(folder, keep, keep_every, progress.step)


def _hash_files(folder: Path, processes: Processes) -> dict[str, str]:
    """Returns the SHA-256 of each file of a checkpoint; the ranks share the work and flush the files to disk. Call it on all ranks."""
    names = processes.gather_objects(checkpoint_files(folder) if processes.is_first else None)[0] or []
    digests = {}
    for name in names[processes.rank :: processes.world_size]:
        try:
            digests[name] = sync_and_hash(folder / name)
        except OSError as error:
            # A network disk may show the file to this node later; rank 0 hashes it then, or fails with the real reason.
            log.debug("%s can't be read here (%s)", folder / name, error)
    return {name: digest for hashed in processes.gather_objects(digests) for name, digest in hashed.items()}
