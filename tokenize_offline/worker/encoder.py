"""Runs the frozen tokenizer on batches of clips, in one static shape and one precision.

All batches have the same shape (the last one is padded), so kernels never change, and a clip's ids don't depend on how full its
batch is. When memory runs out, the batch size is halved and stays so (`batch_size_cache` stores it for later runs).

Convolutions run channels-last. On a GPU the encoders are compiled, which fuses normalisation and activation; on the CPU
compiling took three minutes and gained nothing. In half precision only the encoders' weights are rounded; code distances and
decoding use fp32.
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
# Modules of a model that encode, without the codebooks.
_ENCODER_MODULES = ("encoder", "quant_conv", "cond_encoder", "quant_linear")


class BatchEncoder:
    """Runs a tokenizer on one device.

    Attributes:
        model: The tokenizer in fp32 and evaluation mode, on `device`.
        device: Device of the model.
        batch: Batch size in clips.
    """

    def __init__(
        self,
        model: CompressiveVQModel,
        device: torch.device,
        precision: Precision,
        batch: int,
        on_halved: Callable[[int], None] = lambda batch: None,
    ) -> None:
        """Move the model to the device and prepare it.

        Args:
            model: The tokenizer; it is set to evaluation mode.
            device: Device to run on.
            precision: Precision of the encoders.
            batch: Initial batch size in clips.
            on_halved: Called with the new batch size when memory ran out.
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
        # By default cuDNN rounds convolutions to TF32, but fp32 must give the published ids. Matrix products are never rounded,
        # because they include the distances to codes; nearly all work is in convolutions.
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False

    def tokenize(self, clips: list[Tensor]) -> Tensor:
        """Encode N clips (T, 3, S, S) in [0, 1]; returns ids (N, L) int64 on the device, which may still compute them."""
        ids: list[Tensor] = []
        done = 0
        while done < len(clips):
            batch = clips[done : done + self.batch]
            batch_ids = self._attempt(batch)
            if batch_ids is None:
                self.batch = (self.batch + 1) // 2
                if self.device.type != "cpu":
                    torch.accelerator.empty_cache()
                log.warning("out of memory on %s: reducing the batch size to %d clips", self.device, self.batch)
                self._on_halved(self.batch)
                continue
            ids.append(batch_ids)
            done += len(batch)
        return torch.cat(ids)

    def _attempt(self, clips: list[Tensor]) -> Tensor | None:
        """The result of `_run`, or None if memory ran out; the memory of the attempt is free again then."""
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
        """Ids (B, L) of one batch (B, T, 3, S, S) on the device, without batching or retries."""
        return self._tokenize(frames.to(self._type))

    @torch.inference_mode()
    def squared_error(self, clip: Tensor, ids: Tensor) -> Tensor:
        """Mean squared error of each frame of a clip after decoding its ids in fp32, (T) on the device.

        Args:
            clip: (T, 3, S, S) in [0, 1].
            ids: (L) int64, ids of the clip.
        """
        decoded = self.model.detokenize(ids[None].to(self.device))[0].clamp(0, 1)
        return (decoded - clip.to(self.device)).square().mean(dim=(1, 2, 3))


def _rounded(model: CompressiveVQModel, dtype: torch.dtype) -> CompressiveVQModel:
    """A copy of the model with encoders in half precision. Decoders and codebooks are shared."""
    rounded = copy.copy(model)
    rounded._modules = dict(model._modules)
    for name in _ENCODER_MODULES:
        setattr(rounded, name, copy.deepcopy(getattr(model, name)).to(dtype))
    return rounded


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError whose message contains `DefaultCPUAllocator`.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
