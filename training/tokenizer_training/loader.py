"""Loads batches of training clips in worker processes, from any step on."""

import time
from collections.abc import Generator

from torch.utils.data import DataLoader

from training.distributed import Processes
from training.tokenizer_training.data import Drawn, DrawnBatch, StepBatches, TokenizerClips, begin_reading, collate
from training.trainer.signals import block_stop_signals


class ClipLoader:
    """Iterates over this process's batches of a range of steps.

    Args:
        clips: Training clips.
        steps: Steps to make.
        local_batch: Clips of this process in a step.
        workers: Processes that read clips; 0 reads them in this one.
        processes: All processes of the run.

    Attributes:
        last_wait: Seconds that the newest batch was waited for.
    """

    def __init__(self, clips: TokenizerClips, steps: range, local_batch: int, workers: int, processes: Processes) -> None:
        self.last_wait = 0.0
        self._loader: DataLoader[Drawn] = DataLoader(
            clips,
            batch_sampler=StepBatches(steps.start, steps.stop, local_batch, processes.rank, processes.world_size),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=processes.device.type == "cuda",
            # Spawned workers are this process's children and end with it, also where it is killed; a fork server's are not.
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=begin_reading,
        )

    def __iter__(self) -> Generator[DrawnBatch]:
        with block_stop_signals():
            batches = iter(self._loader)
        try:
            while True:
                began = time.perf_counter()
                batch: DrawnBatch | None = next(batches, None)
                if batch is None:
                    return
                self.last_wait = time.perf_counter() - began
                yield batch
        finally:
            # Its workers end when nothing refers to it any more; an error's traceback would.
            del batches
