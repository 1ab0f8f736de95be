"""Held-out problems between the steps of RL: figures, the best step so far, and when to stop early."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from statistics import fmean

from r1jax.config import RLConfig
from r1jax.errors import RunError, UsageError
from r1jax.parallel.hosts import broadcast_from_main
from r1jax.rewards.grading import Grading, require_environments, require_verified, score_group
from r1jax.rewards.rules import Reward
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.run import Stage
from r1jax.sampling.draw import position_key
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.statistics import summarize
from r1jax.types import Weights

PREFIX = "validation_"  # of its metrics


def require_validation(name: str, config: RLConfig, rewards: Collection[str], problems: int) -> None:
    """Raises UsageError where validations of the stage `name` lack held-out problems, or a reward for their metric.

    Experiments call it before their first stage, since they know both; a stage of RL calls it again.
    """
    asked, metric = config.validation.num_prompts, config.validation.metric
    if not config.validation.every:
        return
    if problems < asked:
        raise UsageError(
            f"{name}: ValidationConfig.num_prompts is {asked}, but there are {problems} held-out problems beside those"
            " of evaluations: set it or EvaluateConfig.num_prompts lower (an experiment of your own sets"
            " Task.validation)"
        )
    if metric not in (*rewards, "reward"):
        known = ", ".join([*rewards, "reward"])
        raise UsageError(f"{name}: ValidationConfig.metric is '{metric}', expected one of {known}")


class Validation:
    """Draws responses to the same held-out problems, with the same keys, at every validation.

    Nothing of it is part of a checkpoint: a resumed run reads the earlier figures in metrics.jsonl.
    """

    def __init__(self, stage: Stage, config: RLConfig, rewards: Mapping[str, Reward], done: int):
        self.stage, self.config, self.rewards = stage, config.validation, rewards
        self.last, self.patience = config.steps, config.validation.patience if config.validation.every else None
        self.figures: dict[int, float] = {}  # the metric, by step
        self.done = done
        if not self.config.every:
            return
        problems = stage.task.validation
        require_validation(stage.name, config, rewards, len(problems))
        encode, prompt = stage.task.tokenizer.encode, stage.task.prompt
        self.asked = [(p, encode(prompt(p.question))) for p in problems[: self.config.num_prompts]]
        self.engine = RolloutEngine(
            stage.run.layout,
            stage.model,
            stage.task.tokenizer,
            config.engine,
            config.sampling,
            self.config.samples_per_prompt,
            environments=stage.task.environments,
        )
        self.figures = dict(broadcast_from_main(f"{stage.name}: its validations", lambda: self.read(done)))

    def read(self, done: int) -> list[tuple[int, float]]:
        """The steps that were validated, and their figures: pairs, since JSON's keys are text."""
        rows, name = read_metrics(self.stage.directory / "metrics.jsonl"), PREFIX + self.config.metric
        return [(row["step"], row[name]) for row in rows if name in row and row["step"] <= done]

    def measure(self, step: int, weights: Weights) -> dict[str, float]:
        """Figures of a step that is due, the means over all samples; else none."""
        if not self.config.every or step % self.config.every:
            return {}
        with Grading(self.rewards) as grading:
            groups = self.engine.generate(weights, self.asked, position_key(self.stage.run.seed), done=grading.submit)
            grading.collect()
        for samples in groups:
            score_group(self.rewards, samples, mask_truncated=False)
        require_verified(self.rewards, groups)
        require_environments(groups)
        figures = summarize(groups) | {"reward": fmean(sample.reward for sample in chain(*groups))}
        if self.config.metric not in figures:
            raise RunError(f"no held-out problem has a reward '{self.config.metric}': set ValidationConfig.metric")
        self.figures[step] = figures[self.config.metric]
        self.stage.run.progress.say(
            f"{self.stage.name}: step {step}, validation {self.config.metric} {self.figures[step]:.3f}, best"
            f" {self.figures[self.best]:.3f} at step {self.best}"
        )
        return {f"{PREFIX}{name}": value for name, value in figures.items()}

    @property
    def best(self) -> int:
        """The first step with the best figure; 0 before a validation."""
        return max(self.figures, key=lambda step: (self.figures[step], -step), default=0)

    def training_steps(self, done: int) -> Iterator[int]:
        """The steps of RL after step `done`, until `patience` validations in a row are no better than the best."""
        for step in range(done + 1, self.last + 1):
            if self.patience is not None and sum(later > self.best for later in self.figures) >= self.patience:
                return
            yield step
            self.done = step

    def result(self) -> dict[str, float]:
        """The steps that are done, and which was best."""
        if not self.figures:
            return {"steps": self.done}
        return {
            "steps": self.done,
            "best_step": self.best,
            f"best_{PREFIX}{self.config.metric}": self.figures[self.best],
        }
