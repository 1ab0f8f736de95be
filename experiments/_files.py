"""Inputs from an imported base and from files of problems, demonstrations and preferences."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from experiments._inputs import Inputs
from r1jax.config import JsonlConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.sources import Source
from r1jax.data.tasks import Task, text_task
from r1jax.paths import absolute
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import Reward, format_reward
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.runs.run import Run
from r1jax.stages.demonstrations import demonstrations
from r1jax.stages.preferences import written_preferences

PROBLEMS, REQUESTS = "math", "requests"  # the sources of the problems, and of R1's chat requests


def zero_inputs(run: Run, config: Any, verifier: MathVerifier) -> Inputs:
    """R1-Zero's: `config` is a `r1_zero.Config` with a base."""
    task, held_out = make_task(run, config)  # read first, so that a bad file fails at once
    train = Records(PROBLEMS, "train", config.rl.num_prompts, (Source(PROBLEMS, file=config.train),))
    [problems] = ensure_records([train], run.seed, run.workdir / "data")
    base = absolute(config.base.path)
    return Inputs(task, lambda run: base, problems, held_out, lambda language: rules(config, verifier, language))


def r1_inputs(run: Run, config: Any, verifier: MathVerifier) -> Inputs:
    """R1's: `config` is a `r1.Config` with a base."""
    task, held_out = make_task(run, config)
    problem_source = Source(PROBLEMS, file=config.train)
    files = {"helpful": config.pairs_file, "safe": config.ratings_file}
    pairs = config.pairs_file
    asked = JsonlConfig(pairs.path, question=pairs.question, answer=pairs.chosen)
    problems, scenarios = ensure_records(
        [
            Records(PROBLEMS, "train", config.rl.num_prompts, (problem_source,)),
            Records("scenarios", "train", config.final_rl.num_prompts, (problem_source, Source(REQUESTS, file=asked))),
        ],
        run.seed,
        run.workdir / "data",
    )

    def written(run: Run, policies: Mapping[str, epath.Path]) -> dict[str, dict[str, epath.Path]]:
        kinds = {"helpful": ("preference_pairs", "pairwise"), "safe": ("ratings", "pointwise")}
        return {
            model: {stage: written_preferences(run.stage(stage), files[model], kind)}
            for model, (stage, kind) in kinds.items()
            if files[model] is not None
        }

    base, general = absolute(config.base.path), config.general_file
    return Inputs(
        task,
        lambda run: base,
        problems,
        held_out,
        lambda language: rules(config, verifier, language),
        general=None if general is None else lambda run: demonstrations(run.stage("general"), general),
        preferences=written,
        scenarios=scenarios,
        requests=(REQUESTS,),
    )


def make_task(run: Run, config: Any) -> tuple[Task, list]:
    """The problems with the base's tokenizer, and those that are held out."""
    held_out = Source(PROBLEMS, file=config.held_out).problems
    task = text_task(PROBLEMS, absolute(config.base.path) / "tokenizer", held_out, config.prompt)
    return task, task.held_out(config.evaluate.num_prompts, run.seed)


def rules(config: Any, verifier: MathVerifier, language: float) -> dict[str, Reward]:
    """The rewards of problems; `language` is the weight of language consistency."""
    return {
        "accuracy": Reward(verifier, 1.0, (PROBLEMS,)),
        "format": Reward(format_reward, config.rewards.format_weight, (PROBLEMS,)),
        "language": Reward(script_consistency_reward(), language, (PROBLEMS,)),
    }
