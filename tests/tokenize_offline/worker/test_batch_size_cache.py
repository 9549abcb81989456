"""A batch size limit is stored for one device and layout."""

import dataclasses

import pytest
import torch
from synthetic_episodes import TINY

from pipeline.common.errors import ConfigError
from pipeline.config.recipe import ClipsConfig
from tokenize_offline.tasks import token_layout
from tokenize_offline.worker.batch_size_cache import BatchSizeCache

CPU = torch.device("cpu")
LAYOUT = token_layout(TINY, ClipsConfig(), "fp32", "ab" * 32)


@pytest.mark.parametrize("output", ["local", "memory://tokens"])
def test_a_limit_applies_only_to_its_device_and_layout_and_never_raises_a_batch(tmp_path, output):
    output = output if "://" in output else str(tmp_path / output)
    assert BatchSizeCache(output, CPU, LAYOUT).limit(64) == 64
    BatchSizeCache(output, CPU, LAYOUT).save(16)
    for asked, expected in ((64, 16), (16, 16), (4, 4)):
        assert BatchSizeCache(output, CPU, LAYOUT).limit(asked) == expected
    for change in ({"precision": "bf16"}, {"clip_length": 8}, {"tokenizer_sha256": "cd" * 32}):
        assert BatchSizeCache(output, CPU, dataclasses.replace(LAYOUT, **change)).limit(64) == 64
    assert BatchSizeCache(output, torch.device("meta"), LAYOUT).limit(64) == 64


def test_a_damaged_file_is_an_error_and_an_unwritable_one_is_not(tmp_path, caplog):
    cache = BatchSizeCache(str(tmp_path), CPU, LAYOUT)
    (tmp_path / cache.path.rsplit("/", 1)[-1]).write_text("{}")
    with pytest.raises(ConfigError, match=r"clips-per-batch-.*delete it"):
        cache.limit(64)
    (tmp_path / "file").touch()
    BatchSizeCache(str(tmp_path / "file"), CPU, LAYOUT).save(8)
    assert "can't write" in caplog.text
