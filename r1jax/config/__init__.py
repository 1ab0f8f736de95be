"""Every number of a run, as frozen dataclasses. gin files bind their fields (`r1jax/cli/gin_config.py`).

A field without a default must be bound: sizes and schedules are choices that no library should make in silence.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; an int is a float, but a bool is neither."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def require_types(config) -> None:
    """Raises ValueError for the first field that is not of its annotated type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not fits(value, hint):
            expected = getattr(hint, "__name__", str(hint))
            raise ValueError(f"{field.name} is {value!r} ({type(value).__name__}), expected {expected}")


def require_positive(config, *names: str, why: str = "") -> None:
    """Raises ValueError for the first of the named fields that is not above zero."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} is {getattr(config, name)}, expected more than 0{why}")


def require_unset(config, names: tuple[str, ...], whose: str) -> None:
    """Raises ValueError for the first of the named fields that says something: nothing would read it."""
    for name in names:
        if getattr(config, name):
            raise ValueError(f"{name} is {getattr(config, name)}, but it is {whose}: leave it out")


def require_choice(config, name: str, options: tuple[str, ...]) -> None:
    """Raises ValueError when the named field is none of `options`."""
    if getattr(config, name) not in options:
        expected = ", ".join(f"'{option}'" for option in options)
        raise ValueError(f"{name} is '{getattr(config, name)}', expected one of {expected}")


# Fields of ModelConfig that one kind of model has, and others must leave as they are.
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
GROUPED = ("num_key_value_heads", "head_dim", "attention_bias", "qk_norm")
EXPERTS = (
    "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
    "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What all stages share."""

    seed: int = 0  # every random number is a function of it and of a position (stage, step, prompt, sample)


@dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; -1 takes all that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1  # divides the tokens of a row; rollouts have whole rows
    tensor: int = 1

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class RopeScalingConfig:
    """YaRN (arXiv 2309.00071) as DeepSeek has it, or Llama 3.1's; names as in `rope_scaling` of config.json."""

    factor: float = 1.0  # of the context's length; 1: plain rotary embedding, and nothing below matters
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0  # this and the next three are YaRN's
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    rope_type: str = "yarn"  # or "llama3"
    low_freq_factor: float = 1.0  # this and the next are Llama's
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "rope_type", ("yarn", "llama3"))
        require_positive(self, "original_max_position_embeddings", "beta_fast", "beta_slow", "low_freq_factor")
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}, expected 1 (no scaling) or more")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor is {self.high_freq_factor}, expected more than low_freq_factor"
                f" ({self.low_freq_factor})"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V2 or V3 style model, or a dense one with grouped-query attention (Qwen2.5, Qwen3, Llama 3).

    Names are those of the published config.json. A number that only one kind of model has is 0 where it is not set.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int  # leading layers with a dense feed-forward; the others have experts
    intermediate_size: int  # width of the dense feed-forward
    num_attention_heads: int
    kv_lora_rank: int | None  # of latent attention; None: grouped-query attention, and all layers are dense
    num_nextn_predict_layers: int  # multi-token-prediction modules
    # Latent attention's.
    q_lora_rank: int | None = 0  # None: queries are projected in one step
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    # Grouped-query attention's.
    num_key_value_heads: int = 0  # each serves num_attention_heads / num_key_value_heads heads of queries
    head_dim: int = 0
    attention_bias: bool = False  # of queries, keys and values (Qwen2.5)
    qk_norm: bool = False  # RMSNorm of each head's queries and keys (Qwen3)
    # Of models with experts.
    moe_intermediate_size: int = 0  # width of one expert
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 0  # router groups (V3, section 2.1.2: node-limited routing)
    topk_group: int = 0  # groups that a token may choose its experts from
    norm_topk_prob: bool | None = None
    routed_scaling_factor: float = 0.0
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    scoring_func: str = "sigmoid"  # affinity of a token to an expert: V3; "softmax": V2
    topk_method: str = "noaux_tc"  # see model/moe.py: V3; "group_limited_greedy": V2; "greedy": V2-Lite
    tie_word_embeddings: bool = False
    scalar_head: bool = False  # a reward model: a score for a whole sequence, and no logits
    tokenizer_size: int | None = None  # ids from here on are padding, which is never drawn; None: there is none
    max_position_embeddings: int = 4096  # longest sequence that the model may be given
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    initializer_range: float | None = 0.006  # None: 1 / sqrt(fan-in), and embeddings of unit variance
    param_dtype: str = "float32"  # of stored weights, and of the optimizer's moments
    dtype: str = "float32"  # of activations, and of weights where they are used
    experts: str = "grouped"  # "grouped" (ragged_dot) or "dense" (every expert on every token: few, small experts)
    attention: str = "auto"  # by platform; or one of the implementations in model/softmax_attention.py
    remat: str = "none"  # what layers keep for the backward pass: all; their "attention"'s output; nothing: "full"

    @property
    def qk_head_dim(self) -> int:
        """Numbers of a query's or key's head."""
        return self.head_dim if self.kv_lora_rank is None else self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rotary_dim(self) -> int:
        """Those of them that are rotated."""
        return self.head_dim if self.kv_lora_rank is None else self.qk_rope_head_dim

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
        require_positive(self, "num_attention_heads", "max_position_embeddings", "rms_norm_eps")
        if self.rope_theta <= 1:
            raise ValueError(f"rope_theta is {self.rope_theta}, expected more than 1")
        if self.tokenizer_size is not None and not 0 < self.tokenizer_size <= self.vocab_size:
            raise ValueError(f"tokenizer_size is {self.tokenizer_size}, expected 1 to vocab_size ({self.vocab_size})")
        if self.num_nextn_predict_layers < 0:
            raise ValueError(f"num_nextn_predict_layers is {self.num_nextn_predict_layers}, expected 0 or more")
        if self.scalar_head and self.num_nextn_predict_layers:
            raise ValueError(
                f"a model with scalar_head predicts no tokens: num_nextn_predict_layers is"
                f" {self.num_nextn_predict_layers}, expected 0"
            )
        require_choice(self, "scoring_func", ("sigmoid", "softmax"))
        require_choice(self, "topk_method", ("noaux_tc", "group_limited_greedy", "greedy"))
        require_choice(self, "param_dtype", ("float32", "bfloat16"))
        require_choice(self, "dtype", ("float32", "bfloat16"))
        require_choice(self, "experts", ("grouped", "dense"))
        require_choice(self, "attention", ("auto", "full", "chunked", "splash", "cudnn"))
        require_choice(self, "remat", ("none", "attention", "full"))
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace is {self.first_k_dense_replace}, expected 0 to num_hidden_layers"
                f" ({self.num_hidden_layers})"
            )
        if self.kv_lora_rank is None:
            self._require_grouped()
        else:
            self._require_latent()
        if self.rotary_dim % 2:
            name = "head_dim" if self.kv_lora_rank is None else "qk_rope_head_dim"
            raise ValueError(f"{name} is {self.rotary_dim}, expected an even number")
        has_experts = self.first_k_dense_replace < self.num_hidden_layers or self.num_nextn_predict_layers > 0
        if has_experts or any(getattr(self, name) for name in EXPERTS):
            self._require_experts()

    def _require_latent(self) -> None:
        require_unset(self, GROUPED, "grouped-query attention's (kv_lora_rank = None)")
        for name in LATENT:
            if getattr(self, name) is not None:  # q_lora_rank may be
                require_positive(self, name, why=": latent attention needs it; kv_lora_rank = None: grouped-query")
        if self.rope_scaling.rope_type != "yarn":
            raise ValueError(f"rope_scaling is of type '{self.rope_scaling.rope_type}': latent attention knows 'yarn'")

    def _require_grouped(self) -> None:
        require_unset(self, LATENT, "latent attention's, which kv_lora_rank = None leaves out")
        require_unset(self, EXPERTS, "of experts, which a model with grouped-query attention doesn't have")
        require_positive(self, "num_key_value_heads", "head_dim", why=": grouped-query attention needs it")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads"
                f" {self.num_key_value_heads}"
            )
        if self.first_k_dense_replace != self.num_hidden_layers or self.num_nextn_predict_layers:
            raise ValueError(
                f"with grouped-query attention (kv_lora_rank = None) all layers are dense: first_k_dense_replace is"
                f" {self.first_k_dense_replace}, expected num_hidden_layers ({self.num_hidden_layers}), and"
                f" num_nextn_predict_layers {self.num_nextn_predict_layers}, expected 0"
            )
        if self.rope_scaling.mscale != 1 or self.rope_scaling.mscale_all_dim != 0:
            raise ValueError(
                f"rope_scaling has mscale {self.rope_scaling.mscale} and mscale_all_dim"
                f" {self.rope_scaling.mscale_all_dim}, which are latent attention's: expected 1 and 0"
            )

    def _require_experts(self) -> None:
        why = f": layers from first_k_dense_replace ({self.first_k_dense_replace}) on, and modules, have experts"
        if self.norm_topk_prob is None:
            raise ValueError(f"norm_topk_prob is not set{why}")
        require_positive(self, *(name for name in EXPERTS if name != "norm_topk_prob"), why=why)
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}")
        if not 0 < self.topk_group <= self.n_group:
            raise ValueError(f"topk_group is {self.topk_group}, expected 1 to n_group ({self.n_group})")
        choosable = self.n_routed_experts // self.n_group * self.topk_group
        if not 0 < self.num_experts_per_tok <= choosable:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected 1 to {choosable}, the experts in"
                f" topk_group groups"
            )


@dataclass(frozen=True)
class BaseConfig:
    """A checkpoint that a run starts from, as `import-hf` makes it. Its model is as it says itself."""

    path: str
    # How the run computes and stores the model; None: as the checkpoint does (ModelConfig has the same names).
    param_dtype: str | None = None
    dtype: str | None = None
    experts: str | None = None
    remat: str | None = None

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a cosine from learning_rate to learning_rate * final_fraction."""

    learning_rate: float
    warmup_steps: int = 0
    final_fraction: float = 1.0  # 1 keeps the rate constant
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moment_dtype: str | None = None  # of Adam's two moments as they are stored ("bfloat16": V3, 3.3.1); None: weights'
    router_bias: str = "train"  # moved towards balance; "freeze": used as it is; "off": set to 0 and left there
    router_bias_speed: float = 0.001  # V3, section 2.1.2: gamma
    mtp: str = "train"  # the multi-token-prediction modules; "freeze": their loss is logged only; "off": not even that

    def __post_init__(self) -> None:
        require_choice(self, "router_bias", ("train", "freeze", "off"))
        require_choice(self, "mtp", ("train", "freeze", "off"))
        if self.moment_dtype is not None:
            require_choice(self, "moment_dtype", ("float32", "bfloat16"))


@dataclass(frozen=True)
class PretrainConfig:
    optimizer: OptimizerConfig
    steps: int
    batch_size: int  # rows
    sequence_length: int  # tokens a row, packed
    documents: int  # size of the generated corpus
    mtp_loss_weight: float = 0.3  # V3, section 4.2: lambda
    balance_loss_weight: float = 0.0001  # V3, section 4.2: alpha of the sequence-wise balance loss
    log_every: int = 20
    save_every: int = 500

    def batch_sizes(self) -> dict[str, int]:
        """What the mesh's batch axes have to divide."""
        return {"PretrainConfig.batch_size": self.batch_size}

    def sequence_lengths(self) -> dict[str, int]:
        """What the model has to have positions for."""
        return {"PretrainConfig.sequence_length": self.sequence_length}

    row_lengths = sequence_lengths  # what the mesh's context axis has to divide

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "sequence_length", "documents", "log_every", "save_every")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations (R1, sections 2.3.1 and 2.3.3; there batch 128, 2 to 3 epochs)."""

    optimizer: OptimizerConfig
    epochs: int
    batch_size: int  # rows
    sequence_length: int  # tokens a row, packed; longer demonstrations are left out
    examples: int | None = None  # at most so many demonstrations; None: all
    mtp_loss_weight: float = 0.1  # V3, section 4.2: of the last part of pretraining
    balance_loss_weight: float = 0.0001
    log_every: int = 10
    save_every: int = 100

    def batch_sizes(self) -> dict[str, int]:
        """What the mesh's batch axes have to divide."""
        return {"SFTConfig.batch_size": self.batch_size}

    def sequence_lengths(self) -> dict[str, int]:
        """What the model has to have positions for."""
        return {"SFTConfig.sequence_length": self.sequence_length}

    row_lengths = sequence_lengths  # what the mesh's context axis has to divide

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "epochs", "batch_size", "sequence_length", "log_every", "save_every")
        if self.examples is not None:
            require_positive(self, "examples")


@dataclass(frozen=True)
class RolloutConfig:
    """The rollout engine: how outputs are drawn, and how many at once."""

    slots: int = 64  # outputs in the making at once; more cost memory, fewer leave the device idle
    steps_per_round: int = 16  # tokens of each slot between two looks of the host
    prefill_rows: int = 16  # prompts run at once; fewer of those that are longer than a chunk
    prefill_chunk: int = 512  # tokens of each of them run at once
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    min_new_tokens: int = 0  # no end token before so many others
    stop: tuple[str, ...] = ()  # texts that end an output, and are cut off it
    stop_ids: tuple[int, ...] = ()  # tokens that end an output, beside the tokenizer's end token
    speculative: bool = False  # the multi-token-prediction module drafts, the model checks: the same tokens
    weights: str = "model"  # of rollouts: the model's own, or made of them at each rollout in 8 bits: "int8", "fp8"
    cache: str = "model"  # latents in the model's dtype, or in 8 bits with a scale for each token: "int8"
    routing_replay: bool = False  # the trainer routes each token as the rollout did (arXiv 2510.11370)
    mesh: MeshConfig | None = None  # None: the trainer's

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from less than the whole distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def __post_init__(self) -> None:
        require_positive(self, "slots", "steps_per_round", "prefill_rows", "prefill_chunk", "top_p")
        require_choice(self, "weights", ("model", "int8", "fp8"))
        require_choice(self, "cache", ("model", "int8"))
        if "" in self.stop:
            raise ValueError("stop has an empty text, which would end every output at once")
        if self.mesh is not None and self.mesh.context != 1:
            raise ValueError(
                f"mesh.context is {self.mesh.context}, expected 1, since rollouts draw whole rows:"
                " set rollout/MeshConfig.context = 1"
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1 or self.top_p > 1 or self.min_new_tokens < 0:
            raise ValueError(
                f"top_k {self.top_k}, top_p {self.top_p}, min_p {self.min_p}, min_new_tokens {self.min_new_tokens}:"
                " expected 0 or more, 0 to 1, 0 to 1, 0 or more"
            )


@dataclass(frozen=True)
class RLConfig:
    """GRPO (arXiv 2402.03300, section 4.1) or a variant, on rule-based rewards (R1, section 2.2)."""

    optimizer: OptimizerConfig
    rollout: RolloutConfig
    steps: int  # rollouts
    questions: int  # per rollout
    group_size: int  # outputs per question
    minibatches: int  # that a rollout's outputs are dealt into, with an update on each
    max_prompt_tokens: int
    max_new_tokens: int
    prompts: int  # size of the generated prompt set
    inner_epochs: int = 1  # times that each minibatch is trained on
    # Outputs are packed into rows, rows into microbatches: gradients add up to those of the minibatch, exactly.
    row_tokens: int | None = None  # at least; the longest output with its prompt fits. None: no row holds two
    microbatch_rows: int | None = None  # run at once; None: enough for a minibatch of outputs of the longest size
    temperature: float = 1.0
    advantage: str = "group"  # this and the next five: see the tables of objectives/grpo.py, which cite their papers
    ratio: str = "token"
    objective: str = "clipped"
    kl_estimator: str = "k3"
    aggregation: str = "sequence_mean"
    clip_low: float = 0.2  # ratios are clipped to 1 - clip_low …
    clip_high: float = 0.2  # … 1 + clip_high
    kl_coef: float = 0.001
    kl_correction: bool = False  # weighs each token's KL by its ratio: unbiased also after the first of several updates
    old_logprobs: str = "trainer"  # whose are the ratio's denominators: its own forward pass, or the "sampler"
    importance: str = "none"  # weights trainer / sampler against their mismatch, by "token" or "sequence"
    importance_limit: float = 2.0  # larger weights …
    importance_beyond: str = "truncate"  # … are set to it, or to 0: "mask"
    staleness: int = 0  # 1: a rollout is drawn, by the policy before it, while the one before is trained on
    # The last tokens before max_new_tokens over which a penalty falls to -1; 0: off. It is part of the advantage, not
    # of the logged reward, nor of what dynamic sampling looks at, the raw outcome.
    overlong_buffer: int = 0
    sampling_rounds: int = (
        1  # more: groups without signal are dropped, others asked, up to so often (DAPO, section 3.2)
    )
    truncated: str = "keep"  # outputs that the limit cut off; "mask": they count in no sum, mean or deviation
    reference_refresh_updates: int = 400  # the reference becomes the latest policy every so many updates
    offload: tuple[str, ...] = ()  # what waits in the hosts' memory while nobody reads it: "reference", "optimizer"
    format_weight: float = 1.0  # of the format reward; accuracy has weight 1
    save_every: int = 10
    log_samples_every: int = 10  # steps whose outputs are written to samples.jsonl

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its output."""
        return self.max_prompt_tokens + self.max_new_tokens

    def row_lengths(self) -> dict[str, int]:
        """What the mesh's context axis has to divide."""
        return {"RLConfig.row_tokens": max(self.row_tokens or 0, self.longest)}

    @property
    def updates(self) -> int:
        """Of the policy, on each rollout."""
        return self.minibatches * self.inner_epochs

    @property
    def accumulates(self) -> bool:
        """Whether an update may take several microbatches, whose gradients are added."""
        return self.row_tokens is not None or self.microbatch_rows is not None

    @property
    def refreshes_reference(self) -> bool:
        """Whether there are updates enough for another reference than the first policy."""
        return self.steps * self.updates >= self.reference_refresh_updates

    def __post_init__(self) -> None:
        require_positive(self, "steps", "questions", "group_size", "minibatches", "max_prompt_tokens")
        require_positive(self, "max_new_tokens", "prompts", "temperature", "reference_refresh_updates", "save_every")
        require_positive(self, "sampling_rounds", "log_samples_every", "importance_limit", "inner_epochs")
        if self.prompts < self.questions * self.sampling_rounds:
            raise ValueError(
                f"prompts is {self.prompts}, expected at least questions * sampling_rounds"
                f" ({self.questions * self.sampling_rounds}): a step would ask a question twice, with the same answers"
            )
        if self.minibatches > self.questions * self.group_size:
            raise ValueError(
                f"minibatches is {self.minibatches}, expected at most questions * group_size"
                f" ({self.questions * self.group_size})"
            )
        for name in ("row_tokens", "microbatch_rows"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        if self.staleness not in (0, 1):
            raise ValueError(f"staleness is {self.staleness}, expected 0 (on-policy) or 1")
        if self.staleness and self.importance == "none" and self.old_logprobs == "trainer":
            raise ValueError(
                "staleness 1 trains on outputs of an older policy: set importance to 'token' or 'sequence', or"
                " old_logprobs to 'sampler', to correct for it"
            )
        require_choice(self, "advantage", ("group", "centred", "leave_one_out"))
        require_choice(self, "ratio", ("token", "sequence"))
        require_choice(self, "objective", ("clipped", "weighted"))
        require_choice(self, "kl_estimator", ("k1", "k2", "k3"))
        require_choice(self, "aggregation", ("sequence_mean", "token_mean", "constant_length"))
        require_choice(self, "old_logprobs", ("trainer", "sampler"))
        require_choice(self, "importance", ("none", "token", "sequence"))
        require_choice(self, "importance_beyond", ("truncate", "mask"))
        require_choice(self, "truncated", ("keep", "mask"))
        if not set(self.offload) <= {"reference", "optimizer"}:
            raise ValueError(f"offload is {self.offload}, expected some of 'reference', 'optimizer'")
        if self.importance != "none" and self.old_logprobs == "sampler":
            raise ValueError(
                f"importance '{self.importance}' weighs the trainer's old log-probabilities against the sampler's:"
                " set old_logprobs to 'trainer', or importance to 'none'"
            )
        if not 0 <= self.overlong_buffer <= self.max_new_tokens:
            raise ValueError(f"overlong_buffer is {self.overlong_buffer}, expected 0 to max_new_tokens")
        if self.clip_low <= 0 or self.clip_high <= 0:
            raise ValueError(f"clip_low {self.clip_low} and clip_high {self.clip_high}: expected more than 0")


@dataclass(frozen=True)
class RewardModelConfig:
    """A reward model on judged responses (R1, supplement; there the learning rate is 6e-6, and max_tokens 8192)."""

    optimizer: OptimizerConfig
    kind: str  # "pairwise": chosen above rejected, reads summaries; "pointwise": safe or not, reads whole responses
    max_tokens: int  # of question and response; what is longer is not cut, but counts in nothing
    batch_size: int = 256  # pairs, or single responses
    epochs: int = 1
    held_out: float = 0.05  # share of the questions that is only measured on
    log_every: int = 10
    save_every: int = 100

    def sequence_lengths(self) -> dict[str, int]:
        """What the model has to have positions for."""
        return {"RewardModelConfig.max_tokens": self.max_tokens}

    row_lengths = sequence_lengths  # what the mesh's context axis has to divide

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "kind", ("pairwise", "pointwise"))
        require_positive(self, "max_tokens", "batch_size", "epochs", "log_every", "save_every")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}, expected a share between 0 and 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """The papers' protocol (R1, section 3): 4 to 64 samples for each problem, of at most 32,768 tokens."""

    rollout: RolloutConfig
    problems: int
    samples: int  # at temperature and top_p, for each problem
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.6
    top_p: float = 0.95  # here, and not in `rollout`: what training draws from is the whole distribution
    k: int = 8  # of pass@k, beside the powers of two up to `samples`

    def __post_init__(self) -> None:
        require_positive(self, "problems", "samples", "max_prompt_tokens", "max_new_tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0, up to 1 (off)")
        if self.rollout.top_p != 1:
            raise ValueError(
                f"an evaluation's top_p is EvaluateConfig's, but RolloutConfig.top_p is {self.rollout.top_p}"
            )
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.k <= self.samples:
            raise ValueError(f"k is {self.k}, expected 1 to samples ({self.samples})")


@dataclass(frozen=True)
class RejectionConfig:
    """Outputs of a policy that are good enough to teach (R1, section 2.3.3): what is drawn, and what is kept of it."""

    rollout: RolloutConfig
    prompts: int  # questions that are asked
    samples: int  # outputs for each
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 1.0
    part: int = 256  # questions in a part: what an interrupted stage loses at most, and a host's share is made of
    keep: int = 4  # outputs of a question, at most
    choose: str = "first"  # which of more: as they were drawn; "shortest"
    # What is dropped, beside what is not right and what did not end by itself:
    language: float = 1.0  # thinking with a smaller share of words in the question's language
    longest: int | None = None  # tokens; None: max_new_tokens
    repetition: float = 1.0  # a larger share of 4-grams that were there before; 1 is off
    paragraph_words: int = 400  # a paragraph of more words
    code_blocks: bool = False  # whether responses may hold blocks of code

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "prompts", "samples", "max_prompt_tokens", "max_new_tokens", "temperature")
        require_positive(self, "part", "keep", "paragraph_words")
        require_choice(self, "choose", ("first", "shortest"))
        if not 0 <= self.language <= 1 or not 0 <= self.repetition <= 1:
            raise ValueError(f"language {self.language}, repetition {self.repetition}: expected shares from 0 to 1")
        if self.longest is not None:
            require_positive(self, "longest")


@dataclass(frozen=True)
class PreferencesConfig:
    """Responses of policies, judged: what reward models learn from (R1, supplement)."""

    rollout: RolloutConfig
    prompts: int
    samples: int  # responses of each policy for each
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 1.0
    pairs: int = 2  # of a question, at most
    difference: float = 1.0  # between the judge's marks of a pair, at least (R1: more than 1 of 10)

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "prompts", "samples", "max_prompt_tokens", "max_new_tokens", "temperature", "pairs")
        require_positive(self, "difference")


WithRollouts = RLConfig | EvaluateConfig | RejectionConfig | PreferencesConfig
StageConfig = PretrainConfig | SFTConfig | RewardModelConfig | WithRollouts  # of a stage that needs the devices


@dataclass(frozen=True)
class DemonstrationsConfig:
    """A file of demonstrations, a JSON object a line."""

    path: str
    question: str = "question"  # the columns
    reasoning: str = "reasoning"
    summary: str = "summary"

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class FinishedRunConfig:
    """Another run, whose stages are inputs."""

    path: str  # its workdir

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class ExamplesConfig:
    """How much is made of data that a generator writes."""

    examples: int

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "examples")


@dataclass(frozen=True)
class JsonlConfig:
    """A file of problems, a JSON object a line; `gin_configs/data/` has the columns of published ones."""

    path: str
    question: str = "question"  # the column of the question
    answer: str = "answer"  # the column that has the answer
    answer_form: str = "plain"  # the whole column; "hashes": what follows its last ####; "boxed": in its last \boxed{}
    language: str = "en"

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "answer_form", ("plain", "hashes", "boxed"))
