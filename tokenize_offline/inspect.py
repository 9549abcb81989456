"""`ivideogpt-inspect` with what needs more than records: plans, codebooks of token shards, rows decoded back to pictures.

It adds to `pipeline.inspection.inspect`, which knows nothing of tokens; torch is imported only to decode.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
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
    """The command line: that of `pipeline.inspection.inspect`, and what decodes."""
    made = inspect.parser()
    made.add_argument(
        "--codebooks",
        action="store_true",
        help="Of token shards: codes used, perplexity, and PSNR of the clips decoded while tokenizing. Reads all ids.",
    )
    made.add_argument(
        "--plan",
        metavar="RECIPE",
        type=str | None,
        default=None,
        help="Say what tokenizing and training by this recipe will take: clips, bytes, GPU-hours, epochs.",
    )
    made.add_argument(
        "--rate",
        metavar="CLIPS_PER_SECOND",
        type=str | None,
        default=None,
        help="With --plan: of one GPU; a number, or a file with what tokenizing or its benchmark printed.",
    )
    made.add_argument(
        "--rows", type=list[int] | None, default=None, help="Draw these rows of one token shard as pictures, e.g. [0,5,9]."
    )
    made.add_argument(
        "--tokenizer", metavar="DIR", type=str | None, default=None, help="With --rows: the tokenizer that made the shard."
    )
    made.add_argument(
        "--picture", metavar="FILE", type=str, default="rows.png", help="With --rows: the file to draw into, a line a row."
    )
    return made


def run(arguments: Sequence[str] | None = None) -> int:
    """The body of the command: what `pipeline.inspection` prints, and a JSON line per data set for its codebooks and samples.

    Raises:
        ProjectError: Of all kinds; the message says what to do.
    """
    options = parser().parse_args(list(arguments) if arguments is not None else None)
    _require_effect(options)
    if options.rows is not None:
        if options.tokenizer is None or not str(options.folder).endswith(".arrow"):
            raise ConfigError("--rows needs one token shard (.arrow) in place of the folder, and --tokenizer")
        draw_rows(options.folder, options.rows, options.tokenizer, options.picture)
        return 0
    if options.plan is not None:
        if options.folder is None:
            raise ConfigError("--plan needs a folder of episode shards, an output folder of ivideogpt-ingest")
        rate = None if options.rate is None else clips_per_second(options.rate)
        show(estimate(str(options.folder).rstrip("/"), read_recipe(options.plan), rate), options)
        return 0
    status = inspect.run_inspection(options)
    if options.codebooks:
        show(list(_codebooks(options.folder.rstrip("/"))), options)
    return status


# Each way of using the command, by the option that asks for it, and the options that have an effect then.
_MODES = {
    "rows": ("tokenizer", "picture"),
    "plan": ("rate",),
    "doctor": ("dataset",),
    "": ("verify", "html", "codebooks"),
}


def _require_effect(options: Any) -> None:
    """Refuse an option that what was asked for has no use for.

    Raises:
        ConfigError: There is one.
    """
    asked = [mode for mode in _MODES if mode and getattr(options, mode) is not None]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} are two things to do: run the command once for each")
    mode = asked[0] if asked else ""
    for of_mode, names in _MODES.items():
        for name in names if of_mode != mode else ():
            if getattr(options, name) != parser().get_default(name):
                here = f"with --{mode}" if mode else f"without --{of_mode}"
                raise ConfigError(f"--{name} has no effect {here}: leave it out")


def _codebooks(path: str) -> Iterator[dict[str, Any]]:
    """Codebooks and reconstruction of every folder of token shards at or below `path`.

    Raises:
        ShardError: There are none.
    """
    found = False
    for folder, shards in inspect.find_shards(path):
        arrows = [storage.join(folder, name) for name in shards if name.endswith(".arrow")]
        if arrows:
            found = True
            recorded = [path for path in map(manifest_path, arrows) if storage.exists(path)]
            reconstruction = merged_reconstruction([read_manifest(path).statistics for path in recorded])
            yield {"folder": folder, "codebooks": codebooks_of(arrows), "reconstruction": reconstruction}
    if not found:
        raise ShardError(f"--codebooks: {path} holds no token shards (.arrow), which ivideogpt-tokenize writes")


def read_recipe(path: str) -> Recipe:
    """The recipe in a YAML file, what it leaves out filled in."""
    recipe, _ = parse_recipe(recipe_parser("ivideogpt-inspect --plan", "A recipe."), ["--config", path])
    return recipe


def codebooks_of(shards: Sequence[str]) -> dict[str, float]:
    """Codes used and perplexities over all ids of token shards of one layout, which may lie on an object store."""
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
    """Decode rows of a token shard and draw their frames, a line a row, the context first.

    Raises:
        ConfigError: There is no such row, or the tokenizer is another one than that which made the shard.
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
            f"{shard} was made by the tokenizer with weights {info.layout.tokenizer_sha256[:12]}.., {tokenizer} has "
            f"{str(model.weights_sha256)[:12]}..: name the one that made it"
        )
    model.set_context_length(info.layout.context_length)
    frames = model.detokenize(torch.from_numpy(ids.astype(np.int64))).clamp(0, 1)
    pixels = (frames * 255).round().byte().permute(0, 3, 1, 4, 2)
    # (rows, S, T, S, 3): a margin after every frame and every line.
    lines = np.pad(pixels.numpy(), ((0, 0), (0, _MARGIN), (0, 0), (0, _MARGIN), (0, 0)), constant_values=255)
    sheet = lines.reshape(lines.shape[0] * lines.shape[1], -1, 3)
    with storage.staged(picture) as staging:
        Image.fromarray(sheet).save(staging, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ivideogpt-inspect`."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
