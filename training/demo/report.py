"""Reports the demo's results: what each stage did and how fast, how good the model is, and where the pictures are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.demo.stages import StageResult

# What each stage did, as a template for its summary; and the summary's key of what this run did, with its unit.
_DID = {
    "simulate": "{frames} frames of PushT as RLDS",
    "ingest": "{episodes} episodes in {shards} shards",
    "tokenize": "{rows} clips in {shards} shards",
    "train": "{steps} steps, 2 processes",
    "predict": "{episodes} new episodes",
}
_MADE = {
    "simulate": ("frames_made", "frames"),
    "ingest": ("frames_made", "frames"),
    "tokenize": ("rows", "clips"),
    "train": ("steps_made", "steps"),
    "predict": ("episodes", "episodes"),
}


def report(output: Path, results: Sequence[StageResult], seconds: float) -> tuple[str, dict[str, Any]]:
    """Returns the report as text and as a mapping.

    Args:
        output: Output folder of the demo.
        results: Results of all stages.
        seconds: Duration of this run of the demo.
    """
    stages = {result.name: result for result in results}
    training = stages["train"].summary
    quality = json.loads((output / "predictions" / "metrics.json").read_text(encoding="utf-8"))
    loss = _losses(output / "run" / "metrics.jsonl")
    facts = {
        "seconds": round(seconds, 1),
        "stages": {name: {"seconds": round(stage.seconds, 1), **stage.summary} for name, stage in stages.items()},
        "loss": {**loss, "label_entropy": training.get("label_entropy"), "held_out": training.get("held_out_loss")},
        "prediction": {key: quality[key] for key in ("prediction", "repeat_last_frame", "reconstruction")},
    }
    return _text(output, stages, facts), facts


def _losses(metrics: Path) -> dict[str, float | None]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {"first": losses[0], "last": losses[-1]}


def _text(output: Path, stages: dict[str, StageResult], facts: dict[str, Any]) -> str:
    rows = [("stage", "what it did", "time", "speed")]
    rows += [(name, _did(stage), f"{stage.seconds:.0f} s", _speed(stage)) for name, stage in stages.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    loss, quality = facts["loss"], facts["prediction"]
    mean, repeat, ceiling = quality["prediction"]["mean"], quality["repeat_last_frame"], quality["reconstruction"]
    pictures = sorted((output / "predictions").rglob("prediction.gif"))
    return "\n".join(
        [
            *lines,
            "",
            f"loss in nats per token: {_number(loss['first'])} at the first step, {_number(loss['last'])} at the last, "
            f"{_number(loss['held_out'])} on held-out episodes",
            f"entropy of the target tokens, the loss of knowing only their frequencies: {_number(loss['label_entropy'])}",
            "",
            "new episodes, mean over predicted frames        PSNR     SSIM",
            f"  prediction from one frame and the actions    {mean['mean_psnr']:6.2f}   {mean['mean_ssim']:6.3f}",
            f"  repeating the last context frame             {repeat['mean_psnr']:6.2f}   {repeat['mean_ssim']:6.3f}",
            f"  the tokenizer's own reconstruction (ceiling) {ceiling['mean_psnr']:6.2f}   {ceiling['mean_ssim']:6.3f}",
            "",
            f"{_duration(stages, facts['seconds'])}. Pictures: {pictures[0]}",
            f"and {pictures[0].with_name('contact_sheet.png')}; everything is in {output}.",
        ]
    )


def _duration(stages: dict[str, StageResult], seconds: float) -> str:
    whole = all(_is_whole(stage) for stage in stages.values())
    return f"{'The demo' if whole else 'This run, which resumed an earlier one,'} took {seconds / 60:.1f} minutes"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def made_now(result: StageResult) -> int:
    """Returns how much a stage did in this run, in the unit of its speed; 0 if it was already done."""
    key, _ = _MADE[result.name]
    return int(result.summary.get(key, 0))


def _did(result: StageResult) -> str:
    made = made_now(result)
    if not made:
        return "already done"
    _, unit = _MADE[result.name]
    text = _DID[result.name].format_map(result.summary)
    if before := result.summary.get("shards_done_before"):
        return f"{text}, {before} shards already done"
    return text if _is_whole(result) else f"{text}, {made} {unit} of these in this run"


def _is_whole(result: StageResult) -> bool:
    """Returns whether a stage did all of its work in this run."""
    made = made_now(result)
    _, unit = _MADE[result.name]
    return made > 0 and not result.summary.get("shards_done_before") and result.summary.get(unit, made) == made


def _speed(result: StageResult) -> str:
    made = made_now(result)
    return f"{made / result.seconds:.1f} {_MADE[result.name][1]}/s with start-up" if made else ""
