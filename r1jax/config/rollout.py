"""Rollouts: what is drawn (SamplingConfig), and how (EngineConfig)."""

from dataclasses import dataclass

from r1jax.config.checks import require_choice, require_positive, require_types
from r1jax.config.run import MeshConfig


@dataclass(frozen=True)
class SamplingConfig:
    """The distribution that responses are drawn from; RL, evaluation, rejection sampling and preferences share it.

    Attributes:
      max_prompt_tokens: longer prompts are refused.
      max_new_tokens: tokens after which a response is cut off; with an environment, its answers count too.
      temperature: divides the logits; 0 is greedy decoding.
      top_k: keep the k likeliest tokens; 0 is off.
      top_p: keep the smallest set of likeliest tokens whose probability reaches p; 1 is off.
      min_p: keep tokens at least this share as likely as the likeliest; 0 is off.
      min_new_tokens: no end token before this many other tokens.
      stop: strings that end a response, and are cut off it.
      stop_ids: tokens that end a response, beside the tokenizer's end tokens.
      max_turns: turns of the policy in an environment.
      max_turn_tokens: of one turn; None: as many as max_new_tokens leaves.
      sampling_mask_ids: in RL with a truncated distribution, at most this many tokens are kept. Their ids travel to
        the trainer, which normalises over the same set (4 bytes an id, for each drawn token).
    """

    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_turns: int = 8
    max_turn_tokens: int | None = None
    sampling_mask_ids: int = 128

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p is in use."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def needs_mask(self) -> bool:
        """Whether some tokens can't be drawn, though the model gives them a probability: RL has to know which."""
        return self.truncates or self.min_new_tokens > 0

    @property
    def max_tokens(self) -> int:
        """Of a prompt with its response."""
        return self.max_prompt_tokens + self.max_new_tokens

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "max_prompt_tokens", "max_new_tokens", "top_p", "sampling_mask_ids", "max_turns")
        if self.max_turn_tokens is not None:
            require_positive(self, "max_turn_tokens")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if "" in self.stop:
            raise ValueError("stop has an empty string, which would end every response at once")
        for name, most in (("top_p", 1.0), ("min_p", 1.0), ("top_k", None), ("min_new_tokens", None)):
            value = getattr(self, name)
            if value < 0 or (most is not None and value > most):
                raise ValueError(f"{name} is {value}, expected 0 {'or more' if most is None else f'to {most:g}'}")


@dataclass(frozen=True)
class EngineConfig:
    """How the rollout engine draws: the same tokens at another cost, but for rounding in 8 bits.

    Attributes:
      slots: responses that are decoded at once. More cost memory, fewer leave the device idle.
      steps_per_round: tokens of each slot between two visits of the host.
      prefill_rows: prompts that are run at once; fewer of those that are longer than a chunk.
      prefill_chunk: tokens of each prompt that are run at once.
      append_rows: slots whose environments' answers are run at once.
      append_chunk: tokens of each answer that are run at once.
      environment_threads: environments that are at work at once.
      environment_timeout: seconds after which an environment's turn is given up.
      speculative: the multi-token-prediction module drafts, and the model verifies; the tokens stay the same.
      weight_dtype: "model", or "int8" or "fp8": matrices quantized at each rollout.
      cache_dtype: "model", or "int8" with a scale for each token.
      routing_replay: the trainer sends each token to the experts that the rollout chose (arXiv 2510.11370).
      mesh: None is the trainer's.
    """

    slots: int = 64
    steps_per_round: int = 16
    prefill_rows: int = 16
    prefill_chunk: int = 512
    append_rows: int = 16
    append_chunk: int = 32
    environment_threads: int = 16
    environment_timeout: float = 30.0
    speculative: bool = False
    weight_dtype: str = "model"
    cache_dtype: str = "model"
    routing_replay: bool = False
    mesh: MeshConfig | None = None

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "slots", "steps_per_round", "prefill_rows", "prefill_chunk")
        require_positive(self, "append_rows", "append_chunk", "environment_threads", "environment_timeout")
        if self.speculative and self.append_chunk < 3:
            raise ValueError(
                f"append_chunk is {self.append_chunk}, expected 3 or more: speculation runs 2 tokens again"
            )
        require_choice(self, "weight_dtype", ("model", "int8", "fp8"))
        require_choice(self, "cache_dtype", ("model", "int8"))
        if self.mesh is not None and self.mesh.context != 1:
            raise ValueError(
                f"mesh.context is {self.mesh.context}, expected 1, since rollouts draw whole rows:"
                " set rollout/MeshConfig.context = 1"
            )
