"""Measures everything about the tokenize stage on a device with one command; the last line is one JSON object.

For every size and precision, `tokenize_stage.py` runs in its own process, so that compile time and peak memory belong to one
combination. A combination that fails is listed with its last line, and the others continue. With --parity, the ids of every
precision on the device are compared with the reference ids of fp32 on a CPU. Prints a Markdown table for `docs/performance.md`
before the last line.

    python scripts/benchmarks/tokenizer_check.py --parity PARITY

measures everything on a GPU; without one use `--sizes tiny --precisions fp32`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.worker.encoder import BatchEncoder

STAGE = Path(__file__).with_name("tokenize_stage.py")
# Batch size and episodes per made shard that keep a GPU of 80 GiB busy for about a minute.
BATCHES = {"tiny": (8, 4), "published": (64, 400), "published-256": (8, 100)}
COLUMNS = {
    "size": "size",
    "precision": "precision",
    "batch": "batch",
    "eager_fp32": "eager fp32, clips/s",
    "ceiling": "bare model, clips/s",
    "ceiling_over_eager_fp32": "over eager",
    "share_of_bf16_peak": "share of bf16 peak",
    "measured": "stage, clips/s",
    "ratio": "stage / bare",
    "seconds_to_first_batch": "first batch, s",
    "peak_memory_gib": "peak memory, GiB",
}


def run_stage(size: str, precision: str, more: list[str]) -> dict[str, Any]:
    """The result of `tokenize_stage.py`, or `failed` with its last error line."""
    batch, episodes = BATCHES[size]
    options = ["--size", size, "--precision", precision, "--batch", str(batch), "--episodes", str(episodes), *more]
    done = subprocess.run([sys.executable, str(STAGE), *options], capture_output=True, text=True, check=False)
    chosen = {"size": size, "precision": precision}
    if done.returncode:
        return {**chosen, "failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), **chosen}


def agreement(folder: Path, precision: str, device: torch.device) -> float:
    """Share of ids on the device that equal the reference ids of a parity fixture (a folder with `expected.npz`)."""
    model = CompressiveVQModel.from_pretrained(str(folder))
    with np.load(folder / "expected.npz") as expected:
        frames, tokens = torch.from_numpy(expected["frames"]), torch.from_numpy(expected["tokens"].astype(np.int64))
    ids = BatchEncoder(model, device, precision, len(frames)).tokenize(list(frames))
    return float((ids.cpu() == tokens).float().mean())


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements as a Markdown table; for a failure, the error replaces the first number."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = {key: str(row.get(key, "")) for key in COLUMNS}
        if "failed" in row:
            cells["batch"] = f"failed: {row['failed']}"
        lines.append("| " + " | ".join(cells.values()) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=BATCHES, default=["published", "published-256"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--parity", type=Path, help="Folder of parity fixtures, each with `tokenizer/` and `expected.npz`.")
    parser.add_argument("--seconds", default="5", help="Seconds of each timing of bare models.")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for size in options.sizes:
        for precision in options.precisions:
            rows.append(run_stage(size, precision, ["--seconds", options.seconds]))
            print(json.dumps(rows[-1]), file=sys.stderr)
    folders = sorted(path.parent for path in options.parity.glob("*/expected.npz")) if options.parity else []
    same = {folder.name: {name: round(agreement(folder, name, device), 6) for name in options.precisions} for folder in folders}
    print(table(rows))
    result = {
        "benchmark": "tokenizer_check",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "runs": rows,
        "ids_equal_to_fp32_on_cpu": same,
    }
    print(json.dumps(result))
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
