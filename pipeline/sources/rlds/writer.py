"""Writes data sets in RLDS format like tensorflow-datasets, without TensorFlow.

The spec, the examples and `dataset_info.json` come from tensorflow-datasets. Only its TFRecord and image writers need
TensorFlow, so `pipeline.sources.tfrecord.reader` writes the records, and images must be encoded already. Equal episodes give
equal bytes. Meant for small data sets of the demo, benchmarks and tests.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from pipeline.sources.tfrecord.reader import write_record


def write_rlds(
    root: Path,
    name: str,
    version: str,
    features: tfds.features.FeaturesDict,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    episodes_per_shard: int = 50,
    description: str = "",
) -> Path:
    """Write a data set to `root/name/version`; `tfds.builder_from_directory` can open it.

    Args:
        root: The root folder of data sets.
        name: Name of the data set.
        version: Version of the data set, such as `0.1.0`.
        features: Features of an episode; `steps` is a `tfds.features.Dataset`, and images are encoded bytes.
        splits: Split -> its episodes, each a mapping that `features` encodes; `steps` is a list of mappings.
        episodes_per_shard: Number of records per file.
        description: Description for `dataset_info.json`.

    Returns:
        The version folder.
    """
    folder = root / name / version
    folder.mkdir(parents=True, exist_ok=True)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    infos = []
    for split, episodes in splits.items():
        template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=folder, split=split, filetype_suffix="tfrecord")
        examples = (serializer.get_tf_example(features.encode_example(episode)) for episode in episodes)
        # The serializer's own method writes the features of an example in random order.
        records = (example.SerializeToString(deterministic=True) for example in examples)
        lengths, num_bytes = _write_shards(folder, f"{name}-{split}", records, episodes_per_shard)
        for index, final in enumerate(template.sharded_filepaths(len(lengths))):
            _unfinished(folder, f"{name}-{split}", index).replace(final)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template))
    identity = DatasetIdentity(name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=__name__)
    info = tfds.core.DatasetInfo(builder=identity, features=features, description=description)
    info.set_file_format("tfrecord")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
    return folder


def _unfinished(folder: Path, stem: str, index: int) -> Path:
    # Final names contain the number of shards, which is known only at the end.
    return folder / f".{stem}-{index:05d}.unfinished"


def _write_shards(folder: Path, stem: str, records: Iterator[bytes], per_shard: int) -> tuple[list[int], int]:
    """Write `records` to unfinished files; return the number of records of each file, and the total bytes of all records."""
    lengths: list[int] = []
    num_bytes = 0
    while batch := list(itertools.islice(records, per_shard)):
        with _unfinished(folder, stem, len(lengths)).open("wb") as file:
            for record in batch:
                write_record(file, record)
        lengths.append(len(batch))
        num_bytes += sum(map(len, batch))
    return lengths, num_bytes
