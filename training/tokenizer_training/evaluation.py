"""How good a tokenizer is on episodes it was not trained on: PSNR and LPIPS of its reconstructions, use of its codebooks."""

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
    """Numbers of one evaluation.

    Attributes:
        clips: Clips it was measured on.
        context_psnr: Of context frames' reconstructions, in dB.
        future_psnr: Of future frames' reconstructions, in dB.
        repeat_psnr: Of repeating the last context frame in place of the future frames, for comparison.
        context_codes_used: Share of the context codebook that these clips use.
        context_perplexity: Exponential of the entropy of the context ids.
        future_codes_used: Share of the dynamics codebook that these clips use.
        future_perplexity: Exponential of the entropy of the future ids.
        context_lpips: Perceptual distance of context frames' reconstructions; None without VGG16's weights.
        future_lpips: Of future frames' reconstructions.
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
        """The numbers by name, rounded for people, without those that were not measured."""
        return {name: round(value, 4) for name, value in dataclasses.asdict(self).items() if value is not None}


@torch.no_grad()
def evaluate_tokenizer(model: CompressiveVQModel, batches: Iterable[Tensor], lpips: LPIPS | None = None) -> TokenizerReport:
    """Reconstruct clips.

    Args:
        model: In any mode; it is put back into it.
        batches: Clips (B, T, 3, S, S) in [0, 1], on the model's device.
        lpips: To measure it too.
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
    """Publish a contact sheet: truth, reconstruction and their difference of each clip (B, T, 3, S, S)."""
    training = model.training
    model.eval()
    output = model(clips)
    model.train(training)
    context, length = model.config.context_length, clips.shape[1]
    made = torch.cat([output.context_reconstruction, output.future_reconstruction], dim=1).float().clamp(0, 1).cpu()
    strips = []
    for truth, reconstruction in zip(clips.cpu(), made, strict=True):
        strips += [Strip("truth", truth, length), Strip("reconstruction", reconstruction, length)]
        strips.append(Strip("difference", pictures.difference(reconstruction, truth), length))
    pictures.write_contact_sheet(path, strips, context)


def _distances(lpips: LPIPS, reconstruction: Tensor, frames: Tensor) -> Tensor:
    return lpips(reconstruction.float().clamp(0, 1).flatten(0, 1), frames.flatten(0, 1))


def _frame_errors(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error of each frame, one dimension."""
    return (reconstruction.float().clamp(0, 1) - frames).square().mean(dim=(2, 3, 4)).reshape(-1)


def _mean_psnr(errors: Tensor) -> float:
    """Mean over frames."""
    return float(psnr(errors.cpu().numpy()).mean())
