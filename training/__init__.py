"""Stage 3: token shards become a world model, and the world model predicts video."""

from typing import TYPE_CHECKING, Any

from training.data.sampler import SampleOrder
from training.data.token_dataset import TokenStore

if TYPE_CHECKING:
    from training.inference.session import WorldModel

__all__ = ["SampleOrder", "TokenStore", "WorldModel"]


def __getattr__(name: str) -> Any:
    # The model needs torch and transformers, seconds of imports that the order and the store can do without.
    if name == "WorldModel":
        from training.inference.session import WorldModel

        return WorldModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
