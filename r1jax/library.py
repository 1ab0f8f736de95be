"""The library: a policy in a notebook. docs/library.md has an example of each function.

Each function puts together what the stages and commands run, by the same compiled programs: the engine's rollouts, the
trainer's log-probabilities and gradients, and the stage `rl`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from etils import epath

from r1jax.cli.devices import find_devices, set_defaults
from r1jax.config import (
    EngineConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PromptConfig,
    RLConfig,
    RunConfig,
    SamplingConfig,
)
from r1jax.data.feeds import numbered, write_problems
from r1jax.data.tasks import Task, text_task
from r1jax.errors import UsageError
from r1jax.objectives.grpo import LossFunction, LossSpec, grpo_loss
from r1jax.objectives.optimizer import policy_gradients
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.paths import absolute
from r1jax.rewards.rules import Reward, RewardFunction
from r1jax.rollout.advantages import AdvantageFunction, broadcast_advantages, compute_advantages
from r1jax.rollout.engine import RolloutEngine, bucket
from r1jax.rollout.packing import BatchShape, batch_shape, fill_rows
from r1jax.runs.hugging_face import imported, is_published
from r1jax.runs.policy import Policy, load_policy
from r1jax.runs.run import LIBRARY, Experiment, open_run
from r1jax.sampling.draw import position_key
from r1jax.stages.rl import Trainer, name_of, rl
from r1jax.telemetry.progress import Progress
from r1jax.types import Params, Problem, RLState, Sample, TrainState, Turn

NEW_TOKENS = 256  # of a response, unless `max_new_tokens` says otherwise
SLOTS = 64  # responses that are decoded at once
ROWS = 8  # rows of a microbatch
TASK = "prompts"  # of a policy that was imported

Prompt = str | Problem | Sequence[int]
PARTS: dict[str, Any] = {
    "optimizer": OptimizerConfig,
    "sampling": SamplingConfig,
    "engine": EngineConfig,
    "loss": LossConfig,
}


def load(source: str | epath.Path, *, prompt: PromptConfig | None = None, mesh: MeshConfig | None = None) -> Policy:
    """Loads a policy onto the devices.

    Args:
      source: a checkpoint of r1jax (a stage's directory, such as runs/r1_zero/rl, one step's in it, or what import-hf
        made); or a published model: a directory with config.json and safetensors, a .gguf file, or OWNER/NAME on the
        Hugging Face Hub. A published model is converted once, into ~/.cache/r1jax/models.
      prompt: how questions are asked; None: as in training, and an imported policy by its chat template, if it has one,
        else by the question alone.
      mesh: shards the policy over all devices; None: the first device has all of it.

    Returns:
      The `Policy`. Its `ask(question)` and `encode(text)` give token ids, and `policy.tokenizer.decode(ids)` text.

    Raises:
      UsageError: there is no such checkpoint or model, or it has no tokenizer or chat template that `prompt` needs.
      RunError: the checkpoint can't be read.
    """
    set_defaults()
    find_devices()
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1]) if mesh is None else make_layout(mesh)
    policy = load_policy(imported(source, Progress()) if is_published(source) else absolute(source), layout)
    return policy if prompt is None else replace(policy, task=own_task(policy, prompt))


def logits(policy: Policy, prompts: Sequence[str | Sequence[int]]) -> list[np.ndarray]:
    """The logits of the token after each token of some texts.

    Args:
      policy: see `load`.
      prompts: texts, read by `policy.encode` without a template, or lists of token ids.

    Returns:
      For each prompt float32 [tokens, vocab_size]: row t is of the token behind tokens 0 … t. Ids that the tokenizer
      does not use have -1e30.

    Raises:
      UsageError: a prompt is empty or longer than the model's max_position_embeddings, or has an unknown id.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    written = [require_ids(policy, policy.encode(p) if isinstance(p, str) else p) for p in prompts]
    run, rows = programs.make_logits(policy.layout, policy.model), policy.layout.round_up(1)
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(written)), key=lambda i: len(written[i]))  # so that prompts of a batch are of one bucket
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        samples = [untrained(Sample(Problem(0, "", "", ""), tokens=written[i])) for i in part]
        longest = bucket(len(written[part[-1]]), policy.model.max_position_embeddings)  # a program for each bucket
        batch = fill_rows([[[sample]] for sample in samples], BatchShape(rows, longest, 1, 1))
        logits_BTV = jax.device_get(run(policy.weights, policy.layout.put_batch(batch)))
        found |= {i: logits_BTV[row, : len(written[i])] for row, i in enumerate(part)}
    return [found[i] for i in range(len(written))]


def sample(
    policy: Policy, prompts: Sequence[Prompt], n: int = 1, *, seed: int = 0, **sampling: Any
) -> list[list[Sample]]:
    """Draws responses with the rollout engine.

    Args:
      policy: see `load`.
      prompts: questions, asked as the policy was trained (`policy.ask`); `Problem`s, whose answers rewards can read;
        or lists of token ids, used as they are: `policy.encode(text)` continues plain text.
      n: responses to each prompt.
      seed: a prompt's place in `prompts` and the seed determine its responses.
      **sampling: fields of `SamplingConfig`, such as temperature, 1.0 by default, and max_new_tokens, 256 by default or
        what the model's positions leave.

    Returns:
      A list of n `Sample`s for each prompt: `text`, `tokens`, `logprobs` and `finish_reason`, which is "length" where
      the response was cut off.

    Raises:
      UsageError: n is below 1, a prompt is empty, prompt and response are longer than the model's
        max_position_embeddings, there is no such field, or the policy has no tokenizer for text.
    """
    if n < 1:
        raise UsageError(f"n is {n}, expected 1 or more responses to each prompt")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    asked = [(problem_of(i, prompt), prompt_ids(policy, prompt)) for i, prompt in enumerate(prompts)]
    if not asked:
        raise UsageError("prompts is empty: give one or more")
    config = make_sampling(policy, [ids for _, ids in asked], {"stop_ids": policy.end_ids} | sampling)
    engine = RolloutEngine(
        policy.layout,
        policy.model,
        policy.tokenizer,
        EngineConfig(slots=min(SLOTS, len(asked) * n)),
        config,
        n,
        keeps_sampling_masks=config.temperature > 0,
        environments=policy.task.environments if policy.task else None,
    )
    return engine.generate(policy.weights, asked, position_key(seed))


def make_sample(policy: Policy, prompt: Prompt, response: str | Sequence[int]) -> Sample:
    """A sample of a response that was written, not drawn: for `logprobs` and `grpo`.

    Args:
      policy: its tokenizer and template are used.
      prompt: as in `sample`.
      response: text, behind which the end token is put; or token ids, used as they are.

    Returns:
      A finished `Sample` whose response alone is in the loss. Its sampler's log-probabilities are 0: nothing drew it.

    Raises:
      UsageError: prompt or response is empty or has an unknown id, or the policy has no tokenizer for text.
    """
    asked, text = require_ids(policy, prompt_ids(policy, prompt)), response if isinstance(response, str) else ""
    if isinstance(response, str):
        tokenizer = policy.require_tokenizer()
        said = [*tokenizer.encode(response), tokenizer.eos_id]
    else:
        said = require_ids(policy, response)
        text = policy.tokenizer.decode(said) if policy.tokenizer else ""
    n, whole = len(asked), len(asked) + len(said)
    turns = [Turn(n, whole, text)]
    mask = [0] * n + [1] * len(said)
    logprobs = [0.0] * whole
    return Sample(problem_of(0, prompt), 0, 0, asked + said, mask, logprobs, (), text, turns, "stop")


def logprobs(policy: Policy, samples: Sequence[Sample], **sampling: Any) -> list[np.ndarray]:
    """Scores the tokens that were drawn, by the trainer's forward pass.

    Args:
      policy: see `load`.
      samples: from `sample`, of this policy or another one, or from `make_sample`.
      **sampling: the fields of `SamplingConfig` that the samples were drawn with, such as temperature: probabilities
        are of the distribution that was drawn from.

    Returns:
      For each sample float32 [tokens], as in `Sample.logprobs`: 0 where `Sample.loss_mask` is 0.

    Raises:
      UsageError: there are no samples, or `sampling` does not fit them.
    """
    config = one_update(policy, [list(samples)], LossConfig(), sampling)
    model, layout = policy.model, policy.layout
    shape = batch_shape(config, programs.on_platform(layout, model), layout.round_up(1))
    run = programs.make_add_logprobs(layout, model, LossSpec(LossConfig(), config.sampling.max_new_tokens))
    found: list[np.ndarray] = []
    for start in range(0, len(samples), shape.rows):
        part = samples[start : start + shape.rows]
        batch = layout.put_batch(fill_rows([[[untrained(sample)]] for sample in part], shape))
        scored, _ = run(policy.weights, None, batch, np.float32(config.sampling.temperature))
        logp_BT, mask_BT = jax.device_get((scored.logprobs_old_BT, scored.loss_mask_BT))
        scores_BT = np.where(mask_BT, logp_BT, 0)
        found += [scores_BT[row, : len(sample.tokens)] for row, sample in enumerate(part)]
    return found


def grpo(
    policy: Policy,
    groups: Sequence[Sequence[Sample]],
    config: LossConfig = LossConfig(),  # noqa: B008, frozen
    *,
    reference: Policy | None = None,
    advantage: AdvantageFunction = broadcast_advantages,
    loss: LossFunction = grpo_loss,
    **sampling: Any,
) -> tuple[float, Params, dict[str, float]]:
    """The loss of GRPO and its gradient, as an update of the stage `rl` computes them, on samples with rewards.

    Args:
      policy: the policy before its first update on the samples: all ratios are 1.
      groups: samples to the same prompt together; their `reward` is set, and `valid` False leaves a sample out.
      config: the variant of GRPO.
      reference: of the KL term; None: the policy itself, as in the first step of RL.
      advantage, loss: a fork's own, see `rl` in stages/rl.py.
      **sampling: the fields of `SamplingConfig` that the samples were drawn with. max_new_tokens, which the aggregation
        "constant_length" divides by, is that of the longest response by default.

    Returns:
      The loss; its gradient, float32 arrays in the tree of `policy.weights.params`, not clipped; and metrics by name.
      The gradient of multi-token-prediction modules is that of their own loss, `mtp_loss`.

    Raises:
      UsageError: there is no valid sample, `sampling` does not fit them, or an own loss does not report "loss".
    """
    settings = one_update(policy, groups, config, sampling)
    samples = compute_advantages(groups, config, settings.sampling, advantage)
    if not samples:
        raise UsageError("all samples are invalid (Sample.valid): there is nothing to compute a loss of")
    trainer = Trainer(policy.layout, policy.model, settings, loss)
    other = (reference or policy).weights if settings.has_reference else None
    train = TrainState(np.int32(0), policy.weights.params, None, policy.weights.router_bias)
    [minibatch], metrics = trainer.add_logprobs(RLState(train, other, np.int32(0)), [samples])
    total = trainer.gradients(policy.weights, minibatch, lambda: None)
    values = {name: metric.value() for name, metric in (metrics | total.metrics).items()}
    if "loss" not in values:
        raise UsageError(f"the metrics of {name_of(loss)} are {', '.join(values)}, expected 'loss' among them")
    return values["loss"], policy_gradients(total.sums, total.weight, total.mtp_weight), values


def train(
    base: Policy | str | epath.Path,
    problems: Sequence[str | Problem],
    reward: RewardFunction | Mapping[str, Reward],
    workdir: str | epath.Path,
    *,
    accept_code: bool = False,
    **settings: Any,
) -> Policy:
    """Runs the stage `rl`, GRPO, on own prompts with an own reward.

    Called again with the same arguments it resumes from the last checkpoint, or returns the trained policy;
    `r1jax report WORKDIR` shows the curves.

    Args:
      base: a loaded policy, which stays as it is, or what `load` takes. The stage reads its checkpoint.
      problems: questions, or `Problem`s, whose answers the reward can read as `sample.problem.answer`.
      reward: a function (Sample) -> float, or None where it does not apply; or several, as
        `{name: Reward(function, weight)}`.
      workdir: the run's directory: metrics.jsonl, samples.jsonl and checkpoints are in its `rl/`.
      accept_code: go on although the reward, or the script around it, has changed since.
      **settings: the fields of `RLConfig`, `OptimizerConfig`, `SamplingConfig`, `EngineConfig` and `LossConfig`, by
        their own names. Without them 100 steps of 8 prompts with 8 responses each, of at most 256 tokens, at
        learning_rate 3e-6 (R1-Zero's). Besides: seed; and the functions advantage and loss of a fork, see `rl` in
        stages/rl.py.

    Returns:
      The policy of the last step, on the devices of `base`.

    Raises:
      UsageError: a setting or an input is wrong, or the directory holds a run with other settings.
      RunError: the run failed.
    """
    policy = base if isinstance(base, Policy) else load(base)
    if policy.path is None:
        raise UsageError("the policy has no checkpoint, which training starts from: give one that `load` returned")
    own = {name: settings.pop(name) for name in ("advantage", "loss") if callable(settings.get(name))}
    seed, task, layout, path = settings.pop("seed", 0), policy.task or own_task(policy), policy.layout, policy.path
    if isinstance(problems, str):
        raise UsageError("problems is a text, expected a list of questions or Problems")
    asked = numbered((problem_of(i, problem) for i, problem in enumerate(problems)), "problems")
    prompts = [task.tokenizer.encode(task.prompt(problem.question)) for problem in asked]
    whole = {field.name for part in PARTS if part in settings for field in fields(PARTS[part])}
    defaults = {name: x for name, x in training_defaults(policy, prompts, settings).items() if name not in whole}
    config = make_rl_config(defaults | settings)
    described: Any = SimpleNamespace(run=RunConfig(seed), model=policy.model, rl=config)
    opened = open_run(str(workdir), Experiment(LIBRARY), described, layout, Progress(), accept_code=accept_code)
    run = opened.with_task(task)
    del policy, base  # RL loads the weights that it changes: these are no longer needed here
    records = write_problems(asked, "problems", run.workdir / "data")
    rewards = dict(reward) if isinstance(reward, Mapping) else {"score": Reward(reward, 1.0)}
    return load_policy(rl(run.stage("rl"), config, path, records, rewards, **own), layout)


def own_task(policy: Policy, prompt: PromptConfig | None = None) -> Task:
    """The policy's tokenizer, and how questions are asked: as `Policy.ask` does where `prompt` is None."""
    policy.require_tokenizer()
    prompt = prompt or policy.template
    directory = getattr(policy.tokenizer, "directory", None)
    if directory is None:
        raise UsageError("the policy's task has its own tokenizer and prompt: leave `prompt` out")
    return text_task(TASK, directory, template=prompt)


def problem_of(place: int, prompt: Prompt) -> Problem:
    """The prompt as a problem whose id is its place, which keys the sampler's randomness."""
    if isinstance(prompt, Problem):
        return replace(prompt, id=place)
    return Problem(place, prompt if isinstance(prompt, str) else "", "", "")


def prompt_ids(policy: Policy, prompt: Prompt) -> list[int]:
    question = prompt.question if isinstance(prompt, Problem) else prompt
    return policy.ask(question) if isinstance(question, str) else require_ids(policy, question)


def require_ids(policy: Policy, ids: Sequence[int]) -> list[int]:
    """The ids as a list. Raises UsageError for none, for too many, and for one that the model does not have."""
    found, most = [int(i) for i in ids], policy.model.max_position_embeddings
    if not 0 < len(found) <= most:
        raise UsageError(f"a text has {len(found)} tokens, expected 1 to max_position_embeddings ({most})")
    if unknown := [i for i in found if not 0 <= i < policy.model.vocab_size]:
        raise UsageError(f"a text has the token id {unknown[0]}, expected 0 to {policy.model.vocab_size - 1}")
    return found


def untrained(sample: Sample) -> Sample:
    """The sample with all that packing reads, where nothing reads advantages."""
    n = len(sample.tokens)
    return replace(
        sample,
        loss_mask=sample.loss_mask or [0] * n,
        logprobs=sample.logprobs or [0.0] * n,
        advantages=np.zeros(n, np.float32),
    )


def make_sampling(policy: Policy, prompts: Sequence[Sequence[int]], numbers: Mapping[str, Any]) -> SamplingConfig:
    """A `SamplingConfig` for these prompts. Raises UsageError where they leave no room for a response."""
    longest, positions = max(map(len, prompts)), policy.model.max_position_embeddings
    if longest >= positions:
        raise UsageError(f"a prompt has {longest} tokens, expected less than max_position_embeddings ({positions})")
    defaults = {"max_prompt_tokens": longest, "max_new_tokens": min(NEW_TOKENS, positions - longest)}
    return checked(SamplingConfig, defaults | dict(numbers))


def training_defaults(policy: Policy, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `train` that it does not ask for."""
    own = {f.name: settings[f.name] for f in fields(SamplingConfig) if f.name in settings}
    sampling = make_sampling(policy, prompts, own)
    return {
        "learning_rate": 3e-6,
        "max_prompt_tokens": sampling.max_prompt_tokens,
        "max_new_tokens": sampling.max_new_tokens,
        "steps": 100,
        "prompts_per_step": min(8, len(prompts)),
        "group_size": 8,
        "minibatches_per_rollout": 1,
        "microbatch_rows": ROWS,
        "num_prompts": len(prompts),
    }


def one_update(
    policy: Policy, groups: Sequence[Sequence[Sample]], loss: LossConfig, sampling: Mapping[str, Any]
) -> RLConfig:
    """The schedule of one update on all of the samples. Raises UsageError where `sampling` does not fit them."""
    samples = list(chain(*groups))
    if not samples:
        raise UsageError("there are no samples: give one or more")
    asked, said = max(s.prompt_length for s in samples), max(len(s.response_tokens) for s in samples)
    config = checked(SamplingConfig, {"max_prompt_tokens": asked, "max_new_tokens": max(said, 1)} | dict(sampling))
    if config.temperature == 0:
        raise UsageError(
            "temperature is 0, expected more than 0: greedy decoding draws from no distribution. Set temperature=1.0 to"
            " score by the model's own"
        )
    if asked > config.max_prompt_tokens or said > config.max_new_tokens:
        raise UsageError(
            f"a sample has {asked} tokens of a prompt or {said} of a response, expected at most max_prompt_tokens"
            f" ({config.max_prompt_tokens}) and max_new_tokens ({config.max_new_tokens})"
        )
    for sample in samples:
        require_ids(policy, sample.tokens)
        if (sample.sampling_masks is not None) != config.needs_mask:
            drawn = "a" if config.needs_mask else "no"
            raise UsageError(f"top_k, top_p, min_p and min_new_tokens ask for {drawn} truncated distribution, which the"
                             " samples were not drawn from: give the same ones as to `sample`")  # fmt: skip
    return make_rl_config(
        {
            "learning_rate": 0.0,
            "sampling": config,
            "loss": loss,
            "routing_replay": samples[0].routes is not None,
            "steps": 1,
            "prompts_per_step": len(groups),
            "group_size": max(2, *map(len, groups)),
            "minibatches_per_rollout": 1,
            "microbatch_rows": ROWS,
            "num_prompts": len(groups),
        }
    )


def make_rl_config(numbers: Mapping[str, Any]) -> RLConfig:
    """An `RLConfig` whose parts are given whole, by name, or by their fields; no two of them have a field in common."""
    left, parts = dict(numbers), {}
    for part, cls in PARTS.items():
        own = {field.name: left.pop(field.name) for field in fields(cls) if field.name in left}
        if part in left and own:
            raise UsageError(f"{', '.join(own)} beside {part}: give all of {cls.__name__} in one of the two ways")
        parts[part] = left.pop(part) if part in left else checked(cls, own)
    return checked(RLConfig, parts | left)


def checked(cls: Callable[..., Any], numbers: Mapping[str, Any]) -> Any:
    """`cls(**numbers)`. Raises UsageError for an unknown name, a wrong type and a number that it refuses."""
    if unknown := sorted(numbers.keys() - {field.name for field in fields(cls)}):  # type: ignore[arg-type]
        raise UsageError(f"{cls.__name__} has no {', '.join(unknown)}: help(r1jax.{cls.__name__}) lists its fields")
    try:
        return cls(**numbers)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{cls.__name__}: {error}") from error
