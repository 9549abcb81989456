"""The lock file of source fingerprints: notices a data set that was rewritten in place under the same version.

It holds, for every data set that was ingested, its spec's hash and of each file its size, a hash of both its ends and, where
an object store gives one, its content tag. A local file that changed in its middle alone is not noticed: reading all of every
file would cost as much as the work. Only files that became shards without damage are locked, so that a damaged one can be
fetched again. What is locked with a content tag needs no second look at its ends while the store gives the same tag.

Two jobs that write one chosen lock file at the same moment may lose what the other added; the next run adds it again.
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
    """What a source file is known by.

    Attributes:
        size: In bytes; None where the file isn't there.
        ends_sha256: First 16 hex digits of the SHA-256 of both its ends; None where the file isn't there.
        tag: What its listing says of its content, or of the time of its last change, with the kind of tag in front; None where
            nothing is said, or asked.
    """

    size: int | None
    ends_sha256: str | None
    tag: str | None = None

    def differs(self, other: "FileFingerprint") -> bool:
        """Whether the contents differ for certain."""
        if (self.size, self.ends_sha256) != (other.size, other.ends_sha256):
            return True
        return _kind(self.tag) == _kind(other.tag) != "" and self.tag != other.tag


def _kind(tag: str | None) -> str:
    """A time differs between copies, an S3 tag with a dash between sizes of the parts it was uploaded in: neither tells."""
    if tag is None or is_time_tag(tag) or (tag.startswith("ETag:") and "-" in tag):
        return ""
    return tag.split(":")[0]


@dataclass(frozen=True)
class SourceFingerprint:
    """What a version of a data set is known by.

    Attributes:
        spec_sha256: Of its spec; None for sources without one.
        files: Name -> what it is known by.
    """

    spec_sha256: str | None = None
    files: Mapping[str, FileFingerprint] = field(default_factory=dict)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """Of the spec and the files, or of some of them; tags are left out, so that copies agree."""
        chosen = sorted(self.files if names is None else names)
        known = {name: self.files.get(name, FileFingerprint(None, None)) for name in chosen}
        files = {name: [print_.size, print_.ends_sha256] for name, print_ in known.items()}
        return fingerprint({"spec_sha256": self.spec_sha256, "files": files})


def read_lock(path: str) -> dict[str, SourceFingerprint]:
    """Name of a data set and its version -> what it was when it was ingested; empty where there is no such file.

    Raises:
        ShardError: The file is no lock file.
    """
    if not storage.exists(path):
        return {}
    try:
        # A million files are made what they are to be one by one, while the text is parsed.
        raw = read_json(path, _file_print, _MOST_BYTES)
        if raw["format"] != _FORMAT:
            raise ValueError(f"its format is {raw['format']!r}")
        return {name: SourceFingerprint(one["spec_sha256"], _checked(one["files"])) for name, one in raw["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{path} is no lock file of sources ({error!r}); restore it, or remove it to lock anew") from error


def _file_print(parsed: dict[str, Any]) -> FileFingerprint | dict[str, Any]:
    """A file's object in a lock file as what it means; any other as it is."""
    return FileFingerprint(**parsed) if parsed.keys() == {"size", "ends_sha256", "tag"} else parsed


def _checked(files: dict[str, Any]) -> dict[str, FileFingerprint]:
    if any(not isinstance(known, FileFingerprint) for known in files.values()):
        raise ValueError("a file lacks its size, ends or tag")
    return files


class SourceLock:
    """What a lock file says of one source, and what is to be compared with it and added to it.

    Attributes:
        path: Of the lock file: a local path or URL.
        name: Of the data set and its version, wherever a copy of it lies.
    """

    def __init__(self, path: str, source: Source) -> None:
        """Read the lock file.

        Raises:
            ShardError: The file is no lock file.
        """
        self.path = path
        self.name = _locked_name(source)
        self._source = source
        self._locked = read_lock(path).get(self.name)
        self._tags: dict[str, str] | None = None

    def known_hashes(self) -> dict[str, str]:
        """File -> hash of its ends, of those files whose listing says that they are what was locked."""
        tags = self._listed_tags()
        files = self._locked.files if self._locked else {}
        return {
            name: known.ends_sha256
            for name, known in files.items()
            if known.ends_sha256 is not None and known.tag is not None and known.tag == tags.get(name)
        }

    def files(self) -> set[str]:
        """Names of the files that are locked."""
        return set(self._locked.files) if self._locked else set()

    def _listed_tags(self) -> dict[str, str]:
        """File -> tag, as it was when it was first asked for, so before the file was read.

        Of a source of few files times are not asked: their ends are read every time.
        """
        if self._tags is None:
            listed = self._source.listing().items()
            self._tags = {
                printable_name(name): known.tag
                for name, known in listed
                if known.tag is not None and (self._source.many_files or not is_time_tag(known.tag))
            }
        return self._tags

    def check(self, units: Sequence[WorkUnit]) -> None:
        """Compare a plan's files with those that are locked.

        Raises:
            ConflictError: The data set was rewritten; the message names both fingerprints and the files that differ.
        """
        if self._locked is not None:
            spec = units[0].inputs.get("spec_sha256") if units else None
            now = self._print(spec, [unit.inputs for unit in units])
            compare(self.path, self.name, self._locked, now, map(printable_name, self._source.listing()))

    def add(self, units: Sequence[WorkUnit], records: Iterable[ShardManifest], overwrite: bool) -> None:
        """Lock the files that became shards without damage; with `overwrite`, forget what was locked before."""
        planned = {unit.shard: unit.inputs for unit in units}
        done = [record for record in records if record.shard in planned]
        spec = next((planned[record.shard].get("spec_sha256") for record in done), None)
        now = self._print(spec, [record.inputs for record in done])
        sound = now.files.keys() - set().union(*map(repairable_files, done))
        write_lock(
            self.path, self.name, SourceFingerprint(now.spec_sha256, {name: now.files[name] for name in sound}), overwrite
        )

    def _print(self, spec_sha256: str | None, inputs: Iterable[dict[str, Any]]) -> SourceFingerprint:
        """What plans or records say of their files."""
        tags = self._listed_tags()
        sources = {one["file"]: one for of_shard in inputs for one in of_shard["sources"]}
        files = {name: FileFingerprint(one["size"], one.get(HEAD_TAIL_HASH), tags.get(name)) for name, one in sources.items()}
        return SourceFingerprint(spec_sha256, files)


def _locked_name(source: Source) -> str:
    """RLDS lies in a folder of its version in one of its name."""
    if source.kind == "rlds":
        return "/".join(source.folder.rstrip("/").split("/")[-2:])
    return source.entry.directory or source.entry.name


def compare(path: str, name: str, locked: SourceFingerprint, now: SourceFingerprint, there: Iterable[str]) -> None:
    """Compare a data set with what the lock file says of it.

    Args:
        path: Of the lock file, for the message.
        name: Of the data set and its version.
        locked: What it was.
        now: What it is, as far as it is wanted now.
        there: Names of all its files.

    Raises:
        ConflictError: It was rewritten; the message names both fingerprints and the files that differ.
    """
    present = set(there)
    gone = sorted(file for file in locked.files if file not in present)
    both = locked.files.keys() & now.files.keys()
    changed = sorted(file for file in both if file in present and locked.files[file].differs(now.files[file]))
    respecified = locked.spec_sha256 != now.spec_sha256
    if not (gone or changed or respecified):
        return
    compared = sorted(both | set(gone))
    what = [*(["its spec"] if respecified else []), *changed, *(f"{file} (gone)" for file in gone)]
    shown = ", ".join(what[:_SHOWN]) + (f" and {len(what) - _SHOWN} more" if len(what) > _SHOWN else "")
    raise ConflictError(
        f"{name} was rewritten in place: {path} has its fingerprint as {locked.fingerprint(compared)}, now it is "
        f"{now.fingerprint(compared)}; what differs: {shown}. Fetch the version that was ingested, or choose another output "
        "folder and lock file for the new one, or pass --overwrite to take it in its place"
    )


def write_lock(path: str, name: str, now: SourceFingerprint, replace: bool) -> None:
    """Add to the lock file what a data set is now; with `replace`, forget what it was."""
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
        "files": {name: dataclasses.asdict(known) for name, known in source.files.items()},
    }
