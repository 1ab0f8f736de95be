"""Loads a policy from a checkpoint onto the devices."""

import importlib
import os
import sys
from dataclasses import asdict, dataclass, replace

import jax
from etils import epath

from r1jax.checkpoint import store as checkpoint
from r1jax.config import BaseConfig, ModelConfig, PromptConfig
from r1jax.data.published_tokenizer import PublishedTokenizer, config_end_ids, load_tokenizer
from r1jax.data.tasks import TASKS, Task, chat_messages, observation_encoder, text_task
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import abstract_weights, weights_shardings
from r1jax.paths import absolute
from r1jax.runs.changes import differences
from r1jax.types import Environments, Weights


@dataclass(frozen=True)
class Policy:
    """A model, its weights on the devices of `layout`, and how it is asked.

    Attributes:
      model: the architecture, and how it is computed.
      tokenizer: None: the policy was imported without one.
      task: how questions become prompts; None: the policy was imported, or its task is not registered.
      weights: the parameters, and the router's biases.
      layout: the devices, and how arrays are sharded over them.
      end_ids: end tokens of a policy without tokenizer, as its source's configs name them.
      path: the checkpoint that it was loaded from; None: it was made in memory.
    """

    model: ModelConfig
    tokenizer: Tokenizer | None
    task: Task | None
    weights: Weights
    layout: Layout
    end_ids: tuple[int, ...] = ()
    path: epath.Path | None = None

    def ask(self, question: str) -> list[int]:
        """The token ids of a prompt with `question`. Raises UsageError when the policy has no tokenizer."""
        tokenizer = self.require_tokenizer()
        return tokenizer.encode(self.task.prompt(question)) if self.task else tokenizer.prompt(question)

    def encode(self, text: str) -> list[int]:
        """The token ids of plain text behind the tokenizer's begin tokens, without a template.

        Raises UsageError when the policy has no tokenizer.
        """
        tokenizer = self.require_tokenizer()
        begin = tokenizer.begin_ids if isinstance(tokenizer, PublishedTokenizer) else []
        return [*begin, *tokenizer.encode(text)]

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError("the checkpoint has no tokenizer: give token ids (--prompt_ids)")
        return self.tokenizer

    def converse(self, messages: list[dict[str, str]]) -> list[int]:
        """The token ids of a conversation; of its last message alone unless the policy `keeps_turns`."""
        if not self.keeps_turns:
            return self.ask(messages[-1]["content"])
        assert isinstance(self.tokenizer, PublishedTokenizer)
        worded = chat_messages(self.task.template, messages) if self.task and self.task.template else messages
        return self.tokenizer.encode(self.tokenizer.chat(worded))

    @property
    def template(self) -> PromptConfig:
        """How questions are asked: as in training; else by the tokenizer's chat template, or by the question alone."""
        trained = self.task.template if self.task else None
        return trained or PromptConfig("chat" if self.keeps_turns else "plain")

    @property
    def keeps_turns(self) -> bool:
        """Whether a conversation's earlier turns are part of a prompt: where it is in the tokenizer's chat template."""
        if self.task is not None:
            return self.task.template is not None and self.task.template.template == "chat"
        return isinstance(self.tokenizer, PublishedTokenizer) and self.tokenizer.template is not None


def load_environments(name: str | None, policy: Policy, template: PromptConfig | None = None) -> Environments | None:
    """What MODULE:NAME makes to answer the policy's turns, in the policy's own tokens; None without a name.

    A module may lie in the directory that the command is started in.
    Raises UsageError when there is no such thing, or the policy has no tokenizer.
    """
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # of an installed command
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--environment is '{name}', expected MODULE:NAME of a callable: {error}") from error
    if policy.tokenizer is None:
        raise UsageError("the checkpoint has no tokenizer, which --environment needs: import it with one")
    if not isinstance(policy.tokenizer, PublishedTokenizer):
        return Environments(make, policy.tokenizer.encode_plain)
    return Environments(make, observation_encoder(policy.tokenizer, template or policy.template))


# Fields that say how a model is computed and stored: a run may set them otherwise than the checkpoint it starts from.
NON_ARCHITECTURE_FIELDS = (
    "param_dtype", "dtype", "experts", "attention", "remat", "initializer_range", "max_position_embeddings",
)  # fmt: skip


def load_policy(path: epath.Path, layout: Layout, model: ModelConfig | None = None) -> Policy:
    """The policy at `path`, computed and stored as `model` says, by default as the checkpoint was.

    Raises UsageError when there is no checkpoint or it is of another model, and RunError when it can't be read.
    """
    store, step = checkpoint.find_checkpoint(path)
    saved, task_name = checkpoint.read_metadata(store, step)
    model = model or saved
    wanted = asdict(model) | {name: asdict(saved)[name] for name in NON_ARCHITECTURE_FIELDS}
    if changed := differences(asdict(saved), wanted):
        raise UsageError(f"the policy {path} is of another model: {'; '.join(changed)}. Set ModelConfig to match it")
    item = store.restore_policy(step, checkpoint.policy_item(*placed_weights(layout, model)))
    task, tokenizer = find_task(store.directory.parent, task_name, checkpoint.read_template(store, step))
    configs = tokenizer_directory(path)
    end_ids = config_end_ids(configs, model.vocab_size) if tokenizer is None else ()
    return Policy(model, tokenizer, task, Weights(**item), layout, end_ids, path)


def base_model(base: BaseConfig, model: ModelConfig | None = None) -> ModelConfig:
    """The model of the checkpoint that a run starts from, with the overrides in `base`.

    `model` says what it is, where a dry run has no checkpoint. Raises UsageError when there is neither.
    """
    try:
        if model is None:
            store, step = checkpoint.find_checkpoint(absolute(base.path))
            model, _ = checkpoint.read_metadata(store, step)
        return replace(model, **{name: value for name, value in asdict(base).items() if value and name != "path"})
    except (UsageError, ValueError) as error:
        raise UsageError(f"BaseConfig: {error}") from error


def base_task(base: BaseConfig) -> str | None:
    """The name of the task that the checkpoint in `base` was trained on. Raises UsageError when there is none."""
    store, step = checkpoint.find_checkpoint(absolute(base.path))
    return checkpoint.read_metadata(store, step)[1]


def tokenizer_directory(path: epath.Path) -> epath.Path:
    """Where an import, or a stage that was trained from one, keeps its tokenizer; `path` may be one of its steps.

    Raises UsageError when there is no checkpoint.
    """
    store, _ = checkpoint.find_checkpoint(path)
    return store.directory.parent / "tokenizer"


def find_task(stage: epath.Path, name: str | None, template: PromptConfig) -> tuple[Task | None, Tokenizer | None]:
    """The task of a checkpoint and its tokenizer, which for a published model lies beside the checkpoint."""
    directory = stage / "tokenizer"
    task = text_task(name, directory, template=template) if name and directory.exists() else TASKS.get(name or "")
    return task, task.tokenizer if task else load_tokenizer(directory)


def placed_weights(layout: Layout, model: ModelConfig) -> Weights:
    """The weights that a restore fills: shapes, dtypes and shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract_weights(model),
        weights_shardings(layout, model),
    )
