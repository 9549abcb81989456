"""What training starts from where it isn't random weights: the Llama of another model, whole or with low-rank updates.

Low-rank updates (LoRA, Hu et al. 2021) are peft's layers, put in place inside the Llama, so that the network around it stays
as it is. The weights under them are frozen. One rank keeps a copy of these in fp32, because a training engine may round them
to bf16 and cuts them up under ZeRO-3; with it an export merges the updates into exactly the weights that were read.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.network_recipe import TrainingConfig
from pipeline.records import sha256_of
from training.model_files.model_folder import locate_transformer
from training.model_files.transformer_files import WEIGHTS
from training.world_model import WorldModelNetwork, load_pretrained_llama

if TYPE_CHECKING:
    from peft import LoraConfig

# All matrices of the Llama, as the published code has them.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
_BASE = ".base_layer"
_UPDATE = ".lora_"


@dataclass(frozen=True)
class Updates:
    """Low-rank updates of a network.

    Attributes:
        config: peft's.
        frozen: The weights under them by name, in fp32 on the CPU; empty on ranks that don't export.
    """

    config: "LoraConfig"
    frozen: dict[str, torch.Tensor]


def start_from(network: WorldModelNetwork, training: TrainingConfig, exports: bool) -> str | None:
    """Load the Llama that a recipe names into a fresh network, and put updates into it where the recipe wants them.

    Args:
        network: Changed in place.
        training: Says what to start from.
        exports: Whether this process will export the model.

    Returns:
        SHA-256 of the weights that were loaded; None where the recipe names none.

    Raises:
        SourceError: There is no such Llama, or it isn't of the network's shape.
        ConfigError: It has the network's shape but another number of heads.
    """
    if training.init_from is None:
        return None
    folder = locate_transformer(training.init_from)
    load_pretrained_llama(network, folder)
    if training.lora_rank:
        _add_updates(network, training, exports)
    return sha256_of(folder / WEIGHTS)


def _add_updates(network: WorldModelNetwork, training: TrainingConfig, exports: bool) -> None:
    from peft import LoraConfig

    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=training.lora_dropout,
        target_modules=list(LORA_MODULES),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        _inject(network, config)
    frozen = {name: value for name, value in network.named_parameters() if not value.requires_grad} if exports else {}
    network.updates = Updates(config, {name: value.detach().clone() for name, value in frozen.items()})


def _inject(network: WorldModelNetwork, config: "LoraConfig") -> None:
    """Put peft's layers around the Llama's matrices and freeze all of the Llama but them; the heads go on learning."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, network.llm)


def tell_engine(network: WorldModelNetwork) -> None:
    """Name the parameters that updates of embeddings hold in a dictionary, so that ZeRO-3 gathers them. After `initialize`.

    DeepSpeed notices such parameters when they are first read, but not in compiled code.
    """
    from deepspeed import zero
    from peft.tuners.lora import Embedding

    for layer in network.modules():
        if isinstance(layer, Embedding):
            for parameter in (*layer.lora_embedding_A.values(), *layer.lora_embedding_B.values()):
                zero.register_external_parameter(layer, parameter)


def merged(network: WorldModelNetwork, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All weights of a network under the names that it has without updates.

    Args:
        network: As `start_from` left it; its own values are not used.
        trained: Its parameters that are not frozen, in full, fp32 on the CPU.
    """
    if network.updates is None:
        return trained
    from peft.tuners.lora import Embedding, Linear

    with torch.device("meta"):
        scratch = network.blank()
        _inject(scratch, network.updates.config)
    # Copied, since merging writes into the weights.
    frozen = {name: value.clone() for name, value in network.updates.frozen.items()}
    scratch.load_state_dict(trained | frozen, assign=True)
    for layer in scratch.modules():
        if isinstance(layer, (Embedding, Linear)):
            layer.merge()
    return {name.replace(_BASE, ""): value for name, value in scratch.state_dict().items() if _UPDATE not in name}
