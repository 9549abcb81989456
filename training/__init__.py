"""Stage 3: trains a world model on token shards, and predicts video with it."""

from typing import TYPE_CHECKING, Any

from training.data.sampler import SampleOrder
from training.data.token_dataset import TokenStore

if TYPE_CHECKING:
    from training.inference.session import WorldModel

__all__ = ["SampleOrder", "TokenStore", "WorldModel"]


def __getattr__(name: str) -> Any:
    # Importing the model takes seconds (torch, transformers); the order and the store don't need it.
    if name == "WorldModel":
        from training.inference.session import WorldModel

        return WorldModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
