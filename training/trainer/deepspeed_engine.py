"""Configures and drives DeepSpeed's engine, and works around its quirks.

The recipe decides everything that changes results. A DeepSpeed file may add settings for speed and memory (offload, buckets,
communication); it is refused if it contradicts the recipe.
"""

import json
import logging
import math
import sys
from typing import Any

import torch

from pipeline.common import storage
from pipeline.common.errors import ConfigError
from pipeline.config.model import TrainingConfig
from training.compat import attend_causally, import_deepspeed, quiet
from training.data.batch_plan import BatchPlan
from training.distributed import Processes
from training.model.lora import merge_updates, register_embedding_updates
from training.model.world_model import WorldModelNetwork, parameter_groups
from training.trainer.engine import Engine

log = logging.getLogger(__name__)
# The recipe decides these, so a DeepSpeed file must not set them.
_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "data_types",
    "checkpoint",
)


def deepspeed_config(training: TrainingConfig, plan: BatchPlan) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a recipe and a number of processes, merged with the recipe's DeepSpeed file.

    Raises:
        ConfigError: The file can't be read or sets what the recipe decides, or ZeRO stage and precision can't be combined.
    """
    if training.zero_stage == 0 and training.precision == "bf16":
        raise ConfigError(
            "training.zero_stage 0 can't accumulate gradients in fp32 for bf16: set training.zero_stage to 1, or "
            "training.precision to fp32"
        )
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # Without ZeRO, DeepSpeed clips without checking the norm: see `take_step`.
        "gradient_clipping": training.gradient_norm if training.zero_stage else 0.0,
        "zero_optimization": {"stage": training.zero_stage},
        "steps_per_print": sys.maxsize,
    }
    if training.precision == "bf16":
        # Gradients are summed in fp32 between processes too, so the sum hardly depends on the number of processes. A DeepSpeed
        # file may set `"communication_data_type": "bf16"` to halve the traffic.
        config |= {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    extra = _read_file(training) if training.deepspeed else {}
    config = _merge(config, extra)
    if "offload_optimizer" in config["zero_optimization"]:
        # torch's AdamW also runs on the host, without a compiler.
        config["zero_force_ds_cpu_optimizer"] = False
    return config


def _read_file(training: TrainingConfig) -> dict[str, Any]:
    path = str(training.deepspeed)
    try:
        extra = json.loads(storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"training.deepspeed: {path} can't be read as JSON ({error})") from error
    if not isinstance(extra, dict) or not isinstance(extra.get("zero_optimization", {}), dict):
        raise ConfigError(f"training.deepspeed: {path} must hold a JSON object of DeepSpeed settings")
    owned = sorted(extra.keys() & set(_OWNED))
    if owned:
        raise ConfigError(
            f"training.deepspeed: {path} sets {', '.join(owned)}, which only the recipe may set: remove it from the file"
        )
    stage = extra.get("zero_optimization", {}).get("stage", training.zero_stage)
    if stage != training.zero_stage:
        raise ConfigError(
            f"training.deepspeed: {path} sets ZeRO stage {stage}, but training.zero_stage is {training.zero_stage}"
        )
    return extra


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        merged[key] = _merge(merged[key], value) if isinstance(merged.get(key), dict) and isinstance(value, dict) else value
    return merged


def start_engine(network: WorldModelNetwork, training: TrainingConfig, config: dict[str, Any], processes: Processes) -> Engine:
    """Returns a DeepSpeed engine for `network`, with AdamW on fp32 master weights. Call it on all ranks, in a process group."""
    deepspeed = import_deepspeed(processes.device)
    attend_causally(network.llm)
    optimizer = torch.optim.AdamW(
        parameter_groups(network.to(processes.device), training.weight_decay),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        fused=processes.device.type == "cuda",
    )
    engine: Engine
    with quiet():
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
        if network.updates is not None:
            register_embedding_updates(network)
        if training.compile:
            engine.compile()
    return engine


def close_engine(engine: Engine) -> None:
    """Releases the engine and the process group, so that another engine can start in this process."""
    import deepspeed.comm

    engine.destroy()
    deepspeed.comm.destroy_process_group()


def take_step(engine: Engine, gradient_norm: float) -> bool:
    """Takes a micro step; the last one of a step updates the parameters if the gradient is finite. Call it on all ranks.

    Args:
        engine: The engine.
        gradient_norm: Maximum gradient norm for clipping; 0 = off.

    Returns:
        False if the step was skipped: parameters and optimizer are unchanged on all ranks. Only valid after a step's last micro
        step.
    """
    finite = True
    if not engine.zero_optimization_stage() and engine.is_gradient_accumulation_boundary():
        # ZeRO clips and checks by itself. Without ZeRO, all ranks have the same whole gradients here.
        parameters = list(engine.module.parameters())
        finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, gradient_norm or math.inf)))
        if not finite:
            # AdamW skips parameters without a gradient.
            engine.module.zero_grad(set_to_none=True)
    engine.step()
    return finite and bool(engine.was_step_applied())


def set_learning_rate(engine: Engine, rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def full_weights(engine: Engine, network: WorldModelNetwork) -> dict[str, torch.Tensor] | None:
    """Gathers all parameters in fp32 in host memory, one by one, with low-rank updates merged; None on every rank but 0.

    For bf16 training these are the fp32 master weights. Call it on all ranks.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        full = safe_get_full_fp32_param(parameter)
        if engine.global_rank == 0:
            # Without ZeRO the fp32 parameter itself is the master copy.
            weights[name] = (parameter if full is None else full).detach().float().cpu().clone()
    return merge_updates(network, weights) if engine.global_rank == 0 else None
