"""What a run does with rewards that fail, data that run out, and estimators that promise too much."""

import dataclasses
import itertools
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.config import LossConfig, SamplingConfig
from r1jax.data.feeds import problem_batches, write_array_record
from r1jax.errors import RunError, UsageError
from r1jax.objectives.grpo import grpo_loss
from r1jax.rewards.grading import Grading, grade_groups, has_signal, require_environments, require_verified, score_group
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import Reward, by_source
from r1jax.rewards.workers import Workers
from r1jax.rollout.advantages import compute_advantages
from r1jax.runs.workdir import lock
from r1jax.stages.rl import RLLog
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem, Sample, Turn
from tests.shared.loss_batches import pack, preset
from tests.shared.samples import make_sample

A_PROBLEM = Problem(3, "q", "a", "en", "math")


def group(*texts: str, source: str = "math") -> list[Sample]:
    problem = dataclasses.replace(A_PROBLEM, source=source)
    return [dataclasses.replace(make_sample(problem, text, [1, 2]), index=i) for i, text in enumerate(texts)]


def advantages(samples, rewards, advantage="centred") -> list[float]:
    grade_groups(rewards, [samples])
    score_group(rewards, samples, mask_truncated=False)
    compute_advantages([samples], LossConfig(advantage=advantage), SamplingConfig(8, 8))
    return [float(s.advantages[0]) for s in samples]


def test_a_sample_that_no_weighted_reward_applies_to_counts_in_nothing():
    reward = Reward(lambda s: None if s.text == "?" else 1.0, 1.0)
    samples = group("a", "b", "?", "c")
    assert advantages(samples, {"accuracy": reward}) == [0, 0, 0, 0]
    assert [s.valid for s in samples] == [True, True, False, True]
    samples = group("a", "b", "?", "c")
    values = advantages(samples, {"accuracy": reward, "length": Reward(lambda s: float(s.text == "b"), 1.0)})
    assert all(s.valid for s in samples) and values[1] == max(values)  # another reward applies


def test_a_plain_none_by_source_is_no_failure():
    none, right = (lambda s: None), (lambda s: 1.0)
    samples = group("a", "b", source="other")
    rewards = {"accuracy": by_source({"math": right, "other": none}, 1.0), "length": Reward(right, 0.5)}
    advantages(samples, rewards)
    assert all(s.valid for s in samples)


@pytest.mark.parametrize(
    "value, found",
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (True, 1.0),
        (jnp.float32(2), 2.0),
        (np.int64(3), 3.0),
        (None, None),
    ],
)
def test_scalars_of_any_library_become_numbers(value, found):
    samples = group("a")
    grade_groups({"r": Reward(lambda s: value, 1.0), "one": Reward(lambda s: 1.0, 1.0)}, [samples])
    assert samples[0].rewards["r"] == found and type(samples[0].rewards["r"]) in (float, type(None))


def divides(sample):
    return 1 / 0


@pytest.mark.parametrize(
    "function", [divides, lambda s: float("nan"), lambda s: float("inf"), lambda s: "1.0.0", lambda s: [1.0]]
)
def test_a_reward_that_fails_is_named_with_its_sample(function):
    with pytest.raises(RunError) as error, Grading({"mine": Reward(function, 1.0)}) as grading:
        grading.submit(group("some text"))
        grading.collect()
    assert all(word in str(error.value) for word in ("mine", "problem 3", "sample 0", "some text"))


def test_no_step_holds_a_problem_twice(tmp_path):
    path = epath.Path(tmp_path) / "problems.array_record"
    write_array_record(path, [vars(dataclasses.replace(A_PROBLEM, id=i)) for i in range(13)])
    lists = [[p.id for p in batch] for batch in itertools.islice(problem_batches(path, 4, 0), 40)]
    assert all(len({*ids}) == 4 for ids in lists)
    assert {i for ids in lists for i in ids} == {*range(13)}  # what an epoch leaves out comes in others
    with pytest.raises(UsageError, match="13"):
        problem_batches(path, 14, 0)


def test_rewards_a_rounding_apart_are_no_signal_anywhere():
    close = [3.3, float(np.nextafter(np.float32(3.3), np.float32(4)))]
    for rewards in (close, [3.3, 3.3]):
        samples = group("a", "b")
        values = advantages(samples, {"r": Reward(lambda s, r=rewards: r[s.index], 1.0)}, "group")
        assert values == [0, 0] and not has_signal(samples)
    samples = group("a", "b")
    assert advantages(samples, {"r": Reward(lambda s: 3.3 + 0.001 * s.index, 1.0)}, "group") != [0, 0]
    assert has_signal(samples)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_corrected_gradient_is_that_of_kl(estimator):
    """Expected over an old policy of three tokens, with respect to the logits."""
    old, ref = np.log([0.2, 0.5, 0.3]), np.log([0.4, 0.35, 0.25])
    config = dataclasses.replace(preset("grpo"), kl_estimator=estimator, kl_correction=True, kl_coef=1.0)

    def expected(logits):
        new = jax.nn.log_softmax(logits)
        return sum(np.exp(old[i]) * term(new[i], i) for i in range(3))

    def term(logp, i):
        packed = pack("one a row", np.ones((1, 1)), np.zeros(1), old=old[None, [i]], ref=ref[None, [i]])
        return grpo_loss(packed.place(logp[None, None]), packed.batch, config, 8)[0].total

    def kl(logits):
        new = jax.nn.log_softmax(logits)
        return (jnp.exp(new) * (new - ref)).sum()

    with jax.enable_x64(True):
        logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
        found, wanted = jax.grad(expected)(logits), jax.grad(kl)(logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


LOCKED = """
import sys, time
from etils import epath
from r1jax.runs.workdir import lock
lock(epath.Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_workdir_is_locked_while_its_process_lives(tmp_path):
    directory = epath.Path(tmp_path)
    with subprocess.Popen([sys.executable, "-c", LOCKED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout and other.stdout.readline() == "locked\n"
            with pytest.raises(UsageError, match="another process"):
                lock(directory)
        finally:
            other.kill()  # a crash leaves no lock behind
    lock(directory)
    lock(directory)  # the same process may open a run again


def test_environments_that_mostly_fail_stop_the_run():
    """As of a server that is down; a policy that makes some of them fail does not."""
    samples = group("a", "b", "c", "d")
    for n, sample in enumerate(samples):
        sample.turns = [Turn(0, observation="ConnectionRefusedError")]
        sample.finish_reason = "environment_error" if n < 2 else "stop"
    require_environments([samples])
    samples[2].finish_reason = "timeout"
    with pytest.raises(RunError, match="ConnectionRefusedError"):
        require_environments([samples])


def test_steps_that_teach_nothing_are_said_once(capsys):
    """Where all answers are wrong, a group whose rewards for the format differ teaches something."""
    log = RLLog.__new__(RLLog)
    log.steps_without_advantages, log.progress = 0, Progress()
    log.stage = SimpleNamespace(name="rl")  # type: ignore[assignment]
    alike, differing = [group("a", "b") for _ in range(2)]
    for samples, rewards in ((alike, (1.0, 1.0)), (differing, (0.1, 0.0))):
        for sample, reward in zip(samples, rewards, strict=True):
            sample.rewards, sample.reward, sample.valid = {"accuracy": 0.0}, reward, True
        compute_advantages([samples], LossConfig(), SamplingConfig(8, 8))
    for samples in [alike] * 4 + [differing] + [alike] * 9:
        log.warn([samples])
    assert capsys.readouterr().out.count("nothing was learnt") == 1


CRASH = r"\boxed{\sqrt{x^2+1} + \sqrt{x^3+2} - crash}"


class Crashing:
    """Workers that fail on one answer, whatever it is compared with."""

    timeouts = crashes = 0
    verdicts = Workers.verdicts

    def map(self, items):
        return [None if "crash" in str(item[0]) else item[0] == item[1] for item in items]


@pytest.mark.parametrize("start", [0.05, 0.4])
def test_a_policy_that_crashes_its_verifier_learns_not_to(start):
    """A softmax policy over three answers, by the project's verifier, group advantages and policy gradient."""
    verifier = MathVerifier(processes=1)
    verifier.workers.close()
    verifier.workers = Crashing()  # type: ignore[assignment]
    rewards = {"accuracy": Reward(verifier, 1.0)}
    texts = [r"\boxed{x+1}", r"\boxed{y+2}", CRASH]
    logits = np.log([0.3 * (1 - start), 0.7 * (1 - start), start])
    rng, problem = np.random.default_rng(0), dataclasses.replace(A_PROBLEM, answer="x + 1")
    for _ in range(50):
        p = np.exp(logits) / np.exp(logits).sum()
        gradient = np.zeros(3)
        for _ in range(8):
            chosen = rng.choice(3, 16, p=p)
            samples = [
                dataclasses.replace(make_sample(problem, texts[c], [1, 2]), index=i) for i, c in enumerate(chosen)
            ]
            for c, advantage in zip(chosen, advantages(samples, rewards, "group"), strict=True):
                gradient += advantage * ((np.arange(3) == c) - p)
        logits = logits + 0.5 * gradient / 128
    p = np.exp(logits) / np.exp(logits).sum()
    assert p[2] <= 0.02 and p[0] > 0.9


def test_verifiers_that_fail_on_right_answers_too_stop_the_run():
    class Broken:
        def grade(self, samples):
            return [None] * len(samples)

    rewards = {"accuracy": Reward(Broken(), 1.0)}
    samples = group("a", "b")
    grade_groups(rewards, [samples])
    with pytest.raises(RunError, match="2 of 2"):
        require_verified(rewards, [samples])
    fine = {"accuracy": Reward(lambda s: 1.0, 1.0)}
    grade_groups(fine, [samples])
    require_verified(fine, [samples])
