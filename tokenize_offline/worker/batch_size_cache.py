"""How many clips a device has room for, once it ran out of memory: kept beside the output for all who come after.

One small file for every kind of device and shape of clips, because a fleet may have several kinds and the next run another
shape. Ids don't depend on the batch, so the file decides how fast the work goes and nothing else; whoever wants to try a
larger batch again deletes it. Processes that write at the same time have the same device and found the same.
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
    """The limit for one device and layout.

    Attributes:
        path: The file, a path or URL.
    """

    def __init__(self, output: str, device: torch.device, layout: TokenLayout) -> None:
        name, memory = _kind(device)
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

    def apply(self, clips: int) -> int:
        """The smaller of `clips` and the limit, where there is one.

        Raises:
            ConfigError: The file holds no limit.
        """
        if not storage.exists(self.path):
            return clips
        try:
            limit = int(json.loads(storage.read_bytes(self.path))["clips_per_batch"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} holds no batch size ({error!r}): delete it") from error
        if limit < clips:
            log.warning("%d clips at once, as memory ran out with more before; to try again, delete %s", limit, self.path)
        return max(1, min(clips, limit))

    def keep(self, clips: int) -> None:
        """Write down that there is room for `clips` at most."""
        text = json.dumps({**self._work, "clips_per_batch": clips}, indent=1)
        try:
            storage.write_bytes(self.path, text.encode() + b"\n")
        except OSError as error:
            # The work at hand goes on without it; shards that can't be written either stop it with their own message.
            log.warning("%s can't be written (%s): the next run will run out of memory again", self.path, error)


def _kind(device: torch.device) -> tuple[str, int]:
    """Name and bytes of memory of a device; of the machine for the CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    return device.type, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
