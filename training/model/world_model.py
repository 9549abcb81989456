"""Defines the world model's network: a Llama over the tokenizer's tokens, with optional heads for actions and rewards.

All positions (targets, action slots, reward slots) follow from the token layout, so the forward pass uses fixed slices: nothing
depends on the data, and the same code runs compiled and under ZeRO 1 to 3. So all rows of a batch must share one layout.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pipeline.common.errors import ConfigError
from pipeline.config.model import ModelConfig
from tokenize_offline.pretrained.weight_files import require_shapes
from tokenize_offline.token_layout import IdLayout, TokenLayout
from training.model.files import transformer
from training.model.files.transformer import LLAMA
from training.model.loss import next_token_losses, squared_error

if TYPE_CHECKING:
    from training.model.updates import Updates

INITIAL_STD = 0.02  # of weights and embeddings: `initializer_range` of the published checkpoints


class NetworkOutput(NamedTuple):
    """Losses of a batch.

    Attributes:
        loss: Scalar fp32 for the backward pass: the weighted sum of the losses below.
        token_loss: Mean cross-entropy of the target tokens, in nats.
        reward_loss: Mean squared error of the rewards; None without a reward head.
        target_count: Number of target tokens in the batch.
        token_losses: (B, N) fp32 cross-entropy of each target token.
        action_loss: Mean squared error of the reconstructed actions; None without a head for them.
    """

    loss: torch.Tensor
    token_loss: torch.Tensor
    reward_loss: torch.Tensor | None
    target_count: int
    token_losses: torch.Tensor
    action_loss: torch.Tensor | None


class WorldModelNetwork(nn.Module):
    """A Llama (`llm`) with optional layers `action_linear`, `reward_linear` and `action_recon_linear`.

    Attributes:
        layout: Positions of tokens in the sequences it reads.
        action_dim: Columns of an action; 0 for an action-free model.
        has_reward: Whether it predicts rewards.
        reconstructs_actions: Whether it reconstructs actions from its hidden states.
        weights: Weights of the reward loss and the action loss relative to the token loss.
        updates: Low-rank updates of the Llama, if it has them.
    """

    def __init__(
        self, config: LlamaConfig, layout: IdLayout, action_dim: int, has_reward: bool, reconstructs_actions: bool = False
    ) -> None:
        super().__init__()
        self.layout = layout
        self.action_dim = action_dim
        self.has_reward = has_reward
        self.reconstructs_actions = reconstructs_actions
        self.weights = (1.0, 1.0)
        self.updates: Updates | None = None
        self.llm = LlamaForCausalLM(config)
        if action_dim:
            self.action_linear = nn.Linear(action_dim, config.hidden_size)
            nn.init.zeros_(self.action_linear.weight)
            nn.init.zeros_(self.action_linear.bias)
        if has_reward:
            self.reward_linear = _fresh_head(config.hidden_size, 1)
        if reconstructs_actions:
            self.action_recon_linear = _fresh_head(config.hidden_size, action_dim)

    def empty_copy(self) -> "WorldModelNetwork":
        """Returns another network of the same shape, without updates."""
        return WorldModelNetwork(self.config, self.layout, self.action_dim, self.has_reward, self.reconstructs_actions)

    @property
    def config(self) -> LlamaConfig:
        """The Llama's configuration."""
        return self.llm.config

    def forward(
        self, ids: torch.Tensor, action: torch.Tensor | None = None, reward: torch.Tensor | None = None
    ) -> NetworkOutput:
        """Returns the training losses of a batch of whole clips.

        Args:
            ids: (B, L) int64 tokens, as `layout` orders them.
            action: (B, T, A), action[:, i] taken at frame i; required by a model with actions, ignored by others.
            reward: (B, T), reward[:, i] of the action taken at frame i; required by a model with a reward head.

        Raises:
            ValueError: `action` or `reward` is missing or has another shape.
        """
        hidden = self.hidden_states(ids, action)
        first = self.layout.prefix_length
        targets = ids[:, first:]
        token_losses = next_token_losses(self.llm.lm_head, hidden[:, first - 1 : -1], targets)
        loss = token_loss = token_losses.mean()
        reward_loss = self._reward_loss(hidden, reward) if self.has_reward else None
        action_loss = self._action_loss(hidden, action) if self.reconstructs_actions and action is not None else None
        for weight, part in zip(self.weights, (reward_loss, action_loss), strict=True):
            if part is not None:
                loss = loss + weight * part
        reward_loss, action_loss = (None if part is None else part.detach() for part in (reward_loss, action_loss))
        return NetworkOutput(loss, token_loss.detach(), reward_loss, targets.numel(), token_losses.detach(), action_loss)

    def _reward_loss(self, hidden: torch.Tensor, reward: torch.Tensor | None) -> torch.Tensor:
        predicted = self.rewards(hidden)
        lead = self.layout.context_length - 1
        if reward is None or reward.shape[0] != len(hidden) or reward.shape[1] < lead + predicted.shape[1]:
            raise ValueError(f"a model with a reward head needs (B, T) rewards, not {_shape(reward)}")
        return squared_error(predicted, reward[:, lead : lead + predicted.shape[1]])

    def _action_loss(self, hidden: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Returns the error of the action that each token of a future frame, its start included, predicts for this frame."""
        predicted = self.action_recon_linear(hidden[:, self.layout.prefix_length - 1 :])
        predicted = predicted.unflatten(1, (-1, self.layout.tokens_per_future_frame))
        lead = self.layout.context_length - 1
        return squared_error(predicted, action[:, lead : lead + predicted.shape[1], None])

    def embed(self, ids: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        """Returns (B, L, width) input embeddings. With actions, action[:, t - 1 + i] is added at the i-th future frame's start.

        Args:
            ids: (B, L) tokens from a clip's beginning; it may end early.
            action: (B, T, A) with an action for every start of a future frame in `ids`.

        Raises:
            ValueError: `action` is missing or has another shape.
        """
        embedded = self.llm.model.embed_tokens(ids)
        first, step, lead = self.layout.prefix_length - 1, self.layout.tokens_per_future_frame, self.layout.context_length - 1
        futures = -(-(ids.shape[1] - first) // step)
        if not self.action_dim or futures <= 0:
            return embedded
        if action is None or action.shape[2:] != (self.action_dim,) or action.shape[1] < lead + futures:
            wanted = f"(B, at least {lead + futures}, {self.action_dim})"
            raise ValueError(f"{futures} future frames need actions of shape {wanted}, not {_shape(action)}")
        led = embedded[:, first::step] + self.embed_action(action[:, lead : lead + futures])
        return embedded.slice_scatter(led, dim=1, start=first, end=ids.shape[1], step=step)

    def embed_action(self, action: torch.Tensor) -> torch.Tensor:
        """Returns (..., width): what actions (..., A) add to the embedding of the start of the frame that they lead to."""
        return self.action_linear(action.to(self.llm.model.embed_tokens.weight.dtype))

    def hidden_states(self, ids: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the Llama's last hidden states (B, L, width) over a clip or its beginning; see `embed`."""
        return self.llm.model(inputs_embeds=self.embed(ids, action), use_cache=False).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns (..., V) fp32 scores of the next token after hidden states (..., width)."""
        return self.llm.lm_head(hidden).float()

    def rewards(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns (B, f) rewards, read at the last token of each whole future frame in hidden states (B, L, width)."""
        last = self.layout.prefix_length - 2 + self.layout.tokens_per_future_frame
        return self.reward_linear(hidden[:, last :: self.layout.tokens_per_future_frame]).squeeze(-1)

    def save_transformer(self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes a transformer folder in the published layout, with plain Llama names if there are no heads.

        Args:
            folder: Local folder; created if missing.
            state_dict: Full weights under the names of this network without updates; None = its own weights. A training engine
                passes them, because it shards the network's own or holds them in another precision.

        Raises:
            ValueError: `state_dict` lacks parameters of the network, or has others.
        """
        with torch.device("meta"):
            names = self.empty_copy().state_dict().keys()
        state = self.state_dict() if state_dict is None else state_dict
        if unequal := state.keys() ^ names:
            raise ValueError(f"the weights to save don't match the network: {sorted(unequal)[:4]}")
        prefix = "" if self.action_dim or self.has_reward else LLAMA
        transformer.write(folder, self.config, {name.removeprefix(prefix): tensor for name, tensor in state.items()})


def build_network(
    model: ModelConfig, layout: TokenLayout, action_dim: int, seed: int, llama: LlamaConfig | None = None
) -> WorldModelNetwork:
    """Returns a network with fresh weights that depend only on `seed`; the global random state doesn't change.

    Args:
        model: Shape of the network. `model.actions` requires actions of `action_dim` columns.
        layout: Layout of the token shards it will read.
        action_dim: Columns of an action in the token shards; 0 if they have none.
        seed: Seed of the initial weights.
        llama: Configuration of a trained Llama of this shape that will be loaded, with settings that a recipe lacks (rotary
            embedding, activation, biases, ..); None = the published one.

    Raises:
        ConfigError: A clip is longer than `model.positions`, the shards lack the actions that the model needs, or `llama` has
            another vocabulary.
    """
    if layout.sequence_length > model.positions:
        raise ConfigError(
            f"a clip has {layout.sequence_length} tokens but model.positions is {model.positions}: "
            "raise model.positions or tokenize shorter clips"
        )
    if model.actions and not action_dim:
        raise ConfigError(
            "model.actions is on but the token shards hold no actions: turn it off, or tokenize data with actions"
        )
    if llama is not None and llama.vocab_size != layout.vocabulary:
        raise ConfigError(
            f"the model of training.init_from has a vocabulary of {llama.vocab_size}, the token shards one of "
            f"{layout.vocabulary}: use shards made with the model's tokenizer"
        )
    config = published_llama_config(model, layout.vocabulary) if llama is None else copy.deepcopy(llama)
    config.max_position_embeddings, config.attention_dropout = model.positions, model.attention_dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WorldModelNetwork(
            config, layout, action_dim if model.actions else 0, model.rewards, bool(model.action_reconstruction)
        )
    network.weights = (model.reward_weight, model.action_reconstruction)
    return network


def published_llama_config(model: ModelConfig, vocabulary: int) -> LlamaConfig:
    """Returns the Llama configuration of a recipe; other settings are those of the published checkpoints."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=model.width,
        intermediate_size=model.mlp_width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=model.positions,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        initializer_range=INITIAL_STD,
        attention_dropout=model.attention_dropout,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )


def parameter_groups(network: WorldModelNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the optimizer's two parameter groups: weight matrices, which decay; embeddings, norms and biases, which don't.

    Frozen parameters are left out. Works before and after ZeRO-3 shards the parameters, because it uses modules and names, not
    shapes.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear) and name == "weight"
            if parameter.requires_grad:
                (decayed if matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def load_transformer(folder: str | Path, layout: IdLayout) -> WorldModelNetwork:
    """Loads a network from a local transformer folder, with or without heads, in fp32 and in evaluation mode.

    Args:
        folder: Folder with `config.json`, and `model.safetensors` or several such files with their index.
        layout: Layout of the tokenizer that it belongs to.

    Raises:
        SourceError: A file is missing or damaged, parameters don't match the configuration or contain NaN or infinite values,
            or the configuration needs something that this code doesn't compute. The message names them.
        ConfigError: The vocabulary doesn't match the layout.
    """
    found = transformer.open_folder(folder)
    config, shapes = found.config, found.shapes
    if config.vocab_size != layout.vocabulary:
        raise ConfigError(
            f"{folder} has a vocabulary of {config.vocab_size}, its tokenizer one of {layout.vocabulary}: "
            "they don't belong together"
        )
    transformer.require_layers(config, shapes, folder)
    # First compared on the meta device, so a wrong configuration takes no memory.
    with torch.device("meta"):
        network = WorldModelNetwork(
            config,
            layout,
            shapes.get("action_linear.weight", (0,))[-1],
            "reward_linear.weight" in shapes,
            "action_recon_linear.weight" in shapes,
        )
    require_shapes(shapes, network.state_dict(), f"{folder}/{transformer.WEIGHTS}")
    network.load_state_dict(found.read(), assign=True)
    network.llm.model.rotary_emb = LlamaRotaryEmbedding(config)  # its tables are not in the file
    return network.eval()


def load_pretrained_llama(network: WorldModelNetwork, found: transformer.TransformerFolder) -> None:
    """Loads the Llama of a transformer folder into `network.llm`, in place; heads don't change.

    So an action-free model can be fine-tuned with actions. The network must have the folder's configuration. Call it before a
    training engine takes the network.

    Raises:
        SourceError: The folder's Llama has other parameters or shapes, or contains NaN or infinite values. The message names
            them.
    """
    own = {LLAMA + name: tensor for name, tensor in network.llm.state_dict().items()}
    shapes = {name: shape for name, shape in found.shapes.items() if name.startswith(LLAMA)}
    require_shapes(shapes, own, found.files.path)
    weights = found.read()
    network.llm.load_state_dict({name.removeprefix(LLAMA): weights[name] for name in own})


def _fresh_head(width: int, columns: int) -> nn.Linear:
    head = nn.Linear(width, columns)
    nn.init.normal_(head.weight, std=INITIAL_STD)
    nn.init.zeros_(head.bias)
    return head


def _shape(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))
