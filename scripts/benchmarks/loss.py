"""Compares the loss over chunks of logits with the plain loss: full logits in fp32, kept for the backward pass.

Both take the same hidden states at labelled positions and the same head, alternating in one process: the best time of several
forward and backward passes, and the memory beyond inputs, weights and gradients. On a GPU it is the allocator's memory; on a
CPU the peak of the process's resident set, which Linux resets on request. The last line is one JSON object.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from training.model.loss import CHUNK, next_token_losses

Loss = Callable[[nn.Linear, torch.Tensor, torch.Tensor], torch.Tensor]


def plain(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all logits at once."""
    return nn.functional.cross_entropy(head(hidden).flatten(0, 1).float(), targets.flatten())


def chunked(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same loss as in training: over chunks of logits."""
    return next_token_losses(head, hidden, targets).mean()


def resident(field: str) -> int:
    """A memory field of this process in bytes: `VmRSS` (current) or `VmHWM` (peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(loss: Loss, head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    """Seconds and additional bytes of a forward and backward pass."""
    on_gpu = hidden.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    began = time.perf_counter()
    loss(head, hidden, targets).backward()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return seconds, (torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")) - before


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64 if on_gpu else 32)
    parser.add_argument("--labels", type=int, default=237, help="Labelled positions per clip.")
    parser.add_argument("--width", type=int, default=768 if on_gpu else 128)
    parser.add_argument("--vocabulary", type=int, default=16386)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16" if on_gpu else "fp32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    torch.manual_seed(0)
    head = nn.Linear(options.width, options.vocabulary, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(options.clips, options.labels, options.width, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, options.vocabulary, (options.clips, options.labels), device=device)
    ways: dict[str, Loss] = {"plain": plain, "chunked": chunked}
    seconds = dict.fromkeys(ways, float("inf"))
    memory = dict.fromkeys(ways, 0)
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(options.repeats + 1):  # the first run fills allocators and caches
        for name, way in ways.items():
            taken, size = measure(way, head, hidden, targets)
            seconds[name], memory[name] = min(seconds[name], taken), size
            assert head.weight.grad is not None
            gradients[name] = head.weight.grad.clone()
            head.weight.grad.zero_()
    difference = (gradients["plain"] - gradients["chunked"]).abs().max() / gradients["plain"].abs().max()
    result = {
        "benchmark": "loss",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "settings": vars(options),
        "chunk": CHUNK,
        "peak_mib": {name: size / 2**20 for name, size in memory.items()},
        "seconds": seconds,
        "measured": memory["chunked"],
        "ceiling": memory["plain"],
        "ratio": memory["chunked"] / memory["plain"],
        "greatest_difference_of_gradients": float(difference),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
