"""Options that several commands share: the model, the input, and sampling."""

from pipeline.config.cli import CommandParser, add_section_folder


def add_start_options(parser: CommandParser) -> None:
    """Adds `--model`, `--input`, `--camera`, `--held_out`, `--rate` and `--dataset` (see `StartOptions`)."""
    add_section_folder(parser, "model", "Model folder, run folder, URL or hub id.")
    parser.add_argument(
        "--input",
        metavar="PATH_OR_URL",
        type=str,
        required=True,
        help="Episode (.npz), video, episode shard (.tar) or folder of a data set.",
    )
    parser.add_argument(
        "--camera", metavar="NAME", type=str | None, default=None, help="Array of frames in an .npz with several."
    )
    parser.add_argument(
        "--held_out", type=bool, default=False, help="Use only episodes held out from training (clips.held_out)."
    )
    parser.add_argument(
        "--rate",
        metavar="HZ",
        type=float | None,
        default=None,
        help="Frame rate of the input, if it has none (.npz) or a wrong one.",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        type=str | None,
        default=None,
        help="Use the time step of this data set of the training; default: the nearest.",
    )


def add_sampling_options(parser: CommandParser, samples: int | None = 1, note: str = "", temperature: float = 1.0) -> None:
    """Adds `--samples`, `--top_k`, `--temperature` and `--seed` (see `SamplingOptions`).

    Args:
        parser: Command line parser.
        samples: Default number of samples; None lets the command decide.
        note: Text at the end of the help of `--samples`.
        temperature: Default temperature.
    """
    kind = int if samples is not None else int | None
    parser.add_argument("--samples", type=kind, default=samples, help=f"Number of futures per clip{note}.")
    parser.add_argument("--top_k", type=int, default=100, help="Sample among the k most likely ids; 0 = all.")
    parser.add_argument("--temperature", type=float, default=temperature, help="Sampling temperature; 0 = greedy.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of sampling.")
