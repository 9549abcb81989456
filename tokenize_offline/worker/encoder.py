"""The frozen tokenizer as an engine: lists of clips in, ids out, in one static shape and one precision.

Every batch has the same shape, the last one padded, so that kernels never change between batches and the ids of a clip
don't depend on how full its batch is. Running out of memory halves the batch for good (`batch_limit` keeps it for later runs).

Convolutions run channels-last; on a GPU the encoders are compiled, which fuses normalisation and activation. On the CPU
compiling took three minutes and gained nothing. In half precision only the encoders' weights are rounded: distances to codes
and decoding stay fp32.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config.model import Precision
from tokenize_offline.tokenizer import CompressiveVQModel

log = logging.getLogger(__name__)

_HALF: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What tokenizing needs of a model, codebooks excepted.
_ENCODING = ("encoder", "quant_conv", "cond_encoder", "quant_linear")


class BatchEncoder:
    """Runs a tokenizer on one device.

    Attributes:
        model: The tokenizer in fp32 and evaluation mode, on `device`.
        device: Where it runs.
        batch: Clips that go through at once.
    """

    def __init__(
        self,
        model: CompressiveVQModel,
        device: torch.device,
        precision: Precision,
        batch: int,
        on_halved: Callable[[int], None] = lambda batch: None,
    ) -> None:
        """Move the model to the device.

        Args:
            model: In evaluation mode from now on.
            device: Where it runs.
            precision: Of its encoders.
            batch: Clips at once, to begin with.
            on_halved: Called with the new number of clips when memory ran out.
        """
        self.model = model.to(device).eval()
        for weight in self.model.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.device = device
        self.batch = batch
        self._on_halved = on_halved
        self._type = _HALF.get(precision, torch.float32)
        encoding = self.model if self._type == torch.float32 else _rounded(self.model, self._type)
        self._tokenize = torch.compile(encoding.tokenize, dynamic=False) if device.type == "cuda" else encoding.tokenize
        # cuDNN rounds convolutions to TF32 unless told otherwise; fp32 is to mean fp32, as in the published ids. Matrix
        # products are never rounded, for the distances to codes are among them; nearly all work is in convolutions.
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False

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
                self._on_halved(self.batch)
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
        return self._tokenize(frames.to(self._type))

    @torch.inference_mode()
    def squared_error(self, clip: Tensor, ids: Tensor) -> Tensor:
        """Mean squared error (T), on the device, of the frames that a clip's ids (L) decode to; decoded alone, in fp32.

        Args:
            clip: (T, 3, S, S) in [0, 1].
            ids: Its own, int64.
        """
        decoded = self.model.detokenize(ids[None].to(self.device))[0].clamp(0, 1)
        return (decoded - clip.to(self.device)).square().mean(dim=(1, 2, 3))


def _rounded(model: CompressiveVQModel, dtype: torch.dtype) -> CompressiveVQModel:
    """A copy whose encoders are in half precision; decoders and codebooks are shared and stay as they are."""
    made = copy.copy(model)
    made._modules = dict(model._modules)
    for name in _ENCODING:
        setattr(made, name, copy.deepcopy(getattr(model, name)).to(dtype))
    return made


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError; `DefaultCPUAllocator` is what its messages have in common.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
