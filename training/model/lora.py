"""Loads the Llama of another model to start training from, and adds low-rank updates to it.

Low-rank updates (LoRA, Hu et al. 2021) are peft's layers, injected into the Llama, so the network around it stays unchanged.
The weights under them are frozen. One rank keeps an fp32 copy of these, because a training engine may round them to bf16 and
shard them under ZeRO-3. With it an export merges the updates into exactly the weights that were read.
"""

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig

from pipeline.common.errors import ConfigError
from pipeline.config.model import ModelConfig, TrainingConfig
from training.model.files.llama_config import arithmetic, depends_on_positions
from training.model.files.locate import locate_transformer
from training.model.files.transformer import TransformerFolder, open_folder
from training.model.updates import Updates
from training.model.world_model import WorldModelNetwork, load_pretrained_llama, published_llama_config

if TYPE_CHECKING:
    from peft import LoraConfig

# All matrices of the Llama, as in the published code.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
# Keys of a Llama's shape in the recipe's `model` section, and their names in its configuration.
_SHAPE = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "positions": "max_position_embeddings",
}
_BASE = ".base_layer"
_UPDATE = ".lora_"


def open_initial_model(training: TrainingConfig) -> TransformerFolder | None:
    """Opens the transformer folder that a recipe starts from; None if it names none.

    Raises:
        SourceError: There is no such model, or it can't be used.
    """
    return None if training.init_from is None else open_folder(locate_transformer(training.init_from))


def adopt_shape(model: ModelConfig, start: LlamaConfig, given: Collection[str] | None) -> ModelConfig:
    """Returns the recipe's `model` section with the shape of the initial model.

    Args:
        model: The section.
        start: Configuration of the initial model.
        given: Keys of the section that the user set, which must agree; None = those that differ from the defaults.

    Raises:
        ConfigError: The user set another shape; the message names the key and both values.
    """
    shape = {name: getattr(start, key) for name, key in _SHAPE.items()}
    wanted = dataclasses.asdict(model)
    if given is None:
        default = dataclasses.asdict(ModelConfig())
        given = [name for name in shape if wanted[name] != default[name]]
    for name in (name for name in shape if name in given):
        if name == "positions" and not depends_on_positions(start):
            shape[name] = wanted[name]  # the same weights give the same results at any length
        elif wanted[name] != shape[name]:
            raise ConfigError(
                f"model.{name} is {wanted[name]}, but the model of training.init_from has {shape[name]}: set it to "
                f"{shape[name]}, or remove it from the recipe"
            )
    return dataclasses.replace(model, **shape)


def nonstandard_settings(network: WorldModelNetwork, model: ModelConfig) -> dict[str, Any]:
    """Returns what a network computes differently from the published Llama of its shape, by configuration key."""
    own, published = (arithmetic(one) for one in (network.config, published_llama_config(model, network.config.vocab_size)))
    return {name: value for name, value in own.items() if value != published[name]}


def load_initial_weights(network: WorldModelNetwork, start: TransformerFolder, training: TrainingConfig, exports: bool) -> str:
    """Loads the Llama of another model into a fresh network, and adds updates to it if the recipe has them.

    Args:
        network: Network with the other model's configuration; changed in place.
        start: The other model.
        training: Training section of the recipe.
        exports: Whether this process will export the model.

    Returns:
        SHA-256 of the loaded weights.

    Raises:
        SourceError: The weights have other shapes than the network, are damaged, or contain NaN or infinite values.
    """
    load_pretrained_llama(network, start)
    if training.lora_rank:
        _add_updates(network, training, exports)
    return start.files.sha256()


def _add_updates(network: WorldModelNetwork, training: TrainingConfig, exports: bool) -> None:
    from peft import LoraConfig

    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,  # type: ignore[arg-type]  # peft declares int but takes any number
        lora_dropout=training.lora_dropout,
        target_modules=list(LORA_MODULES),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        _inject(network, config)
    frozen = {name: value for name, value in network.named_parameters() if not value.requires_grad} if exports else {}
    network.updates = Updates(config, {name: value.detach().clone() for name, value in frozen.items()})


def _inject(network: WorldModelNetwork, config: "LoraConfig") -> None:
    """Puts peft's layers around the Llama's matrices and freezes the rest of the Llama; the heads stay trainable."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, network.llm)


def register_embedding_updates(network: WorldModelNetwork) -> None:
    """Registers the update parameters of embeddings, so that ZeRO-3 gathers them. Call it after `initialize`.

    These parameters are in a dictionary. DeepSpeed finds such parameters when they are first read, but not in compiled code.
    """
    from deepspeed import zero
    from peft.tuners.lora import Embedding

    for layer in network.modules():
        if isinstance(layer, Embedding):
            for parameter in (*layer.lora_embedding_A.values(), *layer.lora_embedding_B.values()):
                zero.register_external_parameter(layer, parameter)


def merge_updates(network: WorldModelNetwork, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns all weights of a network, with updates merged, under the names of a network without updates.

    Args:
        network: Network as `load_initial_weights` left it; its own values are not used.
        trained: All its trainable parameters, fp32 on the CPU.
    """
    if network.updates is None:
        return trained
    from peft.tuners.lora import Embedding, Linear

    with torch.device("meta"):
        scratch = network.empty_copy()
        _inject(scratch, network.updates.config)
    # Copies, because merging changes the weights in place.
    frozen = {name: value.clone() for name, value in network.updates.frozen.items()}
    scratch.load_state_dict(trained | frozen, assign=True)
    for layer in scratch.modules():
        if isinstance(layer, (Embedding, Linear)):
            layer.merge()
    return {name.replace(_BASE, ""): value for name, value in scratch.state_dict().items() if _UPDATE not in name}
