"""The records that travel between floors, and the key to the letters at the end of array names.

B batch (or question)  G group (outputs of one question)  T query tokens  S cache or key tokens  P prompt tokens
N new tokens, or the no-position head size in attention   D model  H heads  V vocabulary  L layers  E experts
K chosen experts  F feed-forward  Q query rank  C latent rank  R rotary  U value  X latent + rotary (C + R)
M all of a query or key head (N + R)  W no-position key and value of a head (N + U)
Y heads of keys and values  Z heads of queries to each (H = Y Z)   X also: all that the cache holds of a token (Y M)
J judgements (pairs, or single responses)
Of experts: P pairs (token, chosen expert)  S rows  R a tile's rows, or those that a device has room for
C L a row's D numbers, L at a time   I O into and out of a product
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

    id: int  # its place among the problems it is read with; keys the sampler's randomness
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
    segment_ids_BT: Array  # int32


@struct.dataclass
class TaughtBatch:
    """Packed rows of which a part is learnt."""

    tokens: TokenBatch  # [B, T]
    is_taught_BT: Array  # bool: tokens of responses


@struct.dataclass
class PackedOutputs:
    """Rows of outputs, each behind its prompt in a segment of its own, up to J to a row."""

    tokens: TokenBatch  # [B, T]
    is_new_BT: Array  # bool: tokens that the policy drew
    logp_sampler_BT: Array  # float32, of these tokens, at the sampling temperature
    start_BJ: Array  # int32: where an output begins in its row, which is never at 0
    length_BJ: Array  # int32: its tokens; 0: there is no output
    advantage_BJ: Array  # float32
    routes_BTLK: Array | None = None  # int16: the experts that a token takes; -1: the router chooses


@struct.dataclass
class GRPOBatch:
    """Packed outputs, and what the loss takes of each: rows * J outputs of at most N tokens."""

    packed: PackedOutputs
    mask_BN: Array  # float32, 1 = trained token
    advantage_B: Array  # float32
    logp_old_BN: Array  # float32
    logp_ref_BN: Array  # float32
    weights_BN: Array  # float32, of importance


@struct.dataclass
class Gradients:
    """Of the sum of a loss over a part of a batch; parts add up to exactly that of the whole."""

    sums: Params  # float32
    weight: Array  # what the policy's gradient is divided by
    mtp_weight: Array  # what that of its multi-token-prediction modules is divided by
    metrics: Any
    load: dict[str, Array]  # of experts, by stack


@struct.dataclass
class PreferenceBatch:
    """Questions with whole responses, padded on the right. Pairs are neighbours: chosen, rejected, chosen, …"""

    tokens_BT: Array  # int32
    length_B: Array  # int32; 0: the row is padding, and counts in nothing
    is_good_B: Array  # float32: 1 chosen or safe, 0 rejected or unsafe


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
