"""Ids don't depend on the batch, and running out of memory halves the batch size."""

import numpy as np
import pytest
import torch
from synthetic_episodes import tiny_model

from tokenize_offline.tokenizer import CompressiveVQModel
from tokenize_offline.worker.encoder import BatchEncoder

CPU = torch.device("cpu")


@pytest.fixture
def clips():
    return list(torch.rand(7, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_ids_do_not_depend_on_batch_size_fill_or_neighbours(clips):
    model = tiny_model()
    expected = BatchEncoder(model, CPU, "fp32", 1).tokenize(clips)
    for batch in (2, 3, 8):
        encoder = BatchEncoder(model, CPU, "fp32", batch)
        assert torch.equal(encoder.tokenize(clips), expected)
        assert torch.equal(encoder.tokenize(clips[::-1]), expected.flip(0))
        assert torch.equal(encoder.tokenize(clips[2:3]), expected[2:3])


def test_ids_of_real_frames_do_not_depend_on_the_batch(shared):
    model = CompressiveVQModel.from_pretrained(str(shared / "parity" / "context2"))
    frames = torch.from_numpy(np.load(shared / "parity" / "context2" / "expected.npz")["frames"])[:, :5]
    clips = list(torch.cat([frames, frames.flip(3), frames.flip(4)]))
    expected = BatchEncoder(model, CPU, "fp32", 1).tokenize(clips)
    for batch in (4, 6):
        assert torch.equal(BatchEncoder(model, CPU, "fp32", batch).tokenize(clips), expected)


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(clips):
    class Small(CompressiveVQModel):
        """A tokenizer on a device with memory for two clips."""

        def tokenize(self, frames):
            if len(frames) > 2:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().tokenize(frames)

    model = tiny_model()
    small = Small(model.config)
    small.load_state_dict(model.state_dict())
    encoder = BatchEncoder(small, CPU, "fp32", 7)
    assert torch.equal(encoder.tokenize(clips), BatchEncoder(model, CPU, "fp32", 7).tokenize(clips))
    assert encoder.batch == 2


def test_half_precision_changes_few_ids(shared):
    model = CompressiveVQModel.from_pretrained(str(shared / "parity" / "context2"))
    frames = list(torch.from_numpy(np.load(shared / "parity" / "context2" / "expected.npz")["frames"]))
    exact = BatchEncoder(model, CPU, "fp32", 2).tokenize(frames)
    rounded = BatchEncoder(model, CPU, "bf16", 2).tokenize(frames)
    assert 0.9 < (exact == rounded).float().mean() < 1


def test_the_model_compiles_to_one_graph(clips):
    model = tiny_model()
    frames = torch.stack(clips[:2])
    # `fullgraph` raises if the graph breaks; this backend runs the captured graph without kernels of its own.
    compiled = torch.compile(model.tokenize, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(frames), model.tokenize(frames))


@pytest.mark.soak
def test_compiled_kernels_give_the_published_ids(shared):
    for name in ("context1", "context2"):
        model = CompressiveVQModel.from_pretrained(str(shared / "parity" / name))
        with np.load(shared / "parity" / name / "expected.npz") as expected:
            frames, tokens = torch.from_numpy(expected["frames"]), torch.from_numpy(expected["tokens"].astype(np.int64))
        # Makes the weights channels-last, as on a GPU.
        BatchEncoder(model, CPU, "fp32", 2)
        compiled = torch.compile(model.tokenize, dynamic=False, fullgraph=True)
        with torch.inference_mode():
            assert (compiled(frames) == tokens).float().mean() >= 0.999
