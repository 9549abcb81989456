"""Half precision is used only on fast processors, and a run keeps its precision."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_episodes import tiny_tokenizer, write_shards

from tokenize_offline.__main__ import main
from tokenize_offline.precision import choose_precision, slow_precisions

CPU = torch.device("cpu")
# Each limit of oneDNN, and the precisions at which a CPU with that limit is slow.
LIMITS = {"AVX2": {"bf16", "fp16"}, "avx512_core": {"bf16", "fp16"}, "AVX512_CORE_BF16": {"fp16"}}


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_cpu_limited_to_older_instructions_is_slow_at_half_precision(monkeypatch, variable, limit):
    monkeypatch.setenv(variable, limit)
    assert slow_precisions(CPU) >= LIMITS[limit]


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"avx2": True, "avx512_bf16": False}, {"bf16", "fp16"}),
        ({"avx512_f": True, "avx512_vnni": True}, {"bf16", "fp16"}),
        ({"avx512_bf16": True}, {"fp16"}),
        ({"amx_bf16": True, "avx512_fp16": True}, set()),
        ({"neon": True, "sve": True}, {"bf16", "fp16"}),
    ],
)
def test_a_cpu_is_fast_at_precisions_it_has_instructions_for(monkeypatch, capabilities, slow):
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert slow_precisions(CPU) == slow


def test_no_gpu_is_slow_at_half_precision(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert slow_precisions(torch.device("cuda", 0)) == set()


PRECISIONS = st.sampled_from(["fp32", "tf32", "bf16", "fp16"])
SLOW = st.sets(st.sampled_from(["bf16", "fp16"]))


@given(PRECISIONS, SLOW)
def test_a_new_run_uses_the_requested_precision_or_fp32_with_a_reason(asked, slow):
    chosen = choose_precision("training.precision", asked, slow)
    assert chosen.precision not in slow
    assert (chosen.precision, chosen.reason is None) == ((asked, True) if asked not in slow else ("fp32", False))
    if chosen.reason:
        assert "\n" not in chosen.reason and asked in chosen.reason and "fp32" in chosen.reason


@given(PRECISIONS, PRECISIONS, SLOW, SLOW)
def test_the_precision_of_a_resumed_run_does_not_depend_on_the_machine(asked, known, slow, other):
    one, two = (choose_precision("training.precision", asked, there, known) for there in (slow, other))
    assert one.precision == two.precision
    # Either the current precision, or the requested one, which the caller then rejects.
    assert one.precision in (known, asked)
    if known == asked or (known == "fp32" and asked in ("bf16", "fp16")):
        assert one.precision == known
    if one.precision != asked or (known == asked and asked in slow):
        assert one.reason is not None


@given(PRECISIONS, SLOW)
def test_a_run_keeps_its_precision_on_a_slow_cpu_and_back(asked, slow):
    begun = choose_precision("training.precision", asked, slow).precision
    assert choose_precision("training.precision", asked, set(), begun).precision == begun
    assert choose_precision("training.precision", begun, slow, begun).precision == begun


@pytest.fixture
def folder(tmp_path):
    tiny_tokenizer(tmp_path / "tok")
    write_shards(tmp_path / "eps", shards=2, episodes=2)
    return tmp_path


def _tokenize(folder: Path, output: str, *more: str) -> int:
    words = ["--shards", str(folder / "eps"), "--tokenizer", str(folder / "tok"), "--output", str(folder / output)]
    return main([*words, "--clips.length", "4", "--clips.per_episode", "1", "--tokenizer.precision", "bf16", *more])


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tokenizing_on_a_slow_cpu_makes_fp32_shards(folder, monkeypatch, capsys, caplog):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with caplog.at_level("INFO"):
        assert _tokenize(folder, "slow") == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"
    assert [text for text in caplog.messages if "tokenizer.precision: fp32 instead of bf16" in text]
    assert _tokenize(folder, "asked", "--tokenizer.precision", "fp32") == 0
    assert _files(folder / "slow") == _files(folder / "asked")


def test_a_run_started_in_bf16_is_finished_in_bf16_on_a_slow_cpu(folder, monkeypatch, capsys):
    monkeypatch.setattr("tokenize_offline.command.slow_precisions", lambda device: frozenset())
    assert _tokenize(folder, "whole") == 0
    assert _tokenize(folder, "parts") == 0
    for path in (folder / "parts").rglob("*000001*"):
        path.unlink()
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    capsys.readouterr()
    assert _tokenize(folder, "parts") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["precision"], summary["shards"], summary["shards_done_before"]) == ("bf16", 1, 1)
    assert _files(folder / "parts") == _files(folder / "whole")


def test_independent_jobs_keep_the_precision_of_the_recipe(folder, monkeypatch, capsys):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert _tokenize(folder, "shared", "--worker_count", "2", "--worker_index", "0") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["precision"] == "bf16"
