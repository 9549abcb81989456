"""Which clips of a shard are decoded again to see what the tokenizer kept of them.

One plain clip of the episodes whose keys hash lowest: that depends on the episodes alone, not on who reads them or in which
order. Decoding a clip alone costs a GPU as much as encoding a dozen in a full batch, so a sample is small: one in 400
clips, and no more than a few of a large shard; a data set has many shards.
"""

from dataclasses import dataclass, field

from torch import Tensor

from tokenize_offline.clips.decode import EpisodeClips
from tokenize_offline.clips.sampling import KeyedRandom

_LARGEST = 4
_CLIPS_FOR_ONE = 400


@dataclass(frozen=True)
class SampledClip:
    """One clip.

    Attributes:
        rank: The lowest of a shard are its sample.
        place: Of its ids among those of the shard.
        pixels: (T, 3, S, S) in [0, 1].
    """

    rank: float
    place: int
    pixels: Tensor


@dataclass
class Sample:
    """The sample of the shard that episodes are offered from.

    Attributes:
        candidates: The lowest so far.
        clips: Clips of the episodes offered.
    """

    candidates: list[SampledClip] = field(default_factory=list)
    clips: int = 0

    def offer(self, episode: EpisodeClips, place: int) -> None:
        """Take an episode's first clip into account.

        Args:
            episode: With its pixels.
            place: Of its first clip's ids among those of the shard.
        """
        self.clips += len(episode.pixels)
        rank = KeyedRandom("sample", episode.key).uniform("rank")
        if len(self.candidates) < _LARGEST or rank < self.candidates[-1].rank:
            # A copy, because the pixels are part of all that was read of the episode.
            taken = SampledClip(rank, place + episode.clip_index[0], episode.pixels[episode.clip_index[0]].clone())
            self.candidates = sorted([*self.candidates, taken], key=lambda clip: clip.rank)[:_LARGEST]

    def drawn(self) -> list[SampledClip]:
        """The sample, once all episodes were offered; empty only without episodes."""
        return self.candidates[: max(1, self.clips // _CLIPS_FOR_ONE)]
