"""What a device has room for is kept for its kind of work, and for no other."""

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
def test_a_limit_holds_for_the_same_work_alone_and_never_raises_a_batch(tmp_path, output):
    output = output if "://" in output else str(tmp_path / output)
    assert BatchSizeCache(output, CPU, LAYOUT).apply(64) == 64
    BatchSizeCache(output, CPU, LAYOUT).keep(16)
    for asked, expected in ((64, 16), (16, 16), (4, 4)):
        assert BatchSizeCache(output, CPU, LAYOUT).apply(asked) == expected
    for change in ({"precision": "bf16"}, {"clip_length": 8}, {"tokenizer_sha256": "cd" * 32}):
        assert BatchSizeCache(output, CPU, dataclasses.replace(LAYOUT, **change)).apply(64) == 64
    assert BatchSizeCache(output, torch.device("meta"), LAYOUT).apply(64) == 64


def test_a_damaged_file_is_named_and_an_unwritable_one_stops_nothing(tmp_path, caplog):
    limit = BatchSizeCache(str(tmp_path), CPU, LAYOUT)
    (tmp_path / limit.path.rsplit("/", 1)[-1]).write_text("{}")
    with pytest.raises(ConfigError, match=r"clips-per-batch-.*delete it"):
        limit.apply(64)
    (tmp_path / "file").touch()
    BatchSizeCache(str(tmp_path / "file"), CPU, LAYOUT).keep(8)
    assert "can't be written" in caplog.text
