"""The demo's inputs to the recipes: sums in two languages, and for R1 chat requests with a rule-based labeler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from experiments._inputs import Inputs, held_out_count, split_held_out
from r1jax.config import RewardConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.preferences import summary
from r1jax.data.sources import Source
from r1jax.data.tasks import TASKS
from r1jax.data.toy import chat
from r1jax.paths import absolute
from r1jax.rewards.mathematics import last_number_reward
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_consistency_reward, language_mix_reward
from r1jax.runs.run import Run
from r1jax.stages.preferences import preferences
from r1jax.stages.pretrain import pretrain
from r1jax.types import Problem, Sample

TASK = TASKS["running_sum"]
SUMS, HARMLESS, HARMFUL = ("running_sum",), ("harmless",), ("harmful",)
CHAT = HARMLESS + HARMFUL
ALL_SCENARIOS = (Source("running_sum"), Source("chat"))


def zero_inputs(run: Run, config: Any) -> Inputs:
    """R1-Zero's: `config` is a `r1_zero.Config`."""
    wanted = [Records(TASK.prompts, "train", config.rl.num_prompts)]
    if config.base is None:
        wanted.append(Records(TASK.corpus, "train", config.pretrain.documents))
    problems, *corpus = ensure_records(wanted, run.seed, run.workdir / "data")

    def base(run: Run) -> epath.Path:
        if config.base is not None:
            return absolute(config.base.path)
        return pretrain(run.stage("pretrain"), config.pretrain, *corpus)

    evaluated, validation = split_held_out(TASK.held_out(held_out_count(config), run.seed), config)
    task = replace(TASK, validation=validation)
    return Inputs(task, base, problems, evaluated, lambda language: zero_rules(config.rewards))


def zero_rules(config: RewardConfig) -> dict[str, Reward]:
    return {
        "accuracy": Reward(accuracy_reward, 1.0),
        "format": Reward(format_reward, config.format_weight),
        "language_mix": Reward(language_mix_reward(TASK.lexicons), 0.0),  # weight 0: logged only
        "last_number": Reward(last_number_reward, 0.0),
    }


def r1_inputs(run: Run, config: Any) -> Inputs:
    """R1's: `config` is a `r1.Config`."""
    corpus, sums, requests, general, scenarios = ensure_records(
        [
            Records("r1_corpus", "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.num_prompts),
            Records("chat_problems", "train", config.chat.examples),
            Records("chat_demonstrations", "train", config.general.examples),
            Records("all_scenarios", "train", config.final_rl.num_prompts, ALL_SCENARIOS),
        ],
        run.seed,
        run.workdir / "data",
    )

    def ask_labeler(run: Run, policies: Mapping[str, epath.Path]) -> dict[str, dict[str, epath.Path]]:
        """Responses of policies, rated by the labeler."""
        pairs, ratings = run.stage("preference_pairs"), run.stage("ratings")
        return {
            "helpful": {
                pairs.name: preferences(pairs, config.preference_pairs, "pairwise", policies, requests, helpfulness)
            },
            "safe": {ratings.name: preferences(ratings, config.ratings, "pointwise", policies, requests, chat.is_safe)},
        }

    return Inputs(
        replace(TASK, validation=split_held_out(TASK.held_out(held_out_count(config), run.seed), config)[1]),
        lambda run: pretrain(run.stage("pretrain"), config.pretrain, corpus),
        sums,
        held_out(config.evaluate.num_prompts, run.seed),
        lambda language: rules(config.rewards, language),
        watched=watched(),
        general=lambda run: general,
        preferences=ask_labeler,
        scenarios=scenarios,
        requests=CHAT,
    )


def rules(config: RewardConfig, language: float) -> dict[str, Reward]:
    """The rewards of sums; `language` is the weight of language consistency."""
    return {
        "accuracy": Reward(accuracy_reward, 1.0, SUMS),
        "format": Reward(format_reward, config.format_weight, SUMS),
        "language": Reward(language_consistency_reward(TASK.lexicons), language, SUMS),
    }


def watched() -> dict[str, Reward]:
    """What evaluations measure beside the rules, with weight 0; the rule-based labeler stands for people."""

    def shown(sample: Sample) -> str:
        return summary(sample.text)

    return {
        "language_mix": Reward(language_mix_reward(TASK.lexicons), 0.0, SUMS),
        "last_number": Reward(last_number_reward, 0.0, SUMS),
        "chat_preference": Reward(lambda s: float(chat.rate(s.problem, shown(s)) >= chat.GOOD_RATING), 0.0, CHAT),
        "harmful_refused": Reward(lambda s: float(chat.refuses(shown(s))), 0.0, HARMFUL),
        "harmless_refused": Reward(lambda s: float(chat.refuses(shown(s))), 0.0, HARMLESS),
        "chat_format": Reward(format_reward, 0.0, CHAT),
    }


def helpfulness(problem: Problem, response: str) -> float:
    """A labeler: the rating of the part of a response that a user sees."""
    return chat.rate(problem, summary(response))


def held_out(problems: int, seed: int) -> list[Problem]:
    """`problems` sums and half as many chat requests; their ids are their positions in the list."""
    requests = replace(TASK, problems=chat.problems).held_out(problems // 2, seed)
    return [replace(problem, id=place) for place, problem in enumerate([*TASK.held_out(problems, seed), *requests])]
