"""The optimizer, and the stages that learn from records."""

from dataclasses import dataclass, field

from r1jax.config.checks import require_choice, require_positive, require_types
from r1jax.config.run import CheckpointConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a cosine from learning_rate to learning_rate * final_fraction.

    The schedule is no part of its equality: the learning rate is an argument of compiled programs, which are shared by
    stages whose optimizers are equal.

    Attributes:
      learning_rate: the peak.
      warmup_steps: updates before it.
      final_fraction: of the learning rate, at the end; 1 keeps it constant.
      b1, b2, weight_decay: AdamW's; the decay is of matrices only.
      clip_norm: gradients of a larger global norm are scaled to it.
      master_weights: update float32 masters of weights that are stored in bfloat16 (V3, section 3.3.1), and round them;
        False: update the weights themselves, where most updates of 3e-6 round to nothing.
      moment_dtype: of Adam's stored moments ("bfloat16": V3, section 3.3.1); None: that of the masters or weights.
      router_bias: "train" moves it towards balance, "freeze" keeps it, "off" sets it to 0.
      router_bias_speed: how far an update moves it (V3, section 2.1.2: gamma).
      mtp: the multi-token-prediction modules: "train"; "freeze" logs their loss; "off" does not compute it.
    """

    learning_rate: float = field(compare=False)
    warmup_steps: int = field(default=0, compare=False)
    final_fraction: float = field(default=1.0, compare=False)
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    master_weights: bool = True
    moment_dtype: str | None = None
    router_bias: str = "train"
    router_bias_speed: float = 0.001
    mtp: str = "train"

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected 0 or more")
        require_choice(self, "router_bias", ("train", "freeze", "off"))
        require_choice(self, "mtp", ("train", "freeze", "off"))
        if self.moment_dtype is not None:
            require_choice(self, "moment_dtype", ("float32", "bfloat16"))


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining on a generated corpus (V3, section 4.2).

    Attributes:
      optimizer: see OptimizerConfig.
      steps: updates.
      batch_size: rows of an update.
      sequence_length: tokens of a packed row.
      documents: size of the generated corpus.
      mtp_loss_weight, balance_loss_weight: of the loss of the multi-token-prediction modules and of the
        experts' balance loss (V3: lambda and alpha).
      log_every, save_every: in steps.
      checkpoints: see CheckpointConfig.
    """

    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    sequence_length: int
    documents: int
    mtp_loss_weight: float = 0.3
    balance_loss_weight: float = 0.0001
    log_every: int = 20
    save_every: int = 500
    checkpoints: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "sequence_length", "documents", "log_every", "save_every")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations (R1, sections 2.3.1 and 2.3.3; there batch 128, 2 to 3 epochs).

    Attributes:
      optimizer: see OptimizerConfig.
      epochs: times that each demonstration is trained on.
      batch_size: rows of an update.
      sequence_length: tokens of a packed row; longer demonstrations are left out.
      examples: most demonstrations; None: all.
      mtp_loss_weight, balance_loss_weight: as in pretraining (V3: 0.1 in its last part).
      log_every, save_every: in steps.
      checkpoints: see CheckpointConfig.
    """

    optimizer: OptimizerConfig
    epochs: int
    batch_size: int
    sequence_length: int
    examples: int | None = None
    mtp_loss_weight: float = 0.1
    balance_loss_weight: float = 0.0001
    log_every: int = 10
    save_every: int = 100
    checkpoints: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "epochs", "batch_size", "sequence_length", "log_every", "save_every")
        if self.examples is not None:
            require_positive(self, "examples")


@dataclass(frozen=True)
class RewardModelConfig:
    """A reward model on preferences (R1, supplement; there the learning rate is 6e-6, and max_tokens 8192).

    Attributes:
      optimizer: see OptimizerConfig.
      kind: "pairwise" scores the chosen response above the rejected one, and reads summaries; "pointwise" tells safe
        responses from others, and reads them whole.
      max_tokens: of question and response; longer ones are masked out.
      batch_size: pairs, or single responses, of an update.
      epochs: times that each record is trained on.
      held_out: share of the questions that is only measured on.
      log_every, save_every: in steps.
      checkpoints: see CheckpointConfig.
    """

    optimizer: OptimizerConfig
    kind: str
    max_tokens: int
    batch_size: int = 256
    epochs: int = 1
    held_out: float = 0.05
    log_every: int = 10
    save_every: int = 100
    checkpoints: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "kind", ("pairwise", "pointwise"))
        require_positive(self, "max_tokens", "batch_size", "epochs", "log_every", "save_every")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}, expected a share between 0 and 1")
