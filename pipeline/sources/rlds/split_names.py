"""Finds the split of each TFRecord file of an RLDS data set from the file names.

Files are called `NAME-SPLIT.tfrecord-00000-of-00005`, and both names may contain hyphens (`train-clean`), so one name doesn't
show where the split begins. `dataset_info.json` does; without it, the names of all files are compared.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

# Common first words of split names.
_USUAL = ("train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev")
FILE = re.compile(
    rf"(?P<stem>(?P<named>.+-[A-Za-z0-9_-]+|{'|'.join(_USUAL)})\.tfrecord)-(?P<number>\d{{5,}})(-of-(?P<of>\d{{5,}}))?"
)
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class NamingInfo(NamedTuple):
    """The names in `dataset_info.json`.

    Attributes:
        dataset: Name of the data set; empty if unknown.
        templates: Split -> template of its file names, in the form of tensorflow-datasets.
    """

    dataset: str = ""
    templates: Mapping[str, str] = {}

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "NamingInfo":
        """Read the names from the content of the file.

        Raises:
            KeyError, TypeError, AttributeError: The file is damaged.
        """
        splits = info.get("splits", [])
        templates = {str(split["name"]): str(split.get("filepathTemplate") or _DEFAULT_TEMPLATE) for split in splits}
        return cls(str(info.get("name", "")), templates)


def splits_of(prefixes: Collection[str], info: NamingInfo, folders: Sequence[str] = ()) -> dict[str, str]:
    """Return prefix of a file name (the part before `.tfrecord`) -> its split.

    Args:
        prefixes: Prefixes of all files of a data set.
        info: Names in `dataset_info.json`.
        folders: Names of the folders of the files; one of them may be the data set's name.
    """
    exact = {_rendered(template, info.dataset, split): split for split, template in info.templates.items()}
    datasets = [name for name in (info.dataset, *folders) if name]
    splits = {}
    for prefix in prefixes:
        suffix = max((split for split in info.templates if prefix.endswith(f"-{split}")), key=len, default=None)
        rest = next((prefix.removeprefix(f"{name}-") for name in datasets if prefix.startswith(f"{name}-")), None)
        if split := exact.get(prefix) or suffix or rest:
            splits[prefix] = split
    unknown = [prefix for prefix in prefixes if prefix not in splits]
    start = _common_start(unknown)
    return splits | {name: name[start:] if start or _is_usual(name) else name.rpartition("-")[2] for name in unknown}


def _rendered(template: str, dataset: str, split: str) -> str:
    """Return the prefix of the file names of a split, the part before `.tfrecord`."""
    name = template.replace("{DATASET}", dataset).replace("{SPLIT}", split).replace("{FILEFORMAT}", "tfrecord")
    return name.rpartition("/")[2].partition(".tfrecord")[0]


def _common_start(prefixes: Sequence[str]) -> int:
    """Return where the split begins in prefixes that start with the name of one unknown data set.

    It begins after the longest common part that ends in a hyphen. But `set-train-clean` and `set-train-noisy` are splits
    `train-..`: if the text after an earlier hyphen starts like a usual split, the split begins there.
    """
    before_last = [prefix.split("-")[:-1] for prefix in prefixes]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*before_last, strict=False))
    starts = [0, *itertools.accumulate(len(parts[0]) + 1 for parts in common)]
    return next((start for start in starts if any(_is_usual(prefix[start:]) for prefix in prefixes)), starts[-1])


def _is_usual(split: str) -> bool:
    return split.split("-")[0] in _USUAL
