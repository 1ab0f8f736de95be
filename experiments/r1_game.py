"""Higher or lower: a game of several turns, with an advantage for each turn, and with one for the whole episode.

python -m r1jax run r1_game --workdir runs/r1_game

Takes about 15 minutes on 2 busy CPU cores. Expected, median of three seeds: sampled share of games that are won from
0.17 (base) to 0.38 with either advantage.
"""

from dataclasses import replace

from experiments.r1_tools import Config
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.tasks import TASKS
from r1jax.data.toy import episodes
from r1jax.rewards.rules import Reward, environment_reward
from r1jax.rollout.advantages import broadcast_advantages, turn_advantages
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.types import Environments

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin", "scale/r1_game_cpu.gin")
REPORT_NOTE = (
    "The number is hidden in the environment; six guesses find it if each halves what is left. The base has seen"
    " players who mostly forget what they were told. Accuracy is the share of games that are won."
)
DISCOUNT = 0.9  # of the return of a turn: the earlier a game is won, the better
TASK = replace(TASKS["higher_lower"], environments=Environments(episodes.HigherLower, episodes.TOKENIZER.encode_plain))


def run(run: Run, config: Config) -> None:
    run = run.with_task(TASK)
    corpus, games = ensure_records(
        [
            Records(TASK.corpus, "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.num_prompts),
        ],
        run.seed,
        run.workdir / "data",
    )
    rewards = {"accuracy": Reward(environment_reward, 1.0)}
    held_out = TASK.held_out(config.evaluate.num_prompts, run.seed)
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    evaluate(run.stage("evaluate_base"), config.evaluate, base, rewards, held_out)
    for name, advantage in {"episode": broadcast_advantages, "turn": turn_advantages(DISCOUNT)}.items():
        policy = rl(run.stage(f"rl_{name}"), config.rl, base, games, rewards, advantage=advantage)
        evaluate(run.stage(f"evaluate_{name}"), config.evaluate, policy, rewards, held_out)
