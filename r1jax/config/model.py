"""The model's architecture, and how it is computed."""

from dataclasses import dataclass

from r1jax.config.checks import require_choice, require_positive, require_types, require_unset

# Fields of ModelConfig that one kind of model has, and others must leave as they are.
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
GROUPED = ("num_key_value_heads", "head_dim", "attention_bias", "qk_norm")
EXPERTS = (
    "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
    "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip


@dataclass(frozen=True)
class RopeScalingConfig:
    """YaRN (arXiv 2309.00071) as DeepSeek has it, or Llama 3.1's; names as in `rope_scaling` of config.json.

    Attributes:
      factor: of the context's length; 1: plain rotary embedding, and nothing below matters.
      original_max_position_embeddings: the context's length before.
      beta_fast, beta_slow, mscale, mscale_all_dim: YaRN's.
      rope_type: "yarn" or "llama3".
      low_freq_factor, high_freq_factor: Llama's.
    """

    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    rope_type: str = "yarn"
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "rope_type", ("yarn", "llama3"))
        require_positive(self, "original_max_position_embeddings", "beta_fast", "beta_slow", "low_freq_factor")
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}, expected 1 (no scaling) or more")
        low, high = self.low_freq_factor, self.high_freq_factor
        if high <= low:
            raise ValueError(f"high_freq_factor is {high}, expected more than low_freq_factor ({low})")


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V2 or V3 style model, or one with grouped-query attention (Qwen2.5, Qwen3, Qwen3-MoE, Llama 3).

    Names are those of the published config.json. A number that only one kind of model has is 0 where it is not set.

    Attributes:
      vocab_size, hidden_size, num_hidden_layers, num_attention_heads: of every model.
      first_k_dense_replace: leading layers with a dense feed-forward; the others have experts.
      intermediate_size: width of the dense feed-forward.
      kv_lora_rank: of latent attention; None: grouped-query attention.
      num_nextn_predict_layers: multi-token-prediction modules.
      q_lora_rank: latent attention's; None: queries are projected in one step.
      qk_nope_head_dim, qk_rope_head_dim, v_head_dim: latent attention's.
      num_key_value_heads: grouped-query attention's; each serves num_attention_heads / num_key_value_heads heads.
      head_dim: grouped-query attention's.
      attention_bias: of queries, keys and values (Qwen2.5).
      qk_norm: RMSNorm of each head's queries and keys (Qwen3).
      moe_intermediate_size: width of one expert.
      n_routed_experts: experts that the router chooses from.
      n_shared_experts: experts that every token has; 0: none (Qwen3-MoE).
      num_experts_per_tok: experts that the router chooses.
      n_group: router groups (V3, section 2.1.2: node-limited routing).
      topk_group: groups that a token may choose its experts from.
      norm_topk_prob: the weights of the chosen experts are scaled to the sum 1.
      routed_scaling_factor: multiplies them.
      rope_scaling: see RopeScalingConfig.
      scoring_func: affinity of a token to an expert: "sigmoid" (V3) or "softmax" (V2).
      topk_method: "noaux_tc" (V3), "group_limited_greedy" (V2) or "greedy" (V2-Lite, Qwen3-MoE); see model/moe.py.
      tie_word_embeddings: the head is the embedding.
      scalar_head: a reward model: a score for a whole sequence, and no logits.
      tokenizer_size: ids from here on are padding, which is never drawn; None: there is none.
      max_position_embeddings: longest sequence that the model may be given.
      rms_norm_eps, rope_theta: of all norms, of rotary embeddings.
      initializer_range: deviation of fresh weights; None: 1 / sqrt(fan-in), and embeddings of unit variance.
      param_dtype: of stored weights; the optimizer's are float32 (OptimizerConfig.master_weights).
      dtype: of activations, and of weights where they are used.
      experts: "grouped" (each token on its own experts alone) or "dense" (every expert on every token: faster where
        half of a few small experts are chosen).
      attention: "auto" chooses by platform; or one of the implementations in model/softmax_attention.py.
      remat: what layers keep for the backward pass: "none" keeps all, "attention" its output, "full" nothing.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    num_attention_heads: int
    kv_lora_rank: int | None
    num_nextn_predict_layers: int
    q_lora_rank: int | None = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    attention_bias: bool = False
    qk_norm: bool = False
    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 0
    topk_group: int = 0
    norm_topk_prob: bool | None = None
    routed_scaling_factor: float = 0.0
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    tie_word_embeddings: bool = False
    scalar_head: bool = False
    tokenizer_size: int | None = None
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    initializer_range: float | None = 0.006
    param_dtype: str = "float32"
    dtype: str = "float32"
    experts: str = "grouped"
    attention: str = "auto"
    remat: str = "none"

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
        modules = self.num_nextn_predict_layers
        if modules < 0:
            raise ValueError(f"num_nextn_predict_layers is {modules}, expected 0 or more")
        if modules and self.scalar_head:
            raise ValueError(f"num_nextn_predict_layers is {modules}, expected 0: scalar_head predicts no tokens")
        require_choice(self, "scoring_func", ("sigmoid", "softmax"))
        require_choice(self, "topk_method", ("noaux_tc", "group_limited_greedy", "greedy"))
        require_choice(self, "param_dtype", ("float32", "bfloat16"))
        require_choice(self, "dtype", ("float32", "bfloat16"))
        require_choice(self, "experts", ("grouped", "dense"))
        require_choice(self, "attention", ("auto", "full", "chunked", "splash", "cudnn"))
        require_choice(self, "remat", ("none", "attention", "full"))
        dense, layers = self.first_k_dense_replace, self.num_hidden_layers
        if not 0 <= dense <= layers:
            raise ValueError(f"first_k_dense_replace is {dense}, expected 0 to num_hidden_layers ({layers})")
        if self.kv_lora_rank is None:
            self._require_grouped()
        else:
            self._require_latent()
        if self.rotary_dim % 2:
            name = "head_dim" if self.kv_lora_rank is None else "qk_rope_head_dim"
            raise ValueError(f"{name} is {self.rotary_dim}, expected an even number")
        if dense < layers or modules or any(getattr(self, name) for name in EXPERTS):
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
        require_positive(self, "num_key_value_heads", "head_dim", why=": grouped-query attention needs it")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        require_unset(self, ("num_nextn_predict_layers",), "of models with latent attention (kv_lora_rank)")
        if self.first_k_dense_replace == self.num_hidden_layers:
            require_unset(self, EXPERTS, "of experts, and first_k_dense_replace = num_hidden_layers leaves them out")
        mscale, all_dim = self.rope_scaling.mscale, self.rope_scaling.mscale_all_dim
        if (mscale, all_dim) != (1, 0):
            raise ValueError(
                f"rope_scaling has mscale {mscale} and mscale_all_dim {all_dim}, expected 1 and 0 (latent attention's)"
            )

    def _require_experts(self) -> None:
        why = f": layers from first_k_dense_replace ({self.first_k_dense_replace}) on, and modules, have experts"
        if self.norm_topk_prob is None:
            raise ValueError(f"norm_topk_prob is not set{why}")
        optional = ("n_shared_experts", "norm_topk_prob")
        require_positive(self, *(name for name in EXPERTS if name not in optional), why=why)
        if self.n_shared_experts < 0:
            raise ValueError(f"n_shared_experts is {self.n_shared_experts}, expected 0 or more")
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}")
        if not 0 < self.topk_group <= self.n_group:
            raise ValueError(f"topk_group is {self.topk_group}, expected 1 to n_group ({self.n_group})")
        choosable = self.n_routed_experts // self.n_group * self.topk_group
        if not 0 < self.num_experts_per_tok <= choosable:
            chosen = f"num_experts_per_tok is {self.num_experts_per_tok}"
            raise ValueError(f"{chosen}, expected 1 to {choosable}, the experts in topk_group groups")


@dataclass(frozen=True)
class BaseConfig:
    """A checkpoint that a run starts from, as `import-hf` makes it. Its model is as it says itself.

    Attributes:
      path: the checkpoint, or the stage of a finished run.
      param_dtype, dtype, experts, remat: how the run computes and stores the model, as in ModelConfig; None: as the
        checkpoint does.
    """

    path: str
    param_dtype: str | None = None
    dtype: str | None = None
    experts: str | None = None
    remat: str | None = None

    def __post_init__(self) -> None:
        require_types(self)
