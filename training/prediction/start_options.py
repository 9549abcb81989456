"""The options by which a command line names a model and the episodes that its predictions start from, and opening both.

The same for predicting and playing. A model is opened last: whatever is wrong with the rest is said before seconds go by.
"""

import logging
from collections.abc import Sequence
from typing import Any

from pipeline.command import CommandParser, add_section_folder, given_value
from pipeline.episode import Episode
from pipeline.recipe import ClipsConfig
from training.model_files.model_clips import clips_as_trained
from training.model_files.model_folder import locate_model
from training.prediction.episodes import choose_episodes, open_episodes
from training.session import WorldModel

log = logging.getLogger(__name__)


def add_start_options(parser: CommandParser) -> None:
    """Add `--model`, `--input`, `--camera` and `--held_out`; `open_start` reads them."""
    add_section_folder(parser, "model", "Folder (or URL, or hub id) that holds tokenizer/ and transformer/.")
    parser.add_argument(
        "--input",
        metavar="PATH_OR_URL",
        type=str,
        required=True,
        help="Where predictions start: an episode (.npz), a video, an episode shard (.tar) or a data set's folder.",
    )
    parser.add_argument(
        "--camera", metavar="NAME", type=str | None, default=None, help="Array of frames, for an .npz that holds several."
    )
    parser.add_argument("--held_out", type=bool, default=False, help="Only episodes held out from training (clips.held_out).")


def open_start(
    parser: CommandParser,
    arguments: Sequence[str] | None,
    options: Any,
    clips: ClipsConfig,
    count: int,
    wanted: str | None = None,
) -> tuple[WorldModel, list[Episode], ClipsConfig]:
    """The model, the episodes, and how clips of them are cut.

    Args:
        parser: Of the command.
        arguments: Its command line, for what was given there.
        options: As parsed.
        clips: The recipe's section.
        count: Episodes, from the first on.
        wanted: Key or number of one, in place of the first ones.

    Raises:
        SourceError: The input or the model can't be read.
        ConfigError: There is no such episode.
    """
    folder = locate_model(options.model_dir)
    fitted = clips_as_trained(folder, clips, given_value(parser, "clips", arguments) or {})
    held_out = fitted.held_out if options.held_out else None
    episodes = choose_episodes(open_episodes(options.input, options.camera), wanted, count, held_out, options.input)
    model = WorldModel.from_pretrained(folder)
    side = model.tokenizer.config.resolution
    if (least := min(min(episode.height, episode.width) for episode in episodes)) < side:
        log.warning("%s has frames of %d pixels, enlarged to the %d that the model sees", options.input, least, side)
    return model, episodes, fitted
