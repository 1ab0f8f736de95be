"""The records that travel between floors.

An array's name ends in its dimensions; `r1jax/model/__init__.py` has the key to the letters. Here also K: experts of a
token, I: ids of a sampling mask, R: trained tokens of a row, s: samples of a row, S: tokens of a sample and its prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from flax import struct

Array = Any  # jax.Array on device, numpy.ndarray on the host: the records hold either
Params = Any  # a pytree of arrays, shaped by model/spec.py

ROUNDING = 1e-6  # rewards that differ by no more are equal: the rounding of a model's float32 scores


@dataclass(frozen=True)
class Problem:
    """A question with a verifiable answer.

    Attributes:
      id: its position in the records that it was read with; keys the sampler's randomness.
      question: its text, without a prompt's template.
      answer: what verifiers compare with; "" where none is needed.
      language: that the question is asked in, such as "en".
      source: the task that it is from; rewards are chosen by it.
    """

    id: int
    question: str
    answer: str
    language: str
    source: str = ""


@dataclass
class Turn:
    """What the policy says before it is answered, or before it ends.

    Attributes:
      start, stop: places of its tokens in the sample: the first, and the one behind the last.
      text: the turn, without its end token or a stop string.
      observation: the environment's answer; "" after the last turn, and without an environment.
      reward: the environment's for this turn; None: it gave none.
    """

    start: int
    stop: int = 0
    text: str = ""
    observation: str = ""
    reward: float | None = None


@dataclass
class Sample:
    """A prompt and a response, from the rollout to the loss; each step of RL fills in some of it.

    Attributes:
      problem: what was asked.
      group: position of the prompt in its rollout.
      index: of this response among those to the prompt; keys the sampler's randomness with `problem.id`.
      tokens: ids of the prompt and of all that followed; an end token, if one was drawn, is the last.
      loss_mask: for each token, 1 where the policy drew it; 0 in the prompt, and where somebody else wrote.
      logprobs: for each token, its log-probability in the distribution that it was drawn from; 0 where nothing was.
      advantages: float32, for each token; most algorithms give all of a response the same.
      text: what the policy said, without end tokens and stop strings; with an environment, of all turns.
      turns: one without an environment.
      finish_reason: "stop" (an end token or a stop string, or the environment ended it), "length" (max_new_tokens), or
        "" while it grows; with an environment also "turns" (max_turns), "turn_length" (max_turn_tokens), "timeout" and
        "environment_error".
      rewards: by name; None where a reward does not apply, or its verifier failed.
      reward: their weighted sum, which RL maximises.
      valid: False masks the sample out of the loss and the group's statistics.
      routes: int16 [tokens, L, K], the experts that each token was sent to, with EngineConfig.routing_replay.
      sampling_masks: int32 [tokens, I], ids of the tokens that could be drawn, -1 behind them, where
        SamplingConfig truncates the distribution that RL draws from.
    """

    problem: Problem
    group: int = 0
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: Any = ()
    text: str = ""
    turns: list[Turn] = field(default_factory=list)
    finish_reason: str = ""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float = 0.0
    valid: bool = True
    routes: Any = None
    sampling_masks: Any = None

    @property
    def finished(self) -> bool:
        """Whether the response ended by itself and was not cut off."""
        return self.finish_reason == "stop"

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that the policy drew."""
        return self.loss_mask.index(1) if 1 in self.loss_mask else len(self.loss_mask)

    @property
    def response_tokens(self) -> list[int]:
        """Ids of all that followed the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def response_logprobs(self) -> list[float]:
        return self.logprobs[self.prompt_length :]


@dataclass(frozen=True)
class Step:
    """An environment's answer to a turn.

    Attributes:
      observation: what the policy reads before its next turn; text, or token ids.
      done: the episode ends here.
      reward: for this turn; None: none.
    """

    observation: str | Sequence[int] = ""
    done: bool = False
    reward: float | None = None


class Environment(Protocol):
    """What answers a policy between its turns; each sample has its own.

    It has to be a function of the problem, the seed and the turns alone: a run that is killed draws the step again, and
    the environment is asked again. It may raise: the sample then ends, and the step goes on. A method `close`, if there
    is one, is called when the sample is complete.
    """

    def reset(self, problem: Problem, seed: int) -> None:
        """Called once, first; the prompt is the problem's."""

    def step(self, turn: str) -> Step:
        """Answers the policy's turn, without its end token or stop string."""


@dataclass(frozen=True)
class Environments:
    """How a task's samples are answered.

    Attributes:
      make: makes an environment for a sample.
      encode: the ids of an observation, tokenized alone. Nothing in its text becomes a control token.
    """

    make: Callable[[], Environment]
    encode: Callable[[str], list[int]]


class Weights(NamedTuple):
    """What a model computes with: parameters, and the router's bias, which no gradient moves."""

    params: Params
    router_bias: dict[str, Array]  # float32 [layers, E] for each stack with experts


class Segments(NamedTuple):
    """Which tokens of packed rows attend to which. Segment 0 is padding.

    Attributes:
      ids_BT: int32, the segment of each token. Without `ends_BT` a token attends to itself and to the earlier tokens of
        its segment.
      ends_BT: int32; if given, it is the mask in place of the segments: token t attends to token s if
        s <= t < ends[s]. A shared prompt ends where the last of its samples ends, so that all of them see it. Each
        sample ends before the next begins, so that none sees another.
      paths_BsS: int32, for kernels that can only mask by segments. Each of the s paths of a row lists the places of one
        sample's prompt and of the sample itself, filled up with T. Attention runs on these paths.
      places_BT: int32, where each token finds its output among those of the paths, [s S].
    """

    ids_BT: Array
    ends_BT: Array | None = None
    paths_BsS: Array | None = None
    places_BT: Array | None = None


@struct.dataclass
class TokenBatch:
    """Packed rows. Segment 0 is padding; a token attends within its own segment only."""

    tokens_BT: Array  # int32
    positions_BT: Array  # int32, from 0 in each segment
    segment_ids_BT: Array  # int32

    @property
    def segments(self) -> Segments:
        return Segments(self.segment_ids_BT)


@struct.dataclass
class SFTBatch(TokenBatch):
    """Packed rows, of which the tokens of responses are learnt."""

    loss_mask_BT: Array  # bool


@struct.dataclass
class Batch(SFTBatch):
    """Packed samples: a `Sample` is a segment, its fields per token are arrays of the same names.

    Log-probabilities stand at the token that they are of. Where `loss_mask_BT` is False, they and the advantages are
    undefined. A prompt that several samples share is a segment of its own, with an id above `max_segments`; a sample
    behind it begins with the last tokens of the prompt, from which its first ones are predicted.
    """

    logprobs_sampler_BT: Array  # float32
    advantages_BT: Array  # float32
    trained_BR: Array | None = None  # int32: the tokens whose logits are computed, T behind them; None: all
    ends_BT: Array | None = None  # int32, see `Segments`, as the next two; None: no prompt is shared
    paths_BsS: Array | None = None
    places_BT: Array | None = None
    logprobs_old_BT: Array | None = None  # float32, of the policy before the first update; None: this is the first
    logprobs_ref_BT: Array | None = None  # float32, of the reference; None: the loss reads none
    routes_BTLK: Array | None = None  # int16: the experts of a token; -1: the router chooses
    sampling_masks_BTI: Array | None = None  # int32: ids of the tokens that could be drawn; -1: none
    max_segments: int = struct.field(pytree_node=False, default=1)  # samples that a row can hold

    @property
    def segments(self) -> Segments:
        return Segments(self.segment_ids_BT, self.ends_BT, self.paths_BsS, self.places_BT)


@struct.dataclass
class Gradients:
    """Of the sum of a loss over a part of a batch; parts add up to exactly that of the whole."""

    sums: Params  # float32
    weight: Array  # what the policy's gradient is divided by
    mtp_weight: Array  # what that of its multi-token-prediction modules is divided by
    metrics: Any
    load: dict[str, Array]  # [layers, E] of each stack: tokens that chose each expert


@struct.dataclass
class PreferenceBatch:
    """Questions with whole responses, padded on the right. Pairs are neighbours: chosen, rejected, chosen, …"""

    tokens_BT: Array  # int32
    length_B: Array  # int32; 0: the row is padding, and masked out
    is_good_B: Array  # float32: 1 chosen or safe, 0 rejected or unsafe


@struct.dataclass
class TrainState:
    step: Array  # int32, updates so far
    params: Params
    opt_state: Any
    router_bias: dict[str, Array]  # as in Weights

    @property
    def weights(self) -> Weights:
        return Weights(self.params, self.router_bias)


@struct.dataclass
class RLState:
    train: TrainState
    reference: Weights | None  # None: the loss has no KL term
    reference_update: Array  # int32, the update whose policy the reference is
