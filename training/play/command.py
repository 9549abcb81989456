"""Opens a model and the episodes to start from, and serves the page until an interrupt."""

import logging
import signal
from typing import Protocol

from pipeline.common.errors import ConfigError
from pipeline.config.cli import CommandParser
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from training.cli.play import OFFERED
from training.play.game import MAX_FUTURES, Game
from training.play.server import PlayServer
from training.prediction.start_options import SamplingOptions, StartOptions, open_start, sampling_of

log = logging.getLogger(__name__)


class PlayOptions(StartOptions, SamplingOptions, Protocol):
    """The options of `training.cli.play`."""

    episodes: int | None
    host: str
    port: int


def run(parser: CommandParser, recipe: Recipe, options: PlayOptions) -> int:
    """Runs the command; returns its exit status. Arguments are those of `training.predict.run`."""
    if options.episodes is not None and options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, not {options.episodes}")
    if (options.samples or 1) > MAX_FUTURES:
        raise ConfigError(f"--samples must be 1 to {MAX_FUTURES} on the page, not {options.samples}")
    sampling = sampling_of(options)
    offered, asked = options.episodes or OFFERED, options.episodes is not None
    opened = open_start(parser.given("clips"), options, recipe.clips, offered, asked=asked)
    with PlayServer(Game(opened.model, opened.starts, sampling), options.host, options.port) as server:
        log.info("open %s in a browser; Ctrl-C stops the server", server.url)
        show({"url": server.url}, options)
        # A shell lets background programs ignore SIGINT; a supervisor sends SIGTERM.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")
    return 0
