"""After any failure of a tokenizing run, the same command completes with the bytes of an undisturbed run."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import warm
from synthetic_episodes import make_episode, tiny_tokenizer, write_shard, write_shards
from tokenize_runs import (
    SHARDS,
    TORCHRUN,
    children,
    command,
    descendants,
    environment,
    files,
    records,
    run,
    still_running,
    summary_of,
    wait_for_a_record,
)

from pipeline.common.manifests import read_manifest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_tokenizer(folder / "tok")
    write_shards(folder / "eps", shards=SHARDS, episodes=4)
    summary_of(run(folder, folder / "out"))
    return folder


def finish_and_compare(undisturbed: Path, output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in records(output)}
    assert 0 < len(before) < SHARDS
    summary_of(run(undisturbed, output))
    assert files(output) == files(undisturbed / "out")
    assert all(path.stat().st_mtime_ns == time_then for path, time_then in before.items()), "a finished shard was made again"


def test_after_kill_9_the_same_command_gives_the_bytes_of_an_undisturbed_run(undisturbed, tmp_path):
    process = warm.Popen(command(undisturbed, tmp_path), env=environment())
    wait_for_a_record(process, tmp_path)
    family = descendants(process.pid)
    process.kill()
    process.wait()
    assert not still_running(family), "reader processes outlive their worker"
    finish_and_compare(undisturbed, tmp_path)


def test_kill_9_of_one_process_of_a_fleet_loses_only_its_shards(undisturbed, tmp_path):
    process = warm.Popen(command(undisturbed, tmp_path, TORCHRUN), env=environment())
    wait_for_a_record(process, tmp_path)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=240) != 0
    finish_and_compare(undisturbed, tmp_path)


def test_a_fleet_that_may_restart_survives_kill_9_of_its_first_process(undisturbed, tmp_path):
    process = warm.Popen(command(undisturbed, tmp_path, (*TORCHRUN, "--max-restarts", "1")), env=environment())
    wait_for_a_record(process, tmp_path)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    assert files(tmp_path) == files(undisturbed / "out")


def test_kill_9_of_a_reader_changes_nothing(undisturbed, tmp_path):
    process = warm.Popen(command(undisturbed, tmp_path), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_a_record(process, tmp_path)
    readers = [reader for server in children(process.pid) for reader in children(server)]
    assert readers
    os.kill(readers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert files(tmp_path) == files(undisturbed / "out")


def test_an_input_that_kills_its_reader_twice_is_left_out_and_listed(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "tok", tmp_path / "tok")
    write_shards(tmp_path / "eps", shards=2, episodes=4)
    episodes = [make_episode(index, 5 + index * 7 % 20) for index in range(8, 12)]
    # The decoder of this test's processes crashes at this JPEG comment.
    episodes[1].frames[:] = [frame[:2] + b"\xff\xfe\x00\x08POISON" + frame[2:] for frame in episodes[1].frames]
    write_shard(tmp_path / "eps", 2, episodes)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import os, signal, simplejpeg
            decode = simplejpeg.decode_jpeg
            def crash(data, *rest, **options):
                if b"POISON" in bytes(data):
                    os.kill(os.getpid(), signal.SIGSEGV)
                return decode(data, *rest, **options)
            simplejpeg.decode_jpeg = crash
        """)
    )
    done = run(tmp_path, tmp_path / "out", env=environment(PYTHONPATH=str(tmp_path / "site")))
    assert summary_of(done)["episodes_left_out"] == 1
    assert done.stderr.count("a reader ended with signal 11 at episode train-00000-000009") == 2
    (left_out,) = read_manifest(str(tmp_path / "out" / "made_up" / "train-000002.json")).left_out
    assert (left_out.source_record, left_out.reason) == (9, "killed its reader process 2 times")
    expected = files(undisturbed / "out")
    made = files(tmp_path / "out")
    assert all(made[name] == expected[name] for name in made if not name.endswith(("-000002.json", "-000002.arrow")))


@pytest.fixture
def small_disk(tmp_path):
    """A file system that is too small for all shards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_a_one_line_error_and_the_run_resumes_with_more_space(undisturbed, small_disk):
    done = run(undisturbed, small_disk)
    assert done.returncode == 1
    assert "error: can't write token shards" in done.stderr and "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish_and_compare(undisturbed, small_disk)


def test_out_of_memory_halves_the_batch_and_later_runs_remember(undisturbed, tmp_path):
    # Builds of torch differ by half a GB in the memory that importing them takes.
    status = subprocess.run(
        [sys.executable, "-c", "import torch; print(open('/proc/self/status').read())"], capture_output=True
    )
    (imported_kib,) = re.findall(rb"VmData:\s+(\d+) kB", status.stdout)

    def little_memory():
        resource.setrlimit(resource.RLIMIT_DATA, (int(imported_kib) * 1024 + (800 << 20),) * 2)

    many = ("--tokenizer.clips_per_batch", "800")
    limited = {"env": environment(), "preexec_fn": little_memory, "capture_output": True, "text": True}
    done = subprocess.run(command(undisturbed, tmp_path, more=many), timeout=300, check=False, **limited)
    halved = done.stderr.count("out of memory on cpu")
    assert halved >= 1
    assert summary_of(done)["clips_per_batch"] == 800 >> halved
    (limit,) = tmp_path.glob("clips-per-batch-*.json")
    # Another process has enough memory but reads the limit.
    records(tmp_path)[0].unlink()
    again = summary_of(run(undisturbed, tmp_path, more=many))
    assert (again["shards"], again["clips_per_batch"]) == (1, 800 >> halved)
    limit.unlink()
    assert files(tmp_path) == files(undisturbed / "out")


def test_jobs_of_an_array_divide_the_work(undisturbed, tmp_path):
    shards = []
    for index in ("0", "1"):
        more = ("--worker_count", "2")
        done = run(undisturbed, tmp_path, more=more, env=environment(SLURM_ARRAY_TASK_ID=index))
        shards.append(summary_of(done)["shards"])
    assert shards == [SHARDS // 2, SHARDS // 2]
    assert files(tmp_path) == files(undisturbed / "out")


def test_tasks_of_a_bare_srun_find_each_other(undisturbed, tmp_path):
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    processes = []
    for rank in ("0", "1"):
        place = environment(**step, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        processes.append(warm.Popen(command(undisturbed, tmp_path), env=place))
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert files(tmp_path) == files(undisturbed / "out")
