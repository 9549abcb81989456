"""accelerate: opens it over the process group of a run, and loads its state from a checkpoint."""

from accelerate import Accelerator

from training.compat import connect_accelerate
from training.distributed import Processes
from training.trainer.checkpoints.intact import loading
from training.trainer.checkpoints.states import Checkpoint


def open_accelerator(processes: Processes, precision: str) -> Accelerator:
    """Returns an accelerator that computes in `bf16` or `fp32`. Call it on all ranks, in the process group."""
    on_cpu = processes.device.type == "cpu"
    connect_accelerate(on_cpu, launched="MASTER_ADDR" in processes.rank_info.variables)
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=on_cpu)


def load_state(accelerator: Accelerator, checkpoint: Checkpoint) -> None:
    """Restores all that accelerate keeps. Call it on all ranks.

    Raises:
        ShardError: The checkpoint can't be loaded.
    """
    with loading(checkpoint.folder):
        accelerator.load_state(str(checkpoint.folder))
