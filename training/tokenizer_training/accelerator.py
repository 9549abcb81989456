"""accelerate: opens it over the process group of a run, and loads its state from a checkpoint."""

import logging
import os

from accelerate import Accelerator, PartialState

from training.distributed import Processes
from training.trainer.checkpoints.intact import loading
from training.trainer.checkpoints.states import Checkpoint


def open_accelerator(processes: Processes, precision: str) -> Accelerator:
    """Returns an accelerator that computes in `bf16` or `fp32`. Call it on all ranks, in the process group."""
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    # Without `cpu`, accelerate leaves several processes on a machine without a GPU unconnected.
    on_cpu = processes.device.type == "cpu"
    # accelerate takes a process with a LOCAL_RANK for one of several; only a launcher's is one.
    hidden = None if "MASTER_ADDR" in processes.rank_info.variables else os.environ.pop("LOCAL_RANK", None)
    PartialState(cpu=on_cpu)
    if hidden is not None:
        os.environ["LOCAL_RANK"] = hidden
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=on_cpu)


def load_state(accelerator: Accelerator, checkpoint: Checkpoint) -> None:
    """Restores all that accelerate keeps. Call it on all ranks.

    Raises:
        ShardError: The checkpoint can't be loaded.
    """
    with loading(checkpoint.folder):
        accelerator.load_state(str(checkpoint.folder))
