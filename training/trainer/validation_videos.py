"""Predicts held-out clips during training, as animations of truth and prediction side by side.

The weights go through a temporary model folder, so the videos show exactly what the run would export at that step; gathering,
writing and reading them takes seconds per evaluation. The truth is decoded from a clip's own tokens, because token shards hold
no frames. Rank 0 predicts, the others wait.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from pipeline.common.temp_dirs import locked_folder
from tokenize_offline.pretrained.weight_files import first_nonfinite
from tokenize_offline.tokenizer import CompressiveVQModel
from training.data.loader import Batch, as_batch
from training.distributed import Processes
from training.inference.session import WorldModel
from training.model.world_model import load_transformer
from training.trainer.deepspeed_engine import full_weights
from training.trainer.engine import Engine
from training.trainer.run import Run
from training.trainer.validation_loss import mixture_shares, spread_rows
from training.visuals.pictures import Strip, write_gif

FOLDER_NAME = "predictions"
log = logging.getLogger(__name__)


class ValidationVideos:
    """Predicts the same few held-out clips at every evaluation.

    Args:
        run: Run with held-out clips and a tokenizer.
        processes: Processes of the run.
        clips: Number of clips; data sets take turns, starting with the largest weight.
    """

    def __init__(self, run: Run, processes: Processes, clips: int) -> None:
        assert run.validation is not None and run.tokenizer is not None
        self._run = run
        self._processes = processes
        shares = mixture_shares(run.validation, run.order.weights)
        names = sorted(shares, key=lambda name: (-shares[name], name))
        turns = -(-clips // len(names))
        rows = {name: spread_rows(run.validation, name, turns) for name in names}
        # Small data sets have fewer turns.
        chosen = [(name, int(rows[name][turn])) for turn in range(turns) for name in names if turn < len(rows[name])]
        batch = self._read(chosen[:clips])
        finite = [batch.action is None or bool(torch.isfinite(batch.action[number]).all()) for number in range(len(batch.ids))]
        # Models refuse non-finite actions.
        self._clips = [clip for clip, good in zip(chosen, finite, strict=False) if good]
        if (skipped := len(finite) - len(self._clips)) and processes.is_first:
            log.warning("%d of %d held-out clips are not predicted: their actions are not finite", skipped, len(finite))

    def write(self, engine: Engine, done: int) -> dict[str, Path]:
        """Predicts with the weights after `done` steps. Call it on all ranks.

        Returns:
            GIF files in the run folder by clip name; empty on every rank but 0.
        """
        if not self._clips:
            return {}
        weights = full_weights(engine, self._run.network)
        animations = {} if weights is None else self._predict_if_finite(weights, done)
        self._processes.barrier()
        return animations

    def _predict_if_finite(self, weights: dict[str, torch.Tensor], done: int) -> dict[str, Path]:
        if (bad := first_nonfinite(weights)) is not None:
            log.warning("step %d: no predictions, because %s holds NaN or infinite numbers", done, bad)
            return {}
        return self._predict(weights, done)

    def _predict(self, weights: dict[str, torch.Tensor], done: int) -> dict[str, Path]:
        folder = self._run.folder / FOLDER_NAME / f"step-{done:08d}"
        truth, predicted = predict_clips(self._model(weights), self._read(self._clips))
        animations = {}
        context = self._run.store.layout.context_length
        for number, (name, _) in enumerate(self._clips):
            path = folder / f"{number:02d}-{name}.gif"
            strips = [
                Strip("truth (tokens)", truth[number], len(truth[number])),
                Strip("prediction", predicted[number], context),
            ]
            write_gif(str(path), strips, context)
            animations[path.stem] = path
        return animations

    def _read(self, clips: list[tuple[str, int]]) -> Batch:
        store = self._run.validation
        assert store is not None
        dataset = np.array([store.datasets.index(name) for name, _ in clips])
        rows = np.array([row for _, row in clips])
        return as_batch(store.read(store.datasets, dataset, rows, bool(self._run.network.action_dim)))

    def _model(self, weights: dict[str, torch.Tensor]) -> WorldModel:
        """Returns the model that the run would export now."""
        files = self._run.tokenizer
        assert files is not None
        tokenizer = CompressiveVQModel.from_files(files)
        tokenizer.set_context_length(self._run.store.layout.context_length)
        with locked_folder("ivideogpt-model-") as folder:
            self._run.network.save_transformer(folder, weights)
            network = load_transformer(folder, tokenizer.id_layout)
        return WorldModel(tokenizer.to(self._processes.device), network.to(self._processes.device))


@torch.no_grad()
def predict_clips(model: WorldModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicts clips from their context, always with the same noise.

    Args:
        model: Model of the tokenizer that made the tokens.
        batch: B clips, with actions if the model takes them.

    Returns:
        Frames decoded from the clips' own tokens and from the predicted ones, both (B, T, 3, S, S) in [0, 1] on the CPU.
    """
    id_layout, ids = model.id_layout, batch.ids.to(model.device)
    session = model.start_from_ids(ids)
    for number in range(id_layout.future_frames(ids.shape[1])):
        session.step(None if batch.action is None else batch.action[:, id_layout.context_length - 1 + number])
    truth, predicted = (model.tokenizer.detokenize(which).clamp(0, 1).cpu() for which in (ids, session.ids))
    return truth, predicted
