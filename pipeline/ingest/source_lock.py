"""The lock file of source fingerprints: detects a data set that was rewritten in place under the same version.

For each ingested data set it stores the hash of its spec and, for each file, the size, the `head_tail_hash` and, on an object
store, the content tag. A change in the middle of a local file is not detected: reading whole files would cost as much as the
ingest. Only files that became shards without damage are locked, so that a damaged file can be fetched again. A file with a
content tag isn't hashed again while the store reports the same tag.

Two jobs that write the same lock file at the same moment may lose each other's additions; the next run adds them again.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import ConflictError, ShardError
from pipeline.common.json_files import read_json
from pipeline.common.listings import is_time_tag
from pipeline.common.manifests import HEAD_TAIL_HASH, ShardManifest, fingerprint, repairable_files
from pipeline.episodes.naming import printable_name
from pipeline.ingest.plan import WorkUnit
from pipeline.sources.base import Source

LOCK_FILE = "sources.lock.json"
_FORMAT = 1
_SHOWN = 5
_MOST_BYTES = 1 << 30  # some millions of files


@dataclass(frozen=True, slots=True)
class FileFingerprint:
    """The fingerprint of a source file.

    Attributes:
        size: Size in bytes; None if the file doesn't exist.
        ends_sha256: Its `head_tail_hash`; None if the file doesn't exist.
        tag: Content tag or modification time from the listing, prefixed with the kind of tag; None if unknown.
    """

    size: int | None
    ends_sha256: str | None
    tag: str | None = None

    def differs(self, other: "FileFingerprint") -> bool:
        """Whether the contents are known to differ."""
        if (self.size, self.ends_sha256) != (other.size, other.ends_sha256):
            return True
        return _content_kind(self.tag) == _content_kind(other.tag) != "" and self.tag != other.tag


def _content_kind(tag: str | None) -> str:
    """Return the kind of a content tag; empty for tags that may differ between equal copies.

    Modification times differ between copies; S3 tags with a dash depend on the part size of the upload.
    """
    if tag is None or is_time_tag(tag) or (tag.startswith("ETag:") and "-" in tag):
        return ""
    return tag.split(":")[0]


@dataclass(frozen=True)
class SourceFingerprint:
    """The fingerprint of one version of a data set.

    Attributes:
        spec_sha256: SHA-256 of its spec; None for sources without a spec.
        files: File name -> fingerprint.
    """

    spec_sha256: str | None = None
    files: Mapping[str, FileFingerprint] = field(default_factory=dict)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """Return one hash of the spec and of all files, or of the files in `names`; without tags, so that copies agree."""
        chosen = sorted(self.files if names is None else names)
        known = {name: self.files.get(name, FileFingerprint(None, None)) for name in chosen}
        files = {name: [file.size, file.ends_sha256] for name, file in known.items()}
        return fingerprint({"spec_sha256": self.spec_sha256, "files": files})


def read_lock(path: str) -> dict[str, SourceFingerprint]:
    """Return data set name and version -> its fingerprint when it was ingested; empty if there is no lock file.

    Raises:
        ShardError: The file is not a lock file.
    """
    if not storage.exists(path):
        return {}
    try:
        # The hook converts each file's object during parsing, so a million files are never held as plain dictionaries.
        raw = read_json(path, _parse_file, _MOST_BYTES)
        if raw["format"] != _FORMAT:
            raise ValueError(f"its format is {raw['format']!r}")
        return {name: SourceFingerprint(item["spec_sha256"], _checked(item["files"])) for name, item in raw["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{path} is not a lock file ({error!r}); restore it, or remove it to lock the sources again"
        ) from error


def _parse_file(parsed: dict[str, Any]) -> FileFingerprint | dict[str, Any]:
    """Convert the JSON object of a file; return other objects unchanged."""
    return FileFingerprint(**parsed) if parsed.keys() == {"size", "ends_sha256", "tag"} else parsed


def _checked(files: dict[str, Any]) -> dict[str, FileFingerprint]:
    if any(not isinstance(file, FileFingerprint) for file in files.values()):
        raise ValueError("a file lacks its size, ends_sha256 or tag")
    return files


class SourceLock:
    """The entry of one source in a lock file: compares a plan with it, and adds ingested files to it.

    Attributes:
        path: Path or URL of the lock file.
        name: Name and version of the data set, independent of where a copy of it lies.
    """

    def __init__(self, path: str, source: Source) -> None:
        """Read the lock file.

        Raises:
            ShardError: The file is not a lock file.
        """
        self.path = path
        self.name = _locked_name(source)
        self._source = source
        self._locked = read_lock(path).get(self.name)
        self._tags: dict[str, str] | None = None

    def known_hashes(self) -> dict[str, str]:
        """Return file name -> `head_tail_hash` of the files whose tag proves that they are unchanged."""
        tags = self._listed_tags()
        files = self._locked.files if self._locked else {}
        return {
            name: file.ends_sha256
            for name, file in files.items()
            if file.ends_sha256 is not None and file.tag is not None and file.tag == tags.get(name)
        }

    def files(self) -> set[str]:
        """Return the names of the locked files."""
        return set(self._locked.files) if self._locked else set()

    def _listed_tags(self) -> dict[str, str]:
        """Return file name -> tag, listed once, before any file is read.

        Sources with few files don't use modification times: they hash all files at every start.
        """
        if self._tags is None:
            listed = self._source.listing().items()
            self._tags = {
                printable_name(name): file.tag
                for name, file in listed
                if file.tag is not None and (self._source.many_files or not is_time_tag(file.tag))
            }
        return self._tags

    def check(self, units: Sequence[WorkUnit]) -> None:
        """Compare the files of a plan with the locked files.

        Raises:
            ConflictError: The data set was rewritten; the message names both fingerprints and the files that differ.
        """
        if self._locked is not None:
            spec = units[0].inputs.get("spec_sha256") if units else None
            now = self._fingerprint(spec, [unit.inputs for unit in units])
            compare(self.path, self.name, self._locked, now, map(printable_name, self._source.listing()))

    def add(self, units: Sequence[WorkUnit], manifests: Iterable[ShardManifest], overwrite: bool) -> None:
        """Lock the files that became shards without damage; with `overwrite`, remove the previous entry first."""
        planned = {unit.shard: unit.inputs for unit in units}
        done = [manifest for manifest in manifests if manifest.shard in planned]
        spec = next((planned[manifest.shard].get("spec_sha256") for manifest in done), None)
        now = self._fingerprint(spec, [manifest.inputs for manifest in done])
        intact = now.files.keys() - set().union(*map(repairable_files, done))
        write_lock(
            self.path, self.name, SourceFingerprint(now.spec_sha256, {name: now.files[name] for name in intact}), overwrite
        )

    def _fingerprint(self, spec_sha256: str | None, inputs: Iterable[dict[str, Any]]) -> SourceFingerprint:
        """Return the fingerprint of the source files in the inputs of plans or manifests."""
        tags = self._listed_tags()
        sources = {item["file"]: item for shard_inputs in inputs for item in shard_inputs["sources"]}
        files = {
            name: FileFingerprint(item["size"], item.get(HEAD_TAIL_HASH), tags.get(name)) for name, item in sources.items()
        }
        return SourceFingerprint(spec_sha256, files)


def _locked_name(source: Source) -> str:
    """Return the data set's name and version; an RLDS data set lies in `NAME/VERSION`."""
    if source.kind == "rlds":
        return "/".join(source.folder.rstrip("/").split("/")[-2:])
    return source.entry.directory or source.entry.name


def compare(path: str, name: str, locked: SourceFingerprint, now: SourceFingerprint, existing: Iterable[str]) -> None:
    """Compare a data set with its entry in the lock file.

    Args:
        path: Path of the lock file, for the message.
        name: Name and version of the data set.
        locked: Fingerprint in the lock file.
        now: Fingerprint of the files in the current plan.
        existing: Names of all files of the data set.

    Raises:
        ConflictError: The data set was rewritten; the message names both fingerprints and the files that differ.
    """
    present = set(existing)
    gone = sorted(file for file in locked.files if file not in present)
    both = locked.files.keys() & now.files.keys()
    changed = sorted(file for file in both if file in present and locked.files[file].differs(now.files[file]))
    respecified = locked.spec_sha256 != now.spec_sha256
    if not (gone or changed or respecified):
        return
    compared = sorted(both | set(gone))
    differences = [*(["its spec"] if respecified else []), *changed, *(f"{file} (gone)" for file in gone)]
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    raise ConflictError(
        f"{name} was rewritten in place: its fingerprint is {locked.fingerprint(compared)} in {path}, and now "
        f"{now.fingerprint(compared)}; differences: {', '.join(differences[:_SHOWN])}{more}. Fetch the version that was "
        "ingested, or choose another output folder and lock file for the new version, or pass --overwrite to replace it"
    )


def write_lock(path: str, name: str, now: SourceFingerprint, replace: bool) -> None:
    """Add the current fingerprint of a data set to the lock file; with `replace`, remove its previous entry first."""
    known = read_lock(path)
    before = known.get(name, SourceFingerprint())
    files = now.files if replace else {**before.files, **now.files}
    after = SourceFingerprint(now.spec_sha256, {file: files[file] for file in sorted(files)})
    if not after.files or after == before:
        return
    known[name] = after
    sources = {key: {"fingerprint": known[key].fingerprint(), **_as_json(known[key])} for key in sorted(known)}
    text = json.dumps({"format": _FORMAT, "sources": sources}, indent=1, ensure_ascii=False)
    storage.write_bytes(path, text.encode() + b"\n")


def _as_json(source: SourceFingerprint) -> dict[str, Any]:
    return {
        "spec_sha256": source.spec_sha256,
        "files": {name: dataclasses.asdict(file) for name, file in source.files.items()},
    }
