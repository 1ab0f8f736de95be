"""Metrics by what they are about, so that a reader finds one among dozens."""

import re
from collections.abc import Collection, Iterable

GROUPS = {  # the first whose pattern matches a metric's name has it
    "lengths": r"response_tokens|tokens_(correct|wrong|truncated)|finished|truncated|turns",
    "speed and memory": r"seconds|tokens_per_second|device_idle|memory|slots_in_use|mfu|flops",
    "rollouts and batches": r"rollout_tokens|prompts_|samples_|staleness|packing|shared_tokens|groups_|accepted|batch",
    "loss and gradients": r"loss|mtp_|grad_norm|update_norm|changed_weights|learning_rate|kl|entropy|clip_fraction",
    "sampler and trainer": r"logprob|sampler_|ratio|importance|mask",
    "experts": r"expert|balance|router|load",
}
REWARDS, OTHERS = "rewards", "others"


def group_metrics(names: Iterable[str], rewards: Collection[str]) -> dict[str, list[str]]:
    """Names by group, without empty groups. `rewards` are the names of a stage's rewards."""
    grouped: dict[str, list[str]] = {group: [] for group in (REWARDS, *GROUPS, OTHERS)}
    of_rewards = re.compile("|".join(map(re.escape, ["reward", *rewards])))
    for name in names:
        matching = (group for group, pattern in GROUPS.items() if re.match(pattern, name))
        group = REWARDS if of_rewards.match(name) else next(matching, OTHERS)
        grouped[group].append(name)
    return {group: found for group, found in grouped.items() if found}
