"""Remembers the batch size that fits into a device's memory, in a small file next to the output.

There is a file for each kind of device and shape of clips. Ids don't depend on the batch size, so the file only affects speed;
delete it to try a larger batch again. Processes that write the same file at once have the same device, so they write the same.
"""

import json
import logging
import os

import torch

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.common.manifests import fingerprint
from tokenize_offline.token_layout import TokenLayout

log = logging.getLogger(__name__)


class BatchSizeCache:
    """The batch size limit of one device and layout.

    Attributes:
        path: Path or URL of the file.
    """

    def __init__(self, output: str, device: torch.device, layout: TokenLayout) -> None:
        name, memory = _device_memory(device)
        self._work = {
            "device": name,
            "memory_bytes": memory,
            "precision": layout.precision,
            "resolution": layout.resolution,
            "context_length": layout.context_length,
            "clip_length": layout.clip_length,
            "tokenizer_sha256": layout.tokenizer_sha256,
        }
        self.path = storage.join(output, f"clips-per-batch-{fingerprint(self._work)}.json")

    def limit(self, clips: int) -> int:
        """The smaller of `clips` and the stored limit, if there is one.

        Raises:
            ConfigError: The file is invalid.
        """
        if not storage.exists(self.path):
            return clips
        try:
            limit = int(json.loads(storage.read_bytes(self.path))["clips_per_batch"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} does not hold a batch size ({error!r}): delete it") from error
        if limit < clips:
            log.warning("batches of %d clips, because larger ones ran out of memory; to try again, delete %s", limit, self.path)
        return max(1, min(clips, limit))

    def save(self, clips: int) -> None:
        """Store `clips` as the limit."""
        text = json.dumps({**self._work, "clips_per_batch": clips}, indent=1)
        try:
            storage.write_bytes(self.path, text.encode() + b"\n")
        except OSError as error:
            # The run doesn't need the file. If shards can't be written either, that is an error of its own.
            log.warning("can't write %s (%s): the next run will run out of memory again", self.path, error)


def _device_memory(device: torch.device) -> tuple[str, int]:
    """Name of a device and its memory in bytes; for the CPU, the memory of the machine."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    return device.type, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
