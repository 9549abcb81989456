"""The command line of `ivideogpt-play`."""

import json
import logging
import signal
from collections.abc import Sequence

from pipeline.command import parse_recipe, recipe_parser, run_command
from pipeline.errors import ConfigError
from training.play.game import MAX_FUTURES, Game
from training.play.server import PlayServer
from training.prediction.sampling_options import add_sampling_options, sampling_of
from training.prediction.start_options import add_start_options, open_start

log = logging.getLogger(__name__)
_OFFERED = 16


def _run(arguments: Sequence[str] | None) -> int:
    parser = recipe_parser(
        "ivideogpt-play", "Drive a world model with keys and sliders on a local web page.", helped=("clips",)
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--episodes",
        type=int | None,
        default=None,
        help=f"How many episodes to offer as starts, from the first on; by default {_OFFERED}.",
    )
    # One unlikely id stays in view for as long as a person plays, so fewer of them are drawn than in predictions.
    add_sampling_options(parser, of_samples=", shown side by side; the page can change all this", temperature=0.5)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen on; any but the default lets other machines in."
    )
    parser.add_argument("--port", type=int, default=8600, help="Port to listen on; 0 takes a free one.")
    recipe, options = parse_recipe(parser, arguments)
    if options.episodes is not None and options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, not {options.episodes}")
    if options.samples > MAX_FUTURES:
        raise ConfigError(f"--samples must be 1 to {MAX_FUTURES}, the futures that the page shows, not {options.samples}")
    sampling = sampling_of(options)
    offered, asked = options.episodes or _OFFERED, options.episodes is not None
    opened = open_start(parser, arguments, options, recipe.clips, offered, asked=asked)
    with PlayServer(Game(opened.model, opened.starts, sampling), options.host, options.port) as server:
        log.info("open %s in a browser; Ctrl-C ends it", server.url)
        print(json.dumps({"url": server.url}), flush=True)
        # A shell that starts programs in the background has them ignore the interrupt; a supervisor sends SIGTERM.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("ended")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-play`; returns its exit status."""
    return run_command(_run, arguments)
