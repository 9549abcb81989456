"""Reads the `features.json` of an RLDS data set: path -> feature, with the form in which records store its values.

The spec is read as plain JSON, and no class that it names is imported. Most features aren't used, so their classes needn't be
known, whether they are sound, video, a number type that numpy lacks or a lab's own class. Both formats in which
tensorflow-datasets writes specs are supported.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import SourceError
from pipeline.common.json_files import parse_json

Shape = tuple[int | None, ...]
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|b?float16|float(32|64)")
_TEXTS = ("string", "object")
# Class of tensorflow-datasets -> its field in a spec, for specs that name only the class.
_FIELDS = {
    "FeaturesDict": "featuresDict",
    "Dataset": "sequence",
    "Sequence": "sequence",
    "Tensor": "tensor",
    "Scalar": "tensor",
    "Image": "image",
    "Text": "text",
    "ClassLabel": "classLabel",
    "BBoxFeature": "boundingBox",
    "BBox": "boundingBox",
}
_KNOWN_FIELDS = frozenset(_FIELDS.values())
# Keys of a spec that aren't its field.
_OTHER_KEYS = ("pythonClassName", "description", "valueRange")


@dataclass(frozen=True)
class Feature:
    """A leaf of a spec.

    Attributes:
        kind: `numbers`; `text`; `image` (encoded); or `opaque` (only its class is known).
        form: Description of its form, for messages.
        shape: Shape of one value; None for sides that differ between values.
        dtype: Type of the numbers or pixels, as in the spec.
        encoding: Encoding of numbers: `none`, `bytes` (each value is the bytes of its numbers) or `zlib` (compressed bytes).
        sequences: Number of nested sequences around the value, not counting the steps.
        description: Description in the spec.
    """

    kind: Literal["numbers", "text", "image", "opaque"]
    form: str
    shape: Shape = ()
    dtype: str = ""
    encoding: str = "none"
    sequences: int = 0
    description: str = ""

    @property
    def has_numbers(self) -> bool:
        """Whether each value holds at least one number."""
        return self.kind == "numbers" and 0 not in self.shape


def read_features(text: bytes, where: str) -> dict[str, Feature]:
    """Return path -> leaf of a spec, the leaves of the steps first.

    Args:
        text: Content of `features.json`.
        where: Path of the file, for messages.

    Raises:
        SourceError: It is not the spec of episodes with steps.
    """
    try:
        top = _members(parse_json(text))
        field, steps, _ = _content(top["steps"])
        if field != "sequence":
            raise ValueError("`steps` is not a data set")
        inner = _members(steps["feature"])
        found = {f"steps/{name}": part for name, part in inner.items()}
        found |= {name: part for name, part in top.items() if name != "steps"}
        return dict(leaf for path, part in found.items() for leaf in _leaves(part, path, 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{where} is not the spec of an RLDS data set with episodes and steps: {error!r}. "
            "Records can't be read without it: fetch it again"
        ) from error


def _content(spec: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Return the field of a spec (empty if unknown), the content of the field, and the name of the class."""
    if isinstance(spec.get("type"), str):
        class_name, content = spec["type"], spec.get("content")
        if isinstance(content, str):
            content = parse_json(content)
    else:
        fields = {_camel_case(name): value for name, value in spec.items()}
        class_name = str(fields.get("pythonClassName", ""))
        field = next((name for name in fields if name not in _OTHER_KEYS), "")
        if field in _KNOWN_FIELDS:
            return field, dict(fields[field]), class_name
        content = parse_json(fields[field]["json"]) if field == "jsonFeature" else None
    is_tfds_class = class_name.startswith("tensorflow_datasets.") or "." not in class_name
    field = _FIELDS.get(class_name.rsplit(".", 1)[-1], "") if is_tfds_class else ""
    return (field, dict(content), class_name) if isinstance(content, dict) else ("", {}, class_name)


def _camel_case(name: str) -> str:
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


def _members(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a dictionary of features."""
    field, content, _ = _content(spec)
    if field != "featuresDict":
        raise ValueError(f"expected a dictionary of features, not {str(spec)[:80]}")
    # The older format has the parts directly in the content.
    inner = content.get("features", content)
    return dict(content if isinstance(inner.get("type"), str) else inner)


def _leaves(spec: Any, path: str, sequences: int) -> Iterator[tuple[str, Feature]]:
    try:
        field, content, class_name = _content(spec)
        if field == "featuresDict":
            parts = _members(spec)
        elif field == "sequence" and class_name.rsplit(".", 1)[-1] != "Dataset":
            yield from _leaves(content["feature"], path, sequences + 1)
            return
        else:
            yield path, _leaf(spec, field, content, class_name, sequences)
            return
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield path, Feature("opaque", f"described in a way that can't be read ({error!r})"[:200])
        return
    for name, part in parts.items():
        yield from _leaves(part, f"{path}/{name}", sequences)


def _leaf(spec: dict[str, Any], field: str, content: dict[str, Any], class_name: str, sequences: int) -> Feature:
    description = " ".join(str(spec.get("description", "")).split())
    own_name = class_name.rsplit(".", 1)[-1] or "a feature without a class"
    if field == "text":
        return Feature("text", "text", sequences=sequences, description=description)
    if field in ("classLabel", "boundingBox"):
        shape: Shape = (4,) if field == "boundingBox" else ()
        return Feature("numbers", own_name, shape, "float32" if shape else "int64", "none", sequences, description)
    if field not in ("tensor", "image"):
        return Feature("opaque", own_name, sequences=sequences, description=description)
    shape, dtype = _shape(content.get("shape") or ()), str(content.get("dtype") or ("uint8" if field == "image" else ""))
    if field == "image":
        return Feature("image", "an image", shape or (None, None, 3), dtype, "none", sequences, description)
    encoding = str(content.get("encoding") or "none").lower()
    shown = "x".join("?" if side is None else str(side) for side in shape)
    form = (
        f"{own_name} of {dtype or 'no type'}"
        + (f", {shown}" if shown else "")
        + ("" if encoding == "none" else f", {encoding}")
    )
    form += " in a sequence" * sequences
    if dtype in _TEXTS and encoding == "none":
        return Feature("text", form, shape, dtype, "none", sequences, description)
    known = _NUMBERS.fullmatch(dtype) is not None and encoding in ("none", "bytes", "zlib")
    return Feature("numbers" if known else "opaque", form, shape, dtype, encoding, sequences, description)


def _shape(stated: Any) -> Shape:
    sides = stated.get("dimensions", ()) if isinstance(stated, dict) else stated
    numbers = [-1 if side is None else int(side) for side in sides]
    return tuple(None if number < 0 else number for number in numbers)
