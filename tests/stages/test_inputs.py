"""An imported base's problems and rewards: what no step could use is refused before the first."""

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from etils import epath

from experiments import _files
from r1jax.checkpoint.store import find_checkpoint
from r1jax.config import BaseConfig, JsonlConfig, PromptConfig, RewardConfig, SamplingConfig
from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.paths import absolute
from r1jax.types import Problem
from tests.shared.byte_tokenizer import publish_bytes
from tests.shared.checkpoints import import_
from tests.shared.configs import rl_config

TASK = TASKS["running_sum"]


def graded(language: str, form: float) -> set[str]:
    """The names of the rewards of a file in `language` with `form` the weight of the format."""
    train = JsonlConfig("train.jsonl", language=language)
    config = SimpleNamespace(
        train=train, generated=None, rewards=RewardConfig(form), prompt=PromptConfig("chat", answer="last_number")
    )
    with ExitStack() as stack:
        return set(_files.make_rules(config, stack)(0.0))


@pytest.mark.parametrize(
    "language, form, names",
    [
        ("en", 1.0, {"accuracy", "format", "language"}),
        ("en", 0.0, {"accuracy", "language"}),  # no prompt asks for tags: rejection sampling must not want them
        ("pl", 1.0, {"accuracy", "format"}),  # a language whose script is not known can't be graded
    ],
)
def test_only_what_can_be_graded_is_a_reward(language, form, names):
    assert graded(language, form) == names


def test_prompts_that_are_too_long_are_counted_before_the_first_step():
    problems = TASK.held_out(4, 0)
    lengths = sorted(len(TASK.tokenizer.encode(TASK.prompt(problem.question))) for problem in problems)
    _files.require_room(TASK, problems, SamplingConfig(max_prompt_tokens=lengths[-1], max_new_tokens=8))
    with pytest.raises(UsageError) as error:
        _files.require_room(TASK, problems, SamplingConfig(max_prompt_tokens=lengths[0] - 1, max_new_tokens=8))
    assert "4 of 4" in str(error.value) and str(lengths[-1]) in str(error.value)
    mixed = [replace(problems[0], source="short"), replace(problems[0], source="long", question="1 " * 99)]
    with pytest.raises(UsageError) as error:
        _files.require_room(TASK, mixed, SamplingConfig(max_prompt_tokens=lengths[-1], max_new_tokens=8))
    assert "1 of 2 prompts, of long," in str(error.value)


def test_fewer_problems_than_a_step_asks_are_refused_before_the_first(toy_records):
    records = toy_records[TASK.prompts]  # 16
    _files.require_batches(records, SimpleNamespace(rl=rl_config(prompts_per_step=16, num_prompts=None)))
    with pytest.raises(UsageError, match="16 problems, expected 17 or more: lower prompts_per_step"):
        _files.require_batches(records, SimpleNamespace(rl=rl_config(prompts_per_step=17, num_prompts=None)))


@pytest.mark.parametrize("given", ["base", "base/checkpoints", "base/checkpoints/0"])
def test_the_base_may_be_one_step_of_a_stage(tmp_path, model, given):
    """As the best step of a run is, whose tokenizer lies in the stage's directory."""
    import_(publish_bytes(tmp_path, model), tmp_path / "base")
    config = SimpleNamespace(
        base=BaseConfig(str(tmp_path / given)),
        prompt=PromptConfig("chat"),
        rl=rl_config(prompts_per_step=2, num_prompts=4, max_prompt_tokens=64),
        evaluate=SimpleNamespace(num_prompts=2, sampling=SamplingConfig(max_prompt_tokens=64, max_new_tokens=8)),
    )

    def problems(split: str, seed: int):
        return (Problem(n, f"{split} {n}?", str(n), "en") for n in range(4))

    run = SimpleNamespace(seed=0, workdir=epath.Path(tmp_path / "run"))
    inputs = _files.task_inputs(run, config, problems, {})
    assert inputs.task.prompt("1?") == "<s>[user]1?[assistant]"
    assert find_checkpoint(inputs.base(run))[1] == 0


@pytest.mark.parametrize("missing, command", [("checkpoints/base", "SOURCE {}"), ("owner/model", "owner/model DEST")])
def test_a_missing_base_is_told_from_a_hub_id(tmp_path, monkeypatch, missing, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        find_checkpoint(absolute(missing))
    assert f"import-hf {command.format(absolute(missing))}" in str(error.value)
