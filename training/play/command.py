"""The command line of `ivideogpt-play`."""

import json
import logging
import signal
from collections.abc import Sequence

from pipeline.command import add_section_folder, given_value, parse_recipe, recipe_parser, run_command
from training.model_files.model_folder import locate_model
from training.play.game import Game
from training.play.server import PlayServer
from training.prediction.episodes import choose_episodes, open_episodes
from training.prediction.model_clips import clips_as_trained
from training.prediction.sampling_options import add_sampling_options, sampling_of
from training.session import WorldModel

log = logging.getLogger(__name__)


def _run(arguments: Sequence[str] | None) -> int:
    parser = recipe_parser(
        "ivideogpt-play", "Drive a world model with keys and sliders on a local web page.", helped=("clips",)
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL [OPTION ...]"
    add_section_folder(parser, "model", "Folder (or URL, or hub id) that holds tokenizer/ and transformer/.")
    parser.add_argument(
        "--input",
        metavar="PATH_OR_URL",
        type=str,
        required=True,
        help="Frames to start from: an episode (.npz), a video, a shard (.tar) or a folder.",
    )
    parser.add_argument(
        "--camera", metavar="NAME", type=str | None, default=None, help="Array of frames, for an .npz that holds several."
    )
    parser.add_argument("--episodes", type=int, default=16, help="How many episodes to offer as starts, from the first on.")
    parser.add_argument("--held_out", type=bool, default=False, help="Only episodes held out from training (clips.held_out).")
    # One unlikely id stays in view for as long as a person plays, so fewer of them are drawn than in predictions.
    add_sampling_options(parser, of_samples=", shown side by side; the page can change all this", temperature=0.5)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen on; any but the default lets other machines in."
    )
    parser.add_argument("--port", type=int, default=8600, help="Port to listen on; 0 takes a free one.")
    recipe, options = parse_recipe(parser, arguments)
    sampling = sampling_of(options)
    folder = locate_model(options.model_dir)
    clips = clips_as_trained(folder, recipe.clips, given_value(parser, "clips", arguments) or {})
    held_out = clips.held_out if options.held_out else None
    episodes = choose_episodes(
        open_episodes(options.input, options.camera), None, max(1, options.episodes), held_out, options.input
    )
    model = WorldModel.from_pretrained(folder)
    with PlayServer(Game(model, episodes, clips, sampling), options.host, options.port) as server:
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
