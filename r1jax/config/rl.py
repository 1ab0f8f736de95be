"""Reinforcement learning: the algorithm (LossConfig), and the schedule (RLConfig)."""

from dataclasses import dataclass

from r1jax.config.checks import require_choice, require_positive, require_types
from r1jax.config.rollout import EngineConfig, SamplingConfig
from r1jax.config.run import CheckpointConfig
from r1jax.config.training import OptimizerConfig


@dataclass(frozen=True)
class LossConfig:
    """GRPO (arXiv 2402.03300, section 4.1) or a variant: one function of each table in objectives/grpo.py.

    Stages with equal LossConfigs and equal shapes share their compiled programs.

    Attributes:
      advantage: "group", "centred" or "leave_one_out".
      ratio: "token" or "sequence".
      objective: "clipped" or "cispo".
      aggregation: "sequence_mean", "token_mean" or "constant_length".
      clip_low: ratios are clipped to 1 - clip_low …
      clip_high: … and to 1 + clip_high.
      kl_coef: weight of the KL term; with 0 there is no reference policy.
      kl_estimator: "k1", "k2" or "k3".
      kl_correction: weigh each token's KL by its ratio, so that it is unbiased after the first of several updates too.
      old_logprobs: "trainer" or "sampler": whose log-probabilities are the ratio's denominators.
      importance: "none", "token" or "sequence": weights trainer / sampler that correct for their mismatch.
      importance_limit: larger weights are treated by `importance_mode`.
      importance_mode: "truncate" sets larger weights to the limit, "mask" to 0.
      mask_truncated: leave responses that the limit cut off out of every sum, mean and deviation.
      overlong_buffer: the last share of max_new_tokens, over which a penalty falls to -1; 0 is off. It is part of the
        advantage, not of the logged reward or of what dynamic sampling looks at.
    """

    advantage: str = "group"
    ratio: str = "token"
    objective: str = "clipped"
    aggregation: str = "sequence_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.001
    kl_estimator: str = "k3"
    kl_correction: bool = False
    old_logprobs: str = "trainer"
    importance: str = "none"
    importance_limit: float = 2.0
    importance_mode: str = "truncate"
    mask_truncated: bool = False
    overlong_buffer: float = 0.0

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "clip_low", "clip_high", "importance_limit")
        require_choice(self, "advantage", ("group", "centred", "leave_one_out"))
        require_choice(self, "ratio", ("token", "sequence"))
        require_choice(self, "objective", ("clipped", "cispo"))
        require_choice(self, "aggregation", ("sequence_mean", "token_mean", "constant_length"))
        require_choice(self, "kl_estimator", ("k1", "k2", "k3"))
        require_choice(self, "old_logprobs", ("trainer", "sampler"))
        require_choice(self, "importance", ("none", "token", "sequence"))
        require_choice(self, "importance_mode", ("truncate", "mask"))
        if self.importance != "none" and self.old_logprobs == "sampler":
            raise ValueError(
                f"importance '{self.importance}' weighs the trainer's old log-probabilities against the sampler's:"
                " set old_logprobs to 'trainer', or importance to 'none'"
            )
        if not 0 <= self.overlong_buffer <= 1:
            raise ValueError(f"overlong_buffer is {self.overlong_buffer}, expected a share from 0 to 1")
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef is {self.kl_coef}, expected 0 (no KL term) or more")


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out problems between the steps of RL, drawn as in training. Evaluations ask others.

    Attributes:
      every: steps between validations, a multiple of RLConfig.save_every; 0: there are none.
      num_prompts, samples_per_prompt: problems, and responses to each.
      metric: what the best step is chosen by, a reward's name or "reward", their weighted sum; more is better.
      patience: RL ends after this many validations in a row that are no better than the best; None: after all steps.
    """

    every: int = 0
    num_prompts: int = 64
    samples_per_prompt: int = 4
    metric: str = "accuracy"
    patience: int | None = None

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "num_prompts", "samples_per_prompt")
        if self.every < 0:
            raise ValueError(f"every is {self.every}, expected 0 (off) or more")
        if self.patience is not None:
            require_positive(self, "patience")


@dataclass(frozen=True)
class RLConfig:
    """The schedule of reinforcement learning: rollouts, updates, and their sizes.

    Responses are packed into rows and rows into microbatches, whose gradients add up to the minibatch's exactly.

    Attributes:
      optimizer, sampling, engine, loss: see their classes.
      steps: rollouts.
      prompts_per_step: prompts of a rollout.
      group_size: responses to each prompt.
      minibatches_per_rollout: parts of a rollout, with an update on each.
      num_prompts: problems that prompts are made of; None: each line of the files, or all problems of a fork's task.
      epochs_per_rollout: times that each minibatch is trained on.
      row_tokens: tokens of a packed row, at least the longest prompt with its response; None: a row for each response.
        Two to four times that length leaves little of a row empty where responses differ in length.
      microbatch_rows: rows that are run at once; None: enough for a minibatch of the longest responses.
      share_prompts: rows hold a prompt once, followed by its samples, which saves most of what long prompts cost; then
        minibatches are of whole groups, and with row_tokens None a row is one group.
      max_staleness: 1 draws the next rollout with the policy before this update, while the update is computed.
      max_generation_batches: above 1, groups without a signal are replaced by those of other prompts, drawn in at most
        this many batches (DAPO, section 3.2).
      reference_refresh_updates: the reference becomes the latest policy after this many updates.
      offload: what waits in the hosts' memory while it is not read: "reference", "optimizer".
      save_every, log_samples_every: in steps.
      validation, checkpoints: see their classes.
    """

    optimizer: OptimizerConfig
    sampling: SamplingConfig
    engine: EngineConfig
    loss: LossConfig
    steps: int
    prompts_per_step: int
    group_size: int
    minibatches_per_rollout: int
    num_prompts: int | None = None
    epochs_per_rollout: int = 1
    row_tokens: int | None = None
    microbatch_rows: int | None = None
    share_prompts: bool = False
    max_staleness: int = 0
    max_generation_batches: int = 1
    reference_refresh_updates: int = 400
    offload: tuple[str, ...] = ()
    save_every: int = 10
    log_samples_every: int = 10
    validation: ValidationConfig = ValidationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()

    @property
    def updates_per_rollout(self) -> int:
        return self.minibatches_per_rollout * self.epochs_per_rollout

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether an update may be of another policy than the one before the first; otherwise they are the same."""
        return self.updates_per_rollout > 1

    @property
    def accumulates(self) -> bool:
        """Whether an update may take several microbatches, whose gradients are added."""
        return self.row_tokens is not None or self.microbatch_rows is not None

    @property
    def has_reference(self) -> bool:
        """Whether the loss reads a reference policy."""
        return self.loss.kl_coef > 0

    @property
    def refreshes_reference(self) -> bool:
        """Whether there are enough updates for a second reference policy."""
        return self.has_reference and self.steps * self.updates_per_rollout >= self.reference_refresh_updates

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "steps", "prompts_per_step", "group_size", "minibatches_per_rollout")
        require_positive(self, "epochs_per_rollout", "reference_refresh_updates", "max_generation_batches")
        require_positive(self, "save_every", "log_samples_every")
        for name in ("num_prompts", "row_tokens", "microbatch_rows"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require_positive(self.sampling, "temperature", why=": RL needs the log-probabilities of what was drawn")
        needed, samples = self.prompts_per_step * self.max_generation_batches, self.prompts_per_step * self.group_size
        if self.group_size == 1:
            raise ValueError("group_size is 1, expected 2 or more: an advantage compares the responses to a prompt")
        if self.num_prompts is not None and self.num_prompts < needed:
            raise ValueError(
                f"num_prompts is {self.num_prompts}, expected at least prompts_per_step * max_generation_batches"
                f" ({needed}): a step would draw the same responses to the same prompt twice"
            )
        if self.minibatches_per_rollout > samples:
            raise ValueError(
                f"minibatches_per_rollout is {self.minibatches_per_rollout}, expected at most prompts_per_step *"
                f" group_size ({samples})"
            )
        if self.share_prompts and self.minibatches_per_rollout > self.prompts_per_step:
            raise ValueError(
                f"minibatches_per_rollout is {self.minibatches_per_rollout}, expected at most prompts_per_step"
                f" ({self.prompts_per_step}): with share_prompts minibatches are of whole groups"
            )
        if self.max_staleness not in (0, 1):
            raise ValueError(f"max_staleness is {self.max_staleness}, expected 0 (on-policy) or 1")
        if self.max_staleness and self.loss.importance == "none" and self.loss.old_logprobs == "trainer":
            raise ValueError(
                "max_staleness 1 trains on responses of an older policy: set LossConfig.importance to 'token' or"
                " 'sequence', or LossConfig.old_logprobs to 'sampler', to correct for it"
            )
        if self.validation.every % self.save_every:
            raise ValueError(
                f"validation.every is {self.validation.every}, expected a multiple of save_every ({self.save_every})"
            )
        if self.checkpoints.keep_best and not self.validation.every:
            raise ValueError("checkpoints.keep_best needs validations: set ValidationConfig.every")
        if not set(self.offload) <= {"reference", "optimizer"}:
            raise ValueError(f"offload is {self.offload}, expected some of 'reference', 'optimizer'")
