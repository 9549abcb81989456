"""Draws a prediction for people: an animated GIF of truth and prediction, and a contact sheet as PNG.

Frames are small, so they are enlarged by whole factors without smoothing and show the model's own pixels. Context frames have
an orange border, predicted frames a blue one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.common import storage

_BACKGROUND, _TEXT = (24, 24, 27), (235, 235, 235)
_CONTEXT, _PREDICTED, _TRUE = (245, 166, 35), (64, 140, 255), (110, 110, 118)
_GIF_SIDE, _SHEET_SIDE, _MARGIN, _BORDER = 256, 96, 8, 3
_LAST_FRAME_SECONDS = 1.0
DEFAULT_RATE = 4.0  # frames per second, as in the published code


@dataclass(frozen=True)
class Strip:
    """One video to show.

    Attributes:
        label: Name of the video.
        frames: (T, 3, S, S) in [0, 1].
        predicted_from: Index of the first predicted frame; T if there is none.
    """

    label: str
    frames: torch.Tensor
    predicted_from: int


def write_gif(path: str, strips: Sequence[Strip], context_length: int, rate: float | None = None) -> None:
    """Writes strips side by side as a looping GIF.

    Args:
        path: File to publish.
        strips: Strips of the same length T and size S.
        context_length: Number of context frames.
        rate: Frames per second; None means 4.
    """
    pictures = [side_by_side(strips, number, context_length) for number in range(len(strips[0].frames))]
    # GIF counts hundredths of a second, and browsers slow down GIFs faster than 50 frames per second.
    pause = max(20, round(1000 / (rate or DEFAULT_RATE)))
    durations = [pause] * (len(pictures) - 1) + [max(pause, round(1000 * _LAST_FRAME_SECONDS))]
    with storage.staged(path) as staging:
        pictures[0].save(staging, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def write_contact_sheet(path: str, strips: Sequence[Strip], context_length: int) -> None:
    """Writes strips as rows of a PNG, one column per frame.

    Args:
        path: File to publish.
        strips: Strips of the same length T and size S.
        context_length: Number of context frames.
    """
    length, cell = len(strips[0].frames), _enlarged_side(strips[0].frames.shape[-1], _SHEET_SIDE)
    font = _font()
    left = _MARGIN + max(int(font.getlength(strip.label)) for strip in strips) + _MARGIN
    pitch, top = cell + 2 * _BORDER + 2, 24
    sheet = Image.new("RGB", (left + length * pitch + _MARGIN, top + len(strips) * pitch + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number in range(length):
        draw.text((left + number * pitch + pitch // 2, top // 2), _caption(number, context_length), _TEXT, font, "mm")
    for row, strip in enumerate(strips):
        y = top + row * pitch
        draw.text((_MARGIN, y + pitch // 2), strip.label, _TEXT, font, "lm")
        for number, frame in enumerate(strip.frames):
            sheet.paste(_bordered(frame, _colour(strip, number, context_length), cell), (left + number * pitch, y))
    with storage.staged(path) as staging:
        sheet.save(staging, "PNG")


def difference(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Returns |predicted - truth|, (T, 3, S, S) in [0, 1]; black means equal."""
    return (predicted - truth).abs().clamp(0, 1)


def side_by_side(strips: Sequence[Strip], number: int, context_length: int) -> Image.Image:
    """Returns frame `number` of all strips in one picture, with labels above and the frame's place in time below."""
    cell = _enlarged_side(strips[0].frames.shape[-1], _GIF_SIDE)
    pitch, top, bottom = cell + 2 * _BORDER + _MARGIN, 28, 26
    font = _font()
    picture = Image.new("RGB", (_MARGIN + len(strips) * pitch, top + cell + 2 * _BORDER + bottom), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, strip in enumerate(strips):
        x = _MARGIN + column * pitch
        draw.text((x + pitch // 2, top // 2), strip.label, _TEXT, font, "mm")
        picture.paste(_bordered(strip.frames[number], _colour(strip, number, context_length), cell), (x, top))
    role = "context" if number < context_length else "predicted"
    caption = f"{role} {_caption(number, context_length)}"
    draw.text((picture.width // 2, picture.height - bottom // 2), caption, _TEXT, font, "mm")
    return picture


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(16)


def _caption(number: int, context_length: int) -> str:
    """Returns the place counted from the last context frame: -1, 0, then +1 for the first predicted frame."""
    offset = number - context_length + 1
    return f"+{offset}" if offset > 0 else str(offset)


def _colour(strip: Strip, number: int, context_length: int) -> tuple[int, int, int]:
    if number < context_length:
        return _CONTEXT
    return _PREDICTED if number >= strip.predicted_from else _TRUE


def _enlarged_side(side: int, least: int) -> int:
    return side * max(1, -(-least // side))


def _bordered(frame: torch.Tensor, colour: tuple[int, int, int], side: int) -> Image.Image:
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    factor = side // pixels.shape[0]
    enlarged = np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
    picture = Image.new("RGB", (side + 2 * _BORDER, side + 2 * _BORDER), colour)
    picture.paste(Image.fromarray(enlarged), (_BORDER, _BORDER))
    return picture
