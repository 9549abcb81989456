"""Evaluates a tokenizer on held-out clips: PSNR and LPIPS of its reconstructions, use of its codebooks."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenize_offline.metrics import psnr
from tokenize_offline.tokenizer import CompressiveVQModel
from training.metrics.lpips import LPIPS
from training.tokenizer_training.codebooks import CodebookUse
from training.visuals import pictures
from training.visuals.pictures import Strip


@dataclass(frozen=True)
class TokenizerReport:
    """Results of one evaluation.

    Attributes:
        clips: Number of clips.
        context_psnr: PSNR of reconstructed context frames, in dB.
        future_psnr: PSNR of reconstructed future frames, in dB.
        repeat_psnr: PSNR of the last context frame compared with the future frames, in dB: a baseline.
        context_codes_used: Fraction of the context codebook that these clips use.
        context_perplexity: Exponential of the entropy of the context ids.
        future_codes_used: Fraction of the dynamics codebook that these clips use.
        future_perplexity: Exponential of the entropy of the future ids.
        context_lpips: LPIPS of reconstructed context frames; None without weights of VGG16.
        future_lpips: LPIPS of reconstructed future frames; None without weights of VGG16.
    """

    clips: int
    context_psnr: float
    future_psnr: float
    repeat_psnr: float
    context_codes_used: float
    context_perplexity: float
    future_codes_used: float
    future_perplexity: float
    context_lpips: float | None = None
    future_lpips: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Returns the measured results by name, rounded to four digits."""
        return {name: round(value, 4) for name, value in dataclasses.asdict(self).items() if value is not None}


@torch.no_grad()
def evaluate_tokenizer(model: CompressiveVQModel, batches: Iterable[Tensor], lpips: LPIPS | None = None) -> TokenizerReport:
    """Reconstructs clips and measures the result.

    Args:
        model: The tokenizer; its training mode stays unchanged.
        batches: Clips (B, T, 3, S, S) in [0, 1], on the model's device.
        lpips: Measures LPIPS; None leaves it out.
    """
    training = model.training
    model.eval()
    config, device = model.config, next(model.parameters()).device
    context_use = CodebookUse.empty(config.num_vq_embeddings, device)
    future_use = CodebookUse.empty(config.num_dyn_embeddings, device)
    clips = 0
    errors: dict[str, list[Tensor]] = {"context": [], "future": [], "repeat": []}
    distances: dict[str, list[Tensor]] = {"context": [], "future": []}
    for frames in batches:
        output = model(frames)
        context, future = frames[:, : config.context_length], frames[:, config.context_length :]
        errors["context"].append(_frame_errors(output.context_reconstruction, context))
        errors["future"].append(_frame_errors(output.future_reconstruction, future))
        errors["repeat"].append(_frame_errors(context[:, -1:].expand_as(future), future))
        if lpips is not None:
            distances["context"].append(_distances(lpips, output.context_reconstruction, context))
            distances["future"].append(_distances(lpips, output.future_reconstruction, future))
        context_use.add(output.context_ids)
        future_use.add(output.future_ids)
        clips += len(frames)
    model.train(training)
    dbs = {name: _mean_psnr(torch.cat(values)) for name, values in errors.items()}
    measured = {f"{name}_lpips": float(torch.cat(values).mean()) for name, values in distances.items() if values}
    return TokenizerReport(
        clips=clips,
        context_psnr=dbs["context"],
        future_psnr=dbs["future"],
        repeat_psnr=dbs["repeat"],
        context_codes_used=context_use.share_used(),
        context_perplexity=context_use.perplexity(),
        future_codes_used=future_use.share_used(),
        future_perplexity=future_use.perplexity(),
        **measured,
    )


@torch.no_grad()
def write_reconstructions(path: str, model: CompressiveVQModel, clips: Tensor) -> None:
    """Writes a contact sheet: truth, reconstruction and their difference of each clip (B, T, 3, S, S)."""
    training = model.training
    model.eval()
    output = model(clips)
    model.train(training)
    context, length = model.config.context_length, clips.shape[1]
    reconstructed = torch.cat([output.context_reconstruction, output.future_reconstruction], dim=1).float().clamp(0, 1).cpu()
    strips = []
    for truth, reconstruction in zip(clips.cpu(), reconstructed, strict=True):
        strips += [Strip("truth", truth, length), Strip("reconstruction", reconstruction, length)]
        strips.append(Strip("difference", pictures.difference(reconstruction, truth), length))
    pictures.write_contact_sheet(path, strips, context)


def _distances(lpips: LPIPS, reconstruction: Tensor, frames: Tensor) -> Tensor:
    return lpips(reconstruction.float().clamp(0, 1).flatten(0, 1), frames.flatten(0, 1))


def _frame_errors(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Returns the mean squared error of each frame, (B T,)."""
    return (reconstruction.float().clamp(0, 1) - frames).square().mean(dim=(2, 3, 4)).reshape(-1)


def _mean_psnr(errors: Tensor) -> float:
    """Returns the mean PSNR of frames with these errors, in dB."""
    return float(psnr(errors.cpu().numpy()).mean())
