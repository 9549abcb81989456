"""Measures the effect of each precision on a tokenizer's ids and reconstructions; the last line is one JSON object.

On clips of real episode shards: the share of context and future ids that differ from fp32 on the same device, the PSNR of the
reconstruction (always decoded in fp32), and whether a clip's ids depend on its position and neighbours in a batch or on the
batch size.
"""

import argparse
import json
import sys

import torch

from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.shards import open_shard
from tokenize_offline.clips.decode import read_clips
from tokenize_offline.clips.sampling import resolve_clips
from tokenize_offline.metrics import psnr
from tokenize_offline.tasks import find_shards
from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.worker.encoder import BatchEncoder


def clips_of(folders: list[str], config: ClipsConfig, side: int, count: int) -> list[torch.Tensor]:
    """The first `count` clips (T, 3, S, S) of the shards."""
    found: list[torch.Tensor] = []
    for task in find_shards(folders):
        for episode in open_shard(task.source):
            found += read_clips(episode, config, views=1, held_out_share=0, side=side).pixels
            if len(found) >= count:
                return found[:count]
    return found


def decoded_psnr(model: CompressiveVQModel, ids: torch.Tensor, clips: list[torch.Tensor], batch: int) -> float:
    """PSNR of the decoded ids in dB, from the mean squared error over all pixels."""
    error = 0.0
    for start in range(0, len(clips), batch):
        truth = torch.stack(clips[start : start + batch]).to(ids.device)
        decoded = model.detokenize(ids[start : start + batch]).clamp(0, 1)
        error += (decoded - truth).square().mean(dim=(1, 2, 3, 4)).sum().item()
    return float(psnr(error / len(clips)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--length", type=int, default=None, help="Frames per clip.")
    parser.add_argument("--stride", default="reference")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CompressiveVQModel.from_pretrained(options.tokenizer)
    config = resolve_clips(ClipsConfig(length=options.length, stride=options.stride), model.config.context_length)
    clips = clips_of(options.shards, config, model.config.resolution, options.clips)
    special = model.id_layout.start_of_context
    context = model.id_layout.prefix_length - 1
    exact = BatchEncoder(model, device, "fp32", options.batch).tokenize(clips)
    precisions = {}
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        encoder = BatchEncoder(model, device, precision, options.batch)
        ids = encoder.tokenize(clips)
        other_size = BatchEncoder(model, device, precision, max(1, options.batch // 2)).tokenize(clips)
        reverse = encoder.tokenize(clips[::-1]).flip(0)
        changed = (ids != exact).float()
        precisions[precision] = {
            "context_ids_changed": round(changed[:, :context][exact[:, :context] < special].mean().item(), 6),
            "future_ids_changed": round(changed[:, context:][exact[:, context:] < special].mean().item(), 6),
            "psnr": round(decoded_psnr(model, ids, clips, options.batch), 3),
            "same_ids_in_other_company": torch.equal(ids, reverse),
            "same_ids_in_other_batch_size": torch.equal(ids, other_size),
        }
    result = {
        "benchmark": "tokenizer_precision",
        "clips": len(clips),
        "tokenizer_sha256": model.weights_sha256,
        "precisions": precisions,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
