"""A policy from a checkpoint, onto this run's devices."""

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
from r1jax.parallel.programs import abstract_policy
from r1jax.paths import absolute
from r1jax.runs.run import differences
from r1jax.types import Params


@dataclass(frozen=True)
class Policy:
    model: ModelConfig
    tokenizer: Tokenizer | None  # None: it was imported without one
    task: Task | None  # None: it was imported, or its task is not known here
    params: Params
    router_bias: dict

    def ask(self, question: str) -> list[int]:
        """The ids of a prompt with `question`. Raises UsageError where there is no tokenizer."""
        if self.tokenizer is None:
            raise UsageError("the checkpoint has no tokenizer: give ids (--prompt_ids)")
        return self.tokenizer.encode(self.task.prompt(question)) if self.task else self.tokenizer.prompt(question)

    def converse(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation; without a chat template, or trained on a task's, of its last question alone."""
        if self.task is None and isinstance(self.tokenizer, PublishedTokenizer) and self.tokenizer.template is not None:
            return self.tokenizer.encode(self.tokenizer.chat(messages))
        return self.ask(messages[-1]["content"])


# How a model is computed and stored, not what it is: a run may choose otherwise than the checkpoint it starts from.
FREE = ("param_dtype", "dtype", "experts", "attention", "remat", "initializer_range", "max_position_embeddings")


def load_policy(path: epath.Path, layout: Layout, model: ModelConfig | None = None) -> Policy:
    """The policy at `path`, as `model` computes and stores it; None: as the checkpoint does.

    Raises UsageError when there is no checkpoint or it is of another model, RunError when it can't be read.
    """
    store, step = checkpoint.find(path)
    saved, task_name = checkpoint.read_about(store, step)
    if model is None:
        model = saved
    changed = differences(asdict(saved), asdict(model) | {name: asdict(saved)[name] for name in FREE})
    if changed:
        raise UsageError(f"the base {path} is another model: {'; '.join(changed)}. Set ModelConfig as it was")
    item = store.restore_policy(step, policy_target(model, layout))
    task, tokenizer = find_task(store.directory.parent, task_name)
    return Policy(model, tokenizer, task, item["params"], item["router_bias"])


def base_model(base: BaseConfig) -> ModelConfig:
    """The model of the checkpoint that a run starts from, as the run computes and stores it.

    Raises UsageError when there is none.
    """
    try:
        store, step = checkpoint.find(absolute(base.path))
        model, _ = checkpoint.read_about(store, step)
        return replace(
            model,
            param_dtype=base.param_dtype or model.param_dtype,
            dtype=base.dtype or model.dtype,
            experts=base.experts or model.experts,
            remat=base.remat or model.remat,
        )
    except (UsageError, ValueError) as error:
        raise UsageError(f"BaseConfig: {error}. `import-hf` makes a checkpoint of a published one") from error


def find_task(stage: epath.Path, name: str | None) -> tuple[Task | None, Tokenizer | None]:
    """The task that a checkpoint names, and its tokenizer: a published one lies beside it. None: none is known."""
    directory = stage / "tokenizer"
    task = text_task(name, directory) if name and directory.exists() else TASKS.get(name or "")
    return task, task.tokenizer if task else load_tokenizer(directory)


def policy_target(model: ModelConfig, layout: Layout) -> dict:
    """The abstract params and router bias that a restore fills."""
    params, bias = abstract_policy(model)
    shardings = checkpoint.policy_item(layout.params(model), jax.tree.map(lambda _: layout.replicated(), bias))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        checkpoint.policy_item(params, bias),
        shardings,
    )
