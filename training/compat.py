"""Works around faults of other libraries: DeepSpeed, accelerate and transformers.

Each function names the version that has the fault. `tests/training/test_compat.py` fails once a fault is gone.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

# transformers makes no mask for an implementation that it doesn't know.
_CAUSAL = "sdpa_causal"
log = logging.getLogger(__name__)


def import_deepspeed(device: torch.device) -> Any:
    """Returns DeepSpeed's package, set up for a device and without noise on stdout.

    DeepSpeed 0.19.8 writes its log to whatever stdout is while it is imported, and calls collectives by deprecated names.
    For a CPU it compiles a shared-memory backend at every fresh start, a minute during which all ranks wait; gloo does without.
    Naming no compatible op also saves the compiler probes.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        import deepspeed.ops
    if device.type == "cpu":
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    return deepspeed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what DeepSpeed 0.19.8 prints to the debug log: stdout carries results."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        if printed.getvalue():
            log.debug("DeepSpeed: %s", printed.getvalue().strip())


@contextlib.contextmanager
def repaired_optimizer(engine: Any) -> Iterator[None]:
    """Repairs the optimizer of an engine that loads a checkpoint in this context.

    From a universal checkpoint, DeepSpeed 0.19.8 gives all groups of ZeRO 3 the hyperparameters of the first one, and all
    parameters one and the same step tensor, which AdamW then counts up once per parameter.
    """
    groups = engine.optimizer.param_groups
    known = [{key: value for key, value in group.items() if key not in ("params", "step")} for group in groups]
    yield
    for group, values in zip(engine.optimizer.param_groups, known, strict=True):
        group.update(values)
    optimizer = engine.basic_optimizer
    for parameter, state in optimizer.state.items():
        if "step" in state:
            # AdamW wants it where its kind of step runs.
            device = parameter.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(device, copy=True)


@contextlib.contextmanager
def restored_linear() -> Iterator[None]:
    """Restores `torch.nn.functional.linear`, which DeepSpeed 0.19.8 replaces for ZeRO 3 and leaves replaced."""
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


def attend_causally(llm: Any) -> None:
    """Makes a transformers model attend causally by SDPA's own flag, without a mask: a mask rules out the flash kernel.

    For whole sequences only. transformers 5.23 leaves the mask away by itself, but not while torch 2.13 compiles the model.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
    llm.set_attn_implementation(_CAUSAL)


def connect_accelerate(on_cpu: bool, launched: bool) -> None:
    """Connects accelerate to the process group.

    accelerate 1.15 leaves several processes on a machine without a GPU unconnected unless it is told of the CPU. It takes any
    process with a LOCAL_RANK for one of several and wraps its model. It logs every file of every checkpoint.

    Args:
        on_cpu: Whether the processes compute on CPUs.
        launched: Whether a launcher started this process.
    """
    from accelerate import PartialState

    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if on_cpu:
        # accelerate imports DeepSpeed, which warns of the missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    hidden = None if launched else os.environ.pop("LOCAL_RANK", None)
    PartialState(cpu=on_cpu)
    if hidden is not None:
        os.environ["LOCAL_RANK"] = hidden
