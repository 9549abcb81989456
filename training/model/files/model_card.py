"""Writes the `README.md` of an exported model: what it is, how to open it, what it was trained on, and its results.

Every number comes from the run's provenance. What a run can't know, such as a licence, is left open.
"""

import math
from typing import Any

from pipeline.common.measured_json import restored
from pipeline.config.recipe import Recipe

_HEAD = """---
library_name: transformers
tags:
- world-model
- video-prediction
- ivideogpt
---
"""
_PLAIN = """import torch
from transformers import AutoModelForCausalLM

llama = AutoModelForCausalLM.from_pretrained("transformer")  # tokens to the next tokens
"""
_PIPELINE = """from training import WorldModel

model = WorldModel.from_pretrained(".")
session = model.start(context_frames)  # ({context}, 3, {side}, {side}) in [0, 1]
frame, reward = session.step({action})
"""


def model_card(provenance: dict[str, Any], recipe: Recipe) -> str:
    """Returns the card as Markdown.

    Args:
        provenance: Content of `provenance.json`: summary of the run, layout of its clips, data sets. Non-finite numbers are in
            the form of `pipeline.common.measured_json`.
        recipe: Resolved recipe.
    """
    layout = provenance["layout"]
    heads = [name for name, there in (("actions", recipe.model.actions), ("rewards", recipe.model.rewards)) if there]
    future = layout["clip_length"] - layout["context_length"]
    context = f"{layout['context_length']} frames{', the first of them the goal' if layout['goal'] else ''}"
    lines = [
        f"# World model, {_short(provenance['parameters'])} parameters, {layout['resolution']} x {layout['resolution']} pixels",
        "",
        f"A Llama over the tokens of a compressive video tokenizer, in the layout of iVideoGPT (arXiv 2405.15223). From "
        f"{context}{' and the action before each next one' if recipe.model.actions else ''} it predicts {future} frames"
        f"{' and their rewards' if recipe.model.rewards else ''}.",
        "",
        "## Open it",
        "",
        *_loading(layout, bool(heads), recipe.model.actions),
        "",
        *_training(provenance, recipe),
        "",
        *_results(restored(provenance)),
        "",
        "## Where it comes from",
        "",
        f"- tokenizer: SHA-256 of its weights {layout['tokenizer_sha256']}",
        "- `recipe.yaml`: all settings; `provenance.json`: these numbers, the mixture by step, SHA-256 of all files",
        *[f"- {name} {version}" for name, version in provenance["software"].items()],
        "",
        "## Licence",
        "",
        "None yet: whoever publishes these weights must choose one that the licences of the data sets and the tokenizer allow.",
        "",
    ]
    return _HEAD + "\n".join(lines)


def _loading(layout: dict[str, Any], has_heads: bool, actions: bool) -> list[str]:
    code = _PIPELINE.format(
        context=layout["context_length"], side=layout["resolution"], action="action" if actions else ""
    ).rstrip()
    if has_heads:
        text = "`transformer/` holds a Llama under `llm` and the heads next to it, as in iVideoGPT's action-conditioned models."
        return [text + " With the ivideogpt-pipeline package:", "", "```python", code, "```"]
    return [
        "`transformer/` is a plain Llama:",
        "",
        *("```python", _PLAIN.rstrip(), "```"),
        "",
        "With the ivideogpt-pipeline package, which also reads `tokenizer/` (a `CompressiveVQModel` in diffusers' layout):",
        "",
        *("```python", code, "```"),
    ]


def _training(provenance: dict[str, Any], recipe: Recipe) -> list[str]:
    training = recipe.training
    done, planned = provenance["steps"], training.steps
    facts = [
        f"{done} steps of {training.global_batch} clips{f', of {planned} planned' if done < planned else ''}: "
        f"{_short(provenance['ids'])} tokens",
        f"{training.precision}, ZeRO {training.zero_stage}, learning rate {training.learning_rate:g}, {training.schedule}",
        f"{provenance['processes']} x {provenance['hardware']}, {_or_unknown(provenance['tokens_per_second'])} tokens/s "
        "at the end" + (f", {provenance['mfu']:.1%} of peak FLOPs" if provenance["mfu"] else ""),
    ]
    if provenance.get("skipped_steps"):
        facts.append(f"{provenance['skipped_steps']} steps were skipped: their loss or gradient was not finite")
    if training.init_from is not None:
        facts.insert(0, f"started from the Llama of {training.init_from}")
    return ["## Training", "", *[f"- {fact}" for fact in facts]]


def _results(provenance: dict[str, Any]) -> list[str]:
    losses = provenance["held_out_loss_by_dataset"] or {}
    lines = [
        "## Results",
        "",
        f"Loss in nats per target token: {_loss(provenance['loss'])} in the last steps of training, "
        f"{_loss(provenance['held_out_loss'])} on held-out clips. A model that only knows how often each token occurs would "
        f"reach {_loss(provenance['label_entropy'])}.",
        "",
        "| data set | share of samples | clips seen | epochs | held-out loss |",
        "|---|---|---|---|---|",
    ]
    total = sum(provenance["samples"].values())
    for name, dataset in provenance["datasets"].items():
        seen = provenance["samples"].get(name, 0)
        share, epochs = seen / total if total else 0.0, seen / dataset["positions"]
        lines.append(f"| {_cell(name)} | {share:.2%} | {seen} | {epochs:.2f} | {_loss(losses.get(name))} |")
    if frames := provenance["held_out_loss_by_frame"]:
        lines += ["", "Held-out loss by future frame: " + ", ".join(f"+{name} {_loss(loss)}" for name, loss in frames.items())]
    return lines


def _cell(text: str) -> str:
    """Returns a name that is safe in a table cell."""
    return "`" + " ".join(text.replace("|", "/").replace("`", "'").split()) + "`"


def _loss(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if math.isfinite(value) else f"not finite ({value})"


def _or_unknown(value: float | None) -> str:
    return "unknown" if value is None else _short(value)


def _short(number: float) -> str:
    """Returns a large number with a unit: 33.6 G."""
    for power, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= power:
            return f"{number / power:.3g}{unit}"
    return f"{number:.3g}"
