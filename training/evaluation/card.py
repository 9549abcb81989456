"""Writes the evaluation card: a JSON and a Markdown file with results, data, weights, protocol and versions."""

import json
import platform
from pathlib import Path
from typing import Literal, TypedDict

from pipeline.common import storage
from pipeline.common.manifests import sha256_of
from pipeline.common.measured_json import measured_json
from pipeline.common.versions import PROJECT, installed_versions
from training.evaluation.coverage import Coverage
from training.evaluation.data import DataEntry
from training.evaluation.plan import ProtocolEntry
from training.evaluation.scores import ROWS, Rows

CARD_JSON, CARD_MARKDOWN = "evaluation.json", "evaluation.md"
_LIBRARIES = (PROJECT, "torch", "torchmetrics", "transformers", "numpy")
_TITLES = {
    "prediction": "prediction",
    "repeat_last_frame": "repeating the last frame",
    "reconstruction": "tokenizer's reconstruction (ceiling)",
}
_Score = Literal["best", "mean", "best_with_context", "all"]
_SCORES: tuple[_Score, ...] = ("best", "mean", "best_with_context")


class ModelEntry(TypedDict):
    """The card's entry on the model: its name, and the SHA-256 of its weights by file."""

    name: str
    weights: dict[str, str]


class EvaluationCard(TypedDict):
    """The content of `evaluation.json`."""

    evaluated: Coverage
    model: ModelEntry
    protocol: ProtocolEntry
    sampling: dict[str, object]
    metrics: dict[str, str]
    data: dict[str, DataEntry]
    results: dict[str, Rows]
    versions: dict[str, str]


def weights_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each weights file of a model folder, by its relative path."""
    return {str(file.relative_to(folder)): sha256_of(file) for file in sorted(folder.glob("*/*.safetensors"))}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that affect the scores."""
    return {"python": platform.python_version()} | installed_versions(_LIBRARIES)


def write_card(output: str, card: EvaluationCard) -> None:
    """Publishes both files in a folder or URL."""
    storage.write_bytes(storage.join(output, CARD_JSON), measured_json(card, indent=1).encode() + b"\n")
    storage.write_bytes(storage.join(output, CARD_MARKDOWN), as_markdown(card).encode())


def as_markdown(card: EvaluationCard) -> str:
    """Returns the card as Markdown."""
    protocol = card["protocol"]
    trained_on = ", on episodes that it was TRAINED ON" if card["evaluated"]["trained_on"] else ""
    lines = [f"# Evaluation of {card['model']['name']}{trained_on}", "", f"{card['evaluated']['in_words']}.", ""]
    lines += [
        f"{protocol['future']} frames predicted from {protocol['context']} at {protocol['resolution']} x "
        f"{protocol['resolution']} pixels, {protocol['samples']} sample(s) per clip"
        f"{', with actions' if protocol['with_actions'] else ''}. Protocol: {protocol['name'] or 'none published'}.",
        "",
    ]
    lines += [f"- differs from the protocol: {text}" for text in protocol["departures"]]
    lines += [f"- {name} is left out: {reason}" for name, reason in card["evaluated"]["left_out_data_sets"].items()]
    for dataset, rows in card["results"].items():
        lines += ["", f"## {dataset}", "", *_table(rows, protocol["samples"]), "", *_per_frame(rows)]
    if protocol["published"]:
        lines += ["", "## Published results with this protocol (SSIM and LPIPS times 100)", ""]
        lines += [
            f"- {name}: " + ", ".join(f"{m} {v:g}" for m, v in row.items()) for name, row in protocol["published"].items()
        ]
    lines += ["", "## Metrics and sampling", ""]
    lines += [f"- {name}: {text}" for name, text in card["metrics"].items()]
    lines += [f"- {name}: {value}" for name, value in card["sampling"].items()]
    lines += [f"- frames: {protocol['frames']}", "", "## Data", ""]
    lines += [line for name, facts in card["data"].items() for line in _coverage(name, facts)]
    lines += [f"- {name}: `{json.dumps(facts, ensure_ascii=False)}`" for name, facts in card["data"].items()]
    lines += ["", "## Weights (SHA-256)", "", *(f"- `{name}`: {digest}" for name, digest in card["model"]["weights"].items())]
    lines += ["", "## Versions", "", ", ".join(f"{name} {version}" for name, version in card["versions"].items()), ""]
    return "\n".join(lines)


def _coverage(dataset: str, entry: DataEntry) -> list[str]:
    """Returns a table of a data set's evaluated episodes, and a line about the others."""
    lines = [f"{dataset}:", "", "| split | episodes | evaluated | of these, trained on |", "|---|--:|--:|--:|"]
    for split, count in entry["splits"].items():
        lines.append(f"| {split} | {count['episodes']} | {count['evaluated']} | {count['trained_on']} |")
    left = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in entry["left_out"].items() if number)
    return [*lines, "", f"Left out: {left or 'none'}. Frames: {'; '.join(entry['time_step'])}.", ""]


def _table(rows: Rows, samples: int) -> list[str]:
    """Returns a table with one line per score and one column per row of the evaluation, since pages are narrow."""
    metrics = list(rows["prediction"])
    titles = {"best": f"best of {samples}", "mean": "mean of samples", "best_with_context": "best, context frames included"}
    all_videos: tuple[_Score, ...] = ("all",)
    scores = [(name, score) for name in metrics for score in (_SCORES if name != "fvd" else all_videos)]
    lines = [f"| | {' | '.join(_TITLES[row] for row in ROWS)} |", "|---" + "|--:" * len(ROWS) + "|"]
    for name, score in scores:
        head = name.upper() if score == "all" else f"{name.upper()}, {titles[score]}"
        lines.append(f"| {head} | {' | '.join(f'{rows[row][name][score]:.4g}' for row in ROWS)} |")
    return lines


def _per_frame(rows: Rows) -> list[str]:
    lines = []
    for name, found in rows["prediction"].items():
        if name == "fvd":
            continue
        heads = " | ".join(f"+{number}" for number in range(1, len(found["per_frame"]) + 1))
        lines += [f"{name.upper()} by frame:", "", f"| | {heads} |", "|---" * (len(found["per_frame"]) + 1) + "|"]
        for row in ROWS:
            lines.append(f"| {_TITLES[row]} | " + " | ".join(f"{v:.4g}" for v in rows[row][name]["per_frame"]) + " |")
        lines.append("")
    return lines
