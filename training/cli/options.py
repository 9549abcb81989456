"""The options that several commands share: where predictions start, and how futures are drawn."""

from pipeline.config.cli import CommandParser, add_section_folder


def add_start_options(parser: CommandParser) -> None:
    """Add `--model`, `--input`, `--camera`, `--held_out`, `--rate` and `--dataset`.

    `training.prediction.start_options` reads them.
    """
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
    parser.add_argument(
        "--rate",
        metavar="HZ",
        type=float | None,
        default=None,
        help="Frames a second of the input, where it doesn't say so itself (.npz) or says it wrong.",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        type=str | None,
        default=None,
        help="Data set of the model's training whose time between frames is taken; by default the nearest to the input's.",
    )


def add_sampling_options(
    parser: CommandParser, samples: int | None = 1, of_samples: str = "", temperature: float = 1.0
) -> None:
    """Add `--samples`, `--top_k`, `--temperature` and `--seed`; `training.prediction.sampling_options` reads them.

    Args:
        parser: Of the command.
        samples: Default; None leaves the number to the command.
        of_samples: What more there is to say of `--samples`.
        temperature: Default.
    """
    kind = int if samples is not None else int | None
    parser.add_argument("--samples", type=kind, default=samples, help=f"Futures to draw from every start{of_samples}.")
    parser.add_argument("--top_k", type=int, default=100, help="Draw from the k likeliest ids only; 0 allows all.")
    parser.add_argument("--temperature", type=float, default=temperature, help="Of the draw; 0 always takes the likeliest id.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed draws the same futures.")
