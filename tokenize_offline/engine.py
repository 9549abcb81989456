"""The frozen tokenizer as an engine: lists of clips in, ids out, in one static shape and one precision.

Every batch has the same shape, the last one padded, so that kernels never change between batches and the ids of a clip
don't depend on how full its batch is. Running out of memory halves the batch for good.
"""

import contextlib
import logging

import torch
from torch import Tensor

from pipeline.recipe import Precision
from tokenize_offline.tokenizer import CompressiveVQModel

log = logging.getLogger(__name__)

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TokenizerEngine:
    """Runs a tokenizer on one device.

    Attributes:
        model: The tokenizer, in evaluation mode, on `device`.
        device: Where it runs.
        batch: Clips that go through at once.
    """

    def __init__(self, model: CompressiveVQModel, device: torch.device, precision: Precision, batch: int) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.batch = batch
        self._autocast = _AUTOCAST.get(precision)
        # cuDNN rounds convolutions to TF32 unless told otherwise; fp32 is to mean fp32, as in the published ids.
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    def tokenize(self, clips: list[Tensor]) -> Tensor:
        """Ids (N, L) int64, on the device and perhaps still being computed, of N clips (T, 3, S, S) in [0, 1]."""
        ids: list[Tensor] = []
        done = 0
        while done < len(clips):
            part = clips[done : done + self.batch]
            made = self._attempt(part)
            if made is None:
                self.batch = (self.batch + 1) // 2
                if self.device.type != "cpu":
                    torch.accelerator.empty_cache()
                log.warning("out of memory on %s: from now on %d clips at once", self.device, self.batch)
                continue
            ids.append(made)
            done += len(part)
        return torch.cat(ids)

    def _attempt(self, clips: list[Tensor]) -> Tensor | None:
        """As `_run`, but None where memory is short; what the attempt held is free again then."""
        try:
            return self._run(clips)
        except (RuntimeError, MemoryError) as error:
            if self.batch == 1 or not _is_out_of_memory(error):
                raise
        return None

    def _run(self, clips: list[Tensor]) -> Tensor:
        frames = torch.zeros(self.batch, *clips[0].shape, pin_memory=self.device.type == "cuda")
        torch.stack(clips, out=frames[: len(clips)])
        return self.ids_of(frames.to(self.device, non_blocking=True))[: len(clips)]

    @torch.inference_mode()
    def ids_of(self, frames: Tensor) -> Tensor:
        """Ids (B, L) of one batch (B, T, 3, S, S) that is on the device already: the bare model, in the engine's precision."""
        with self._precision():
            return self.model.tokenize(frames)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._autocast)


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError; `DefaultCPUAllocator` is what its messages have in common.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
