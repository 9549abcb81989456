"""The command `ivideogpt-inspect`: adds cost estimates, codebook statistics and decoded rows to `pipeline.inspection.inspect`.

It imports torch only to decode.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.common.manifests import manifest_path, read_manifest
from pipeline.config.cli import CommandParser, parse_recipe, recipe_parser, run_command
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from pipeline.inspection import inspect
from tokenize_offline.estimate import clips_per_second, estimate
from tokenize_offline.shards.codebook_stats import code_counts, codebook_statistics, merged_reconstruction
from tokenize_offline.shards.token_shards import fixed_size_column, open_token_shard, require_same_layout

_MARGIN = 2


def parser() -> CommandParser:
    """The parser of the command line: that of `pipeline.inspection.inspect` with more options."""
    extended = inspect.parser()
    extended.add_argument(
        "--codebooks",
        action="store_true",
        help="Print codes used, perplexity and reconstruction PSNR of token shards (reads all ids).",
    )
    extended.add_argument(
        "--plan",
        metavar="RECIPE",
        type=str | None,
        default=None,
        help="Estimate clips, bytes, GPU-hours and epochs of tokenizing and training with this recipe.",
    )
    extended.add_argument(
        "--rate",
        metavar="CLIPS_PER_SECOND",
        type=str | None,
        default=None,
        help="With --plan: speed of one GPU, as a number or a file with the output of ivideogpt-tokenize.",
    )
    extended.add_argument(
        "--rows", type=list[int] | None, default=None, help="Decode these rows of one token shard to a picture, e.g. [0,5,9]."
    )
    extended.add_argument(
        "--tokenizer", metavar="DIR", type=str | None, default=None, help="With --rows: the tokenizer that made the shard."
    )
    extended.add_argument(
        "--picture", metavar="FILE", type=str, default="rows.png", help="With --rows: picture file to write, one line per row."
    )
    return extended


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    Raises:
        ProjectError: Any kind; the message says what to do.
    """
    options = parser().parse_args(list(arguments) if arguments is not None else None)
    _require_effect(options)
    if options.rows is not None:
        if options.tokenizer is None or not str(options.folder).endswith(".arrow"):
            raise ConfigError("--rows needs one token shard (.arrow) instead of a folder, and --tokenizer")
        draw_rows(options.folder, options.rows, options.tokenizer, options.picture)
        return 0
    if options.plan is not None:
        if options.folder is None:
            raise ConfigError("--plan needs a folder of episode shards: an output folder of ivideogpt-ingest")
        rate = None if options.rate is None else clips_per_second(options.rate)
        show(estimate(str(options.folder).rstrip("/"), read_recipe(options.plan), rate), options)
        return 0
    status = inspect.run_inspection(options)
    if options.codebooks:
        show(list(_codebooks(options.folder.rstrip("/"))), options)
    return status


# Mode, named by its option -> the options that have an effect in it.
_MODES = {
    "rows": ("tokenizer", "picture"),
    "plan": ("rate",),
    "doctor": ("dataset",),
    "": ("verify", "html", "codebooks"),
}


def _require_effect(options: Namespace) -> None:
    """Check that every given option has an effect.

    Raises:
        ConfigError: An option has no effect with the others, or two modes are given.
    """
    modes = [mode for mode in _MODES if mode and getattr(options, mode) is not None]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} can't be combined: run the command once for each")
    mode = modes[0] if modes else ""
    for other, names in _MODES.items():
        for name in names if other != mode else ():
            if getattr(options, name) != parser().get_default(name):
                condition = f"with --{mode}" if mode else f"without --{other}"
                raise ConfigError(f"--{name} has no effect {condition}: omit it")


def _codebooks(path: str) -> Iterator[dict[str, Any]]:
    """Codebook and reconstruction statistics of every folder of token shards at or below `path`.

    Raises:
        ShardError: There are no token shards.
    """
    found = False
    for folder, shards in inspect.find_shards(path):
        arrows = [storage.join(folder, name) for name in shards if name.endswith(".arrow")]
        if arrows:
            found = True
            manifests = [path for path in map(manifest_path, arrows) if storage.exists(path)]
            reconstruction = merged_reconstruction([read_manifest(path).statistics for path in manifests])
            yield {"folder": folder, "codebooks": codebooks_of(arrows), "reconstruction": reconstruction}
    if not found:
        raise ShardError(f"--codebooks: {path} holds no token shards (.arrow), which ivideogpt-tokenize writes")


def read_recipe(path: str) -> Recipe:
    """Read a recipe from a YAML file and fill in the defaults."""
    recipe, _ = parse_recipe(recipe_parser("ivideogpt-inspect --plan", "A recipe."), ["--config", path])
    return recipe


def codebooks_of(shards: Sequence[str]) -> dict[str, float]:
    """Codes used and perplexities over all ids of token shards, which must have one layout. Paths may be URLs."""
    first, counts = None, np.zeros(0, np.int64)
    for shard in shards:
        with storage.local_file(shard) as path:
            info, table = open_token_shard(path)
            if first is None:
                first, counts = info, np.zeros(info.layout.vocabulary, np.int64)
            require_same_layout(first, shards[0], info, shard)
            for ids in fixed_size_column(table, "ids", info.layout.sequence_length):
                counts += code_counts(ids, info.layout)
            del table, ids
    assert first is not None
    return codebook_statistics(counts, first.layout)


def draw_rows(shard: str, rows: Sequence[int], tokenizer: str, picture: str) -> None:
    """Decode rows of a token shard and write their frames to a picture, one line per row, context first.

    Raises:
        ConfigError: A row does not exist, or another tokenizer made the shard.
    """
    with storage.local_file(shard) as path:
        info, table = open_token_shard(path)
        if not rows or not all(0 <= row < table.num_rows for row in rows):
            raise ConfigError(f"--rows {list(rows)}: {shard} has rows 0 to {table.num_rows - 1}")
        ids = np.concatenate(list(fixed_size_column(table, "ids", info.layout.sequence_length)))[list(rows)]
        del table
    import torch

    from tokenize_offline.tokenizer import CompressiveVQModel

    model = CompressiveVQModel.from_pretrained(tokenizer)
    if model.weights_sha256 != info.layout.tokenizer_sha256:
        raise ConfigError(
            f"{shard} was made by a tokenizer with weights {info.layout.tokenizer_sha256[:12]}.., but {tokenizer} has "
            f"{str(model.weights_sha256)[:12]}..: pass the tokenizer that made it"
        )
    model.set_context_length(info.layout.context_length)
    frames = model.detokenize(torch.from_numpy(ids.astype(np.int64))).clamp(0, 1)
    pixels = (frames * 255).round().byte().permute(0, 3, 1, 4, 2)
    # (rows, S, T, S, 3), with a margin after every frame and every line.
    lines = np.pad(pixels.numpy(), ((0, 0), (0, _MARGIN), (0, 0), (0, _MARGIN), (0, 0)), constant_values=255)
    sheet = lines.reshape(lines.shape[0] * lines.shape[1], -1, 3)
    with storage.staged(picture) as staging:
        Image.fromarray(sheet).save(staging, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ivideogpt-inspect`."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
