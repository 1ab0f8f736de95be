"""Loads a policy from a checkpoint onto the devices."""

from dataclasses import asdict, dataclass, replace

import jax
from etils import epath

from r1jax.checkpoint import store as checkpoint
from r1jax.config import BaseConfig, ModelConfig
from r1jax.data.published_tokenizer import PublishedTokenizer, load_tokenizer
from r1jax.data.tasks import TASKS, Task, text_task
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import abstract_weights, weights_shardings
from r1jax.paths import absolute
from r1jax.runs.run import differences
from r1jax.types import Weights


@dataclass(frozen=True)
class Policy:
    model: ModelConfig
    tokenizer: Tokenizer | None  # None: the policy was imported without one
    task: Task | None  # None: the policy was imported, or its task is not registered
    weights: Weights

    def ask(self, question: str) -> list[int]:
        """The token ids of a prompt with `question`. Raises UsageError when the policy has no tokenizer."""
        if self.tokenizer is None:
            raise UsageError("the checkpoint has no tokenizer: give ids (--prompt_ids)")
        return self.tokenizer.encode(self.task.prompt(question)) if self.task else self.tokenizer.prompt(question)

    def converse(self, messages: list[dict[str, str]]) -> list[int]:
        """The token ids of a conversation; of its last message alone when the policy has a task or no chat template."""
        if self.task is None and isinstance(self.tokenizer, PublishedTokenizer) and self.tokenizer.template is not None:
            return self.tokenizer.encode(self.tokenizer.chat(messages))
        return self.ask(messages[-1]["content"])


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
    task, tokenizer = find_task(store.directory.parent, task_name)
    return Policy(model, tokenizer, task, Weights(**item))


def base_model(base: BaseConfig) -> ModelConfig:
    """The model of the checkpoint that a run starts from, with the overrides in `base`.

    Raises UsageError when there is no checkpoint.
    """
    try:
        store, step = checkpoint.find_checkpoint(absolute(base.path))
        model, _ = checkpoint.read_metadata(store, step)
        return replace(model, **{name: value for name, value in asdict(base).items() if value and name != "path"})
    except (UsageError, ValueError) as error:
        raise UsageError(f"BaseConfig: {error}") from error


def find_task(stage: epath.Path, name: str | None) -> tuple[Task | None, Tokenizer | None]:
    """The registered task of a checkpoint and its tokenizer, which for a published model lies beside the checkpoint."""
    directory = stage / "tokenizer"
    task = text_task(name, directory) if name and directory.exists() else TASKS.get(name or "")
    return task, task.tokenizer if task else load_tokenizer(directory)


def placed_weights(layout: Layout, model: ModelConfig) -> Weights:
    """The weights that a restore fills: shapes, dtypes and shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract_weights(model),
        weights_shardings(layout, model),
    )
