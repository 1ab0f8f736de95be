"""R1: cold start, reasoning RL, rejection sampling and SFT, RL for all scenarios (DeepSeek-R1, section 2.3).

make r1                                       # minutes on 2 CPU cores
python -m r1jax run r1 --workdir runs/r1      # the same

R1-Zero is made too, to compare with; its readable outputs are the demonstrations of the cold start.
"""

from dataclasses import dataclass, replace

from etils import epath

from experiments import r1_zero
from r1jax.config import ExamplesConfig, PreferencesConfig, RejectionConfig, RewardModelConfig, RLConfig, SFTConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.preferences import summary
from r1jax.data.sources import Source
from r1jax.data.tasks import TASKS
from r1jax.data.toy import chat
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_consistency_reward, language_mix_reward
from r1jax.runs.learned_reward import LearnedReward
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.preferences import judged
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rejection import rejection
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.stages.sft import sft
from r1jax.types import Problem, Sample

GIN_FILES = ("model/tiny.gin", "scale/cpu.gin", "scale/r1_cpu.gin", "algorithm/grpo.gin")
TASK = TASKS["running_sum"]
SUMS, HARMLESS, HARMFUL = ("running_sum",), ("harmless",), ("harmful",)
CHAT = HARMLESS + HARMFUL
REPORT_NOTE = (
    "R1-Zero reasons, and mixes languages. A cold start makes its form readable, RL with a reward for the question's"
    " language its thinking too; what is then right and readable, with general data, teaches the base again; the last"
    " RL adds what people prefer, by reward models. Chat, its judge and its judgements are written by rule: the report"
    " shows that each stage does its work, and nothing of what people prefer."
)


@dataclass(frozen=True)
class Config(r1_zero.Config):
    """Every number of the experiment, with R1-Zero's. A field's name is its scope in gin."""

    cold_start_data: RejectionConfig
    cold_start: SFTConfig
    reasoning_rl: RLConfig
    rejection: RejectionConfig
    general: ExamplesConfig
    sft: SFTConfig
    chat: ExamplesConfig
    pairs: PreferencesConfig
    helpful: RewardModelConfig
    marked: PreferencesConfig
    safe: RewardModelConfig
    rules_rl: RLConfig
    final_rl: RLConfig


def rules(config: RLConfig, language: float) -> dict[str, Reward]:
    """Accuracy, format and the question's language, of reasoning."""
    return {
        "accuracy": Reward(accuracy_reward, 1.0, SUMS),
        "format": Reward(format_reward, config.format_weight, SUMS),
        "language": Reward(language_consistency_reward(TASK.lexicons), language, SUMS),
    }


def watched() -> dict[str, Reward]:
    """What evaluations measure beside the rules: the judge's word stands for people's."""

    def shown(sample: Sample) -> str:
        return summary(sample.text)

    return {
        "language_mix": Reward(language_mix_reward(TASK.lexicons), 0.0, SUMS),
        "chat_preference": Reward(lambda s: float(chat.mark(s.problem, shown(s)) >= chat.PREFERRED), 0.0, CHAT),
        "harmful_refused": Reward(lambda s: float(chat.refuses(shown(s))), 0.0, HARMFUL),
        "harmless_refused": Reward(lambda s: float(chat.refuses(shown(s))), 0.0, HARMLESS),
        "chat_format": Reward(format_reward, 0.0, CHAT),
    }


def preferences(run: Run, config: RLConfig, models: dict[str, epath.Path]) -> dict[str, Reward]:
    """Reward models by name, and the format, of requests."""
    learned = {
        name: Reward(LearnedReward(run.layout, model, TASK, max_tokens=config.longest + 1), 1.0, CHAT)
        for name, model in models.items()
    }
    return learned | {"chat_format": Reward(format_reward, config.format_weight, CHAT)}


def helpfulness(problem: Problem, response: str) -> float:
    """The judge's mark of what a user sees."""
    return chat.mark(problem, summary(response))


def held_out(problems: int, seed: int) -> list[Problem]:
    """Sums, and half as many requests; a problem's place is its id."""
    requests = replace(TASK, problems=chat.problems).held_out(problems // 2, seed)
    return [replace(problem, id=place) for place, problem in enumerate([*TASK.held_out(problems, seed), *requests])]


ALL_SCENARIOS = (Source("running_sum"), Source("chat"))


def run(run: Run, config: Config) -> None:
    corpus, sums, requests, general, mixture = ensure_records(
        [
            Records("r1_corpus", "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.prompts),
            Records("chat_problems", "train", config.chat.examples),
            Records("chat_demonstrations", "train", config.general.examples),
            Records("all_scenarios", "train", config.final_rl.prompts, ALL_SCENARIOS),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = held_out(config.evaluate.problems, run.seed)

    def measure(name: str, checkpoint: epath.Path) -> None:
        evaluate(
            run, f"evaluate_{name}", config.evaluate, checkpoint, TASK, rules(config.rl, 0.0) | watched(), problems
        )

    base = pretrain(run, "pretrain", config.pretrain, config.model, TASK, corpus)
    measure("base", base)
    zero = rl(run, "r1_zero", config.rl, config.model, base, TASK, sums, rules(config.rl, 0.0))
    measure("r1_zero", zero)

    # 1. Cold start: readable outputs of R1-Zero.
    readable = rejection(run, "cold_start_data", config.cold_start_data, zero, TASK, sums, rules(config.rl, 0.0))
    cold = sft(run, "cold_start", config.cold_start, config.model, base, TASK, {"demonstrations": readable})
    measure("cold_start", cold)

    # 2. Reasoning RL, with a reward for the question's language.
    reasoning = rl(
        run, "reasoning_rl", config.reasoning_rl, config.model, cold, TASK, sums, rules(config.reasoning_rl, 1.0)
    )
    measure("reasoning_rl", reasoning)

    # 3. Rejection sampling, and SFT of the base on what was kept, with general data.
    kept = rejection(run, "rejection", config.rejection, reasoning, TASK, sums, rules(config.reasoning_rl, 1.0))
    tuned = sft(run, "sft", config.sft, config.model, base, TASK, {"kept": kept, "general": general})
    measure("sft", tuned)

    # 4. RL for all scenarios: rules on reasoning; reward models on requests, in the last part only.
    policies = {"base": base, "sft": tuned}
    pairs = judged(run, "pairs", config.pairs, "pairwise", policies, TASK, requests, helpfulness)
    helpful = reward_model(run, "helpful", config.helpful, config.model, tuned, TASK, {"pairs": pairs})
    marked = judged(run, "marked", config.marked, "pointwise", policies, TASK, requests, chat.is_safe)
    safe = reward_model(run, "safe", config.safe, config.model, tuned, TASK, {"marked": marked})
    ruled = rl(run, "rules_rl", config.rules_rl, config.model, tuned, TASK, sums, rules(config.rules_rl, 1.0))
    rewards = rules(config.final_rl, 1.0) | preferences(run, config.final_rl, {"helpful": helpful, "safe": safe})
    r1 = rl(run, "final_rl", config.final_rl, config.model, ruled, TASK, mixture, rewards)
    measure("r1", r1)
