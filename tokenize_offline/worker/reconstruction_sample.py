"""Selects the clips of a shard that are decoded again, to measure reconstruction quality.

It takes one plain clip from each of the episodes with the lowest key hashes, so the sample depends only on the episodes.
Decoding a single clip costs a GPU as much as encoding twelve in a full batch, so the sample is small: one in 400 clips, at most
four per shard.
"""

from dataclasses import dataclass, field

from torch import Tensor

from tokenize_offline.clips.decode import EpisodeClips
from tokenize_offline.clips.sampling import KeyedRandom

_MAX_CLIPS = 4
_CLIPS_PER_SAMPLE = 400


@dataclass(frozen=True)
class SampledClip:
    """A clip of the sample.

    Attributes:
        rank: Hash of the episode's key in [0, 1); the clips of lowest rank are the sample.
        index: Index of the clip's ids in the shard.
        pixels: (T, 3, S, S) in [0, 1].
    """

    rank: float
    index: int
    pixels: Tensor


@dataclass
class ReconstructionSample:
    """The sample of one shard.

    Attributes:
        candidates: The clips of lowest rank so far, sorted by rank.
        clips: Number of clips in all episodes so far.
    """

    candidates: list[SampledClip] = field(default_factory=list)
    clips: int = 0

    def add(self, episode: EpisodeClips, first_index: int) -> None:
        """Consider the first clip of an episode.

        Args:
            episode: Clips of the episode, with pixels.
            first_index: Index of the first clip's ids in the shard.
        """
        self.clips += len(episode.pixels)
        rank = KeyedRandom("sample", episode.key).uniform("rank")
        if len(self.candidates) < _MAX_CLIPS or rank < self.candidates[-1].rank:
            index = episode.clip_index[0]
            # A copy, so that the other clips of the episode can be freed.
            candidate = SampledClip(rank, first_index + index, episode.pixels[index].clone())
            self.candidates = sorted([*self.candidates, candidate], key=lambda clip: clip.rank)[:_MAX_CLIPS]

    def selected(self) -> list[SampledClip]:
        """The sample, after all episodes were added; empty only without episodes."""
        return self.candidates[: max(1, self.clips // _CLIPS_PER_SAMPLE)]
