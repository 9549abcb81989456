"""Measures everything about training on a device with one command; the last line is one JSON object.

For every model and ZeRO stage, with and without torch.compile, `train.py` runs in its own process, so that peak memory belongs
to one combination. A combination that fails is listed with its last line, and the others continue. The published way is
measured for the first combination of each model, and `loss.py` compares the memory of the loss with the plain loss. Prints a
Markdown table for `docs/performance.md` before the last line.

    python scripts/benchmarks/train_check.py

measures everything on a GPU; without one use `--models tiny --stages 1 --compile off`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = {
    "model": "model",
    "stage": "ZeRO",
    "compile": "compile",
    "clips": "clips/s",
    "ids": "ids/s",
    "mfu": "MFU",
    "resident": "over a resident batch",
    "data_wait": "data wait",
    "memory": "peak memory, GiB",
    "published": "over the published way",
}


def run(script: str, options: list[str]) -> dict[str, Any]:
    """The result on a benchmark's last line, or `failed` with its last error line."""
    words = [sys.executable, str(HERE / script), *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def cells(model: str, stage: int, compiled: bool, result: dict[str, Any]) -> dict[str, str]:
    """A row of the table; for a failure, the error replaces the first number."""
    row = {"model": model, "stage": str(stage), "compile": "on" if compiled else "off"}
    if "failed" in result:
        return row | {"clips": f"failed: {result['failed']}"}
    speed = result["train_clips_per_second"]
    row |= {
        "clips": f"{speed['measured']:.4g}",
        "ids": f"{result['ids_per_second']:.4g}",
        "mfu": f"{result['mfu']:.1%}" if result["mfu"] else "",
        "resident": f"{speed['ratio']:.3f}",
        "data_wait": f"{result['data_wait']:.2%}",
        "memory": f"{result['peak_memory_gib']:.2f}",
    }
    return row | ({"published": f"{result['over_published']:.2f}"} if "over_published" in result else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["tiny", "small", "medium"], default=["small", "medium"])
    parser.add_argument("--stages", nargs="+", type=int, choices=[0, 1, 2, 3], default=[1, 2, 3])
    parser.add_argument("--compile", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--loss", nargs="*", default=[], metavar="OPTION", help="Options of loss.py, such as `clips=8`.")
    parser.add_argument("train", nargs="*", metavar="OPTION", help="Options of train.py, such as `global_batch=32`.")
    options = parser.parse_args()
    runs, rows = [], []
    for model in options.models:
        for number, (stage, compiled) in enumerate((s, c == "on") for s in options.stages for c in options.compile):
            words = [word for pair in options.train for word in ("--" + pair.partition("=")[0], pair.partition("=")[2])]
            words += ["--model", model, "--zero_stage", str(stage), *(["--compile"] if compiled else [])]
            result = run("train.py", words if number else [*words, "--published"])
            runs.append({"model": model, "stage": stage, "compile": compiled, **result})
            rows.append(cells(model, stage, compiled, result))
            print(f"{model}, ZeRO {stage}, compile {compiled}: done", file=sys.stderr)
    loss = run("loss.py", [word for pair in options.loss for word in ("--" + pair.partition("=")[0], pair.partition("=")[2])])
    print("| " + " | ".join(COLUMNS.values()) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(row.get(key, "") for key in COLUMNS) + " |")
    print(json.dumps({"benchmark": "train_check", "runs": runs, "loss": loss}))
    return int(any("failed" in result for result in (*runs, loss)))


if __name__ == "__main__":
    sys.exit(main())
