"""The records that travel between floors, and the key to the letters at the end of array names.

B batch (or question)  G group (outputs of one question)  T query tokens  S cache or key tokens  P prompt tokens
N new tokens, or the no-position head size in attention   D model  H heads  V vocabulary  L layers  E experts
K chosen experts  F feed-forward  Q query rank  C latent rank  R rotary  U value  X latent + rotary (C + R)
M all of a query or key head (N + R)  W no-position key and value of a head (N + U)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import struct

Array = Any  # jax.Array on device, numpy.ndarray on the host: the records hold either
Params = Any  # a pytree of arrays, shaped by model/spec.py


@dataclass(frozen=True)
class Problem:
    """A question with a verifiable answer."""

    id: int  # position in its split; keys the sampler's randomness
    question: str
    answer: str
    language: str  # the language that the question is asked in
    source: str = ""  # the task it is from; rewards are chosen by it


@dataclass(frozen=True)
class Sample:
    """One output for a problem, with what each reward said of it."""

    problem: Problem
    text: str
    tokens: list[int]  # the end token, if it was drawn, is the last
    finished: bool  # ended by the end token, not by the limit
    rewards: Mapping[str, float | None]  # None: the reward does not apply, or its verifier failed


@struct.dataclass
class TokenBatch:
    """Packed rows. Segment 0 is padding; a token attends within its own segment only."""

    tokens_BT: Array  # int32
    positions_BT: Array  # int32, from 0 in each segment
    segments_BT: Array  # int32


@struct.dataclass
class Prompts:
    """Left-padded prompts: the last prompt token of every row stands in the last column."""

    tokens_BP: Array  # int32
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id


@struct.dataclass
class Generation:
    """What the sampler drew. Positions at and after length are meaningless and must be masked."""

    tokens_BGN: Array  # int32
    logp_BGN: Array  # float32, at the sampling temperature
    length_BG: Array  # int32, the end token included
    finished_BG: Array  # bool
    routes_BGTLK: Array | None = None  # int16, T = P + N: the experts of each token; -1: the router chooses


@struct.dataclass
class GRPOBatch:
    """Outputs of one rollout, flat over questions and groups, prompt and completion in one row of T = P + N."""

    tokens: TokenBatch  # [B, T]
    mask_BN: Array  # float32, 1 = trained token
    advantage_B: Array  # float32
    logp_old_BN: Array  # float32
    logp_ref_BN: Array  # float32
    logp_sampler_BN: Array  # float32
    weights_BN: Array  # float32, of importance
    routes_BTLK: Array | None = None  # int16: the experts that the policy's forward pass takes; -1: its router chooses


@struct.dataclass
class TrainState:
    step: Array  # int32, updates so far
    params: Params
    opt_state: Any
    router_bias: dict[str, Array]  # float32 [layers, E]; state, not a parameter: no gradient moves it


@struct.dataclass
class RLState:
    train: TrainState
    reference: Params
    reference_router_bias: dict[str, Array]
    reference_step: Array  # int32, the update whose policy the reference is
