"""Which split a TFRecord file of an RLDS data set belongs to: what of its name is the data set's, and what the split's.

Files are called `NAME-SPLIT.tfrecord-00000-of-00005`, and a split's name may hold hyphens (`train-clean`), so a name alone does
not tell where it begins. `dataset_info.json` does; where it is absent, the names of all files together do, as far as they can.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

# What splits begin with nearly everywhere.
_USUAL = ("train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev")
FILE = re.compile(
    rf"(?P<stem>(?P<named>.+-[A-Za-z0-9_-]+|{'|'.join(_USUAL)})\.tfrecord)-(?P<number>\d{{5,}})(-of-(?P<of>\d{{5,}}))?"
)
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class NamingInfo(NamedTuple):
    """What `dataset_info.json` says of names.

    Attributes:
        dataset: Name of the data set; empty where it isn't said.
        templates: Split -> how its files are called, as tensorflow-datasets writes it.
    """

    dataset: str = ""
    templates: Mapping[str, str] = {}

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "NamingInfo":
        """From the content of the file.

        Raises:
            KeyError, TypeError, AttributeError: It is damaged.
        """
        splits = info.get("splits", [])
        templates = {str(split["name"]): str(split.get("filepathTemplate") or _DEFAULT_TEMPLATE) for split in splits}
        return cls(str(info.get("name", "")), templates)


def splits_of(named: Collection[str], stated: NamingInfo, folders: Sequence[str] = ()) -> dict[str, str]:
    """What stands before `.tfrecord` in the names of files -> the split that it names.

    Args:
        named: Of all files of a data set.
        stated: What the data set says of itself.
        folders: Names of the folders that the files lie in, one of which may be the data set's name.
    """
    exact = {_rendered(template, stated.dataset, split): split for split, template in stated.templates.items()}
    datasets = [name for name in (stated.dataset, *folders) if name]
    found = {}
    for one in named:
        ending = max((split for split in stated.templates if one.endswith(f"-{split}")), key=len, default=None)
        begun = next((one.removeprefix(f"{name}-") for name in datasets if one.startswith(f"{name}-")), None)
        if split := exact.get(one) or ending or begun:
            found[one] = split
    rest = [one for one in named if one not in found]
    start = _common_start(rest)
    return found | {one: one[start:] if start or _is_usual(one) else one.rpartition("-")[2] for one in rest}


def _rendered(template: str, dataset: str, split: str) -> str:
    """What stands before `.tfrecord` in the names of a split's files."""
    name = template.replace("{DATASET}", dataset).replace("{SPLIT}", split).replace("{FILEFORMAT}", "tfrecord")
    return name.rpartition("/")[2].partition(".tfrecord")[0]


def _common_start(named: Sequence[str]) -> int:
    """Where splits begin in names of which nothing is known but that they begin with one data set's.

    That is behind the longest beginning that all have in common, up to a hyphen. But `set-train-clean` and `set-train-noisy`
    are splits `train-..`: where what follows an earlier hyphen begins as splits usually do, they begin there.
    """
    before_last = [one.split("-")[:-1] for one in named]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*before_last, strict=False))
    starts = [0, *itertools.accumulate(len(parts[0]) + 1 for parts in common)]
    return next((start for start in starts if any(_is_usual(one[start:]) for one in named)), starts[-1])


def _is_usual(split: str) -> bool:
    return split.split("-")[0] in _USUAL
