"""Interrupted stages end in the same bits, and stages compile nothing after their first step."""

import dataclasses
import functools
import json
import random
import shutil
import threading
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from experiments._toy import zero_rules
from r1jax.checkpoint.store import CheckpointStore
from r1jax.config import OptimizerConfig, PretrainConfig
from r1jax.data.tasks import TASKS
from r1jax.errors import RunError, UsageError
from r1jax.rewards.rules import Reward
from r1jax.rollout import engine as engine_module
from r1jax.rollout.advantages import compute_advantages
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import make_minibatches
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.runs.state import LEAST_CHANGE, restore_onto, split_policy
from r1jax.stages import rl as rl_stage
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem, Sample, TrainState
from tests.shared.checkpoints import contents, require_same_bits
from tests.shared.configs import change, evaluate_config
from tests.shared.small_run import r1jax, settings


def test_restoring_deletes_the_state_it_replaces_first(tmp_path, one_device):
    """A device with room for one training state only can resume."""

    def fresh(value: float) -> TrainState:
        state = TrainState(np.int32(value), {"w": np.full(3, value)}, (np.full(3, value),), {"moe": np.full(3, value)})
        return jax.device_put(state, one_device.replicated())

    store = CheckpointStore(epath.Path(tmp_path))
    store.save(1, *split_policy(fresh(1)), {"read": 7}, {})
    begun = fresh(2)
    state, position = restore_onto(store, 1, begun)
    store.close()
    assert position == {"read": 7}
    assert all(x.is_deleted() for x in jax.tree.leaves(begun))
    assert [np.unique(x) for x in jax.tree.leaves(state)] == [1, 1, 1, 1]


@pytest.mark.parametrize("stages", [["rl"], pytest.param(["pretrain", "rl"], marks=pytest.mark.slow)])
def test_killed_it_ends_in_the_same_bits(finished, fork, tmp_path, stages):
    arguments = ("run", str(fork), "--workdir", str(tmp_path / "killed"), *settings())
    for stage in stages:
        assert r1jax(*arguments, kill_in=stage).returncode == -9
        assert not (tmp_path / "killed" / stage / "complete.json").exists()
    again = r1jax(*arguments)
    assert again.returncode == 0, again.stderr
    require_same_bits(finished, tmp_path / "killed")


@pytest.mark.slow
def test_killed_twice_with_masters_it_ends_in_the_same_bits(fork, tmp_path):
    numbers = settings(**{"ModelConfig.param_dtype": "'bfloat16'"})
    for name, kills in (("whole", ()), ("killed", ("pretrain", "rl"))):
        arguments = ("run", str(fork), "--workdir", str(tmp_path / name), *numbers)
        for stage in kills:
            assert r1jax(*arguments, kill_in=stage).returncode == -9
        done = r1jax(*arguments)
        assert done.returncode == 0, done.stderr
    require_same_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_stopped_by_sigterm_it_saves_and_resumes_to_the_same_bits(finished, fork, tmp_path):
    """With reference and optimizer offloaded to host memory, which the undisturbed run does not do."""
    offload = {"RLConfig.offload": ("reference", "optimizer")}
    arguments = ("run", str(fork), "--workdir", str(tmp_path / "stopped"), *settings(**offload))
    for stage, saved in (("pretrain", 4), ("rl", 3)):  # the next step at which a run can stop
        told = r1jax(*arguments, kill_in=stage, signal="SIGTERM")
        assert told.returncode == 75
        (line,) = told.stderr.splitlines()
        assert stage in line and f"step {saved}" in line
        assert (tmp_path / "stopped" / stage / "checkpoints" / str(saved)).exists()
    again = r1jax(*arguments)
    assert again.returncode == 0, again.stderr
    require_same_bits(finished, tmp_path / "stopped")


def test_rl_moved_the_policy_and_refreshed_the_reference(finished):
    rl_state = contents(epath.Path(finished) / "rl" / "checkpoints" / "4")
    base = contents(epath.Path(finished) / "pretrain" / "checkpoints" / "4")
    name = next(n for n in base if "policy" in n and "head_DV" in n)
    assert (rl_state[name] != base[name]).any()
    reference = next(n for n in rl_state if "'reference'" in n and "head_DV" in n)
    assert (rl_state[reference] != base[name]).any()
    assert (rl_state[reference] != rl_state[name]).any()
    step = next(n for n in rl_state if "reference_update" in n)
    assert rl_state[step] == 6  # 2 updates a step: refreshed after step 2 (past 3 updates) and step 3 (at 6)


def test_a_repeated_run_skips_complete_stages(finished, fork, tmp_path):
    workdir = Path(shutil.copytree(finished, tmp_path / "again"))
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("*/c*.json")}
    again = r1jax("run", str(fork), "--workdir", str(workdir), *settings())
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in workdir.glob("*/c*.json")} == before
    assert len(json.loads((workdir / "run.json").read_text())["sessions"]) == 2


def test_another_config_in_the_same_workdir_is_refused(finished, fork, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "other")
    done = r1jax("run", str(fork), "--workdir", str(workdir), *settings(**{"LossConfig.kl_coef": 0.5}))
    assert done.returncode == 2
    assert "rl.loss.kl_coef: 0.001" in done.stderr


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_can_be_used(finished, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = workdir / "rl" / "checkpoints" / "4"
    for path in newest.glob("policy/**/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    done = r1jax("generate", str(workdir / "rl"), "--prompt", "compute 3 #a - 1", "--max_tokens", "44")
    assert done.returncode == 1
    assert str(newest) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    shutil.rmtree(newest)
    (workdir / "rl" / "complete.json").unlink()
    assert r1jax("generate", str(workdir / "rl"), "--prompt", "compute 3 #a - 1", "--max_tokens", "44").returncode == 0


@pytest.fixture(scope="module")
def small_pretrain(experiment_config) -> PretrainConfig:
    return dataclasses.replace(experiment_config.pretrain, steps=4, batch_size=4, documents=200, log_every=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory, experiment_config, small_pretrain, one_device, toy_records) -> epath.Path:
    """A policy of four steps, for the tests that ask nothing of pretraining."""
    workdir = str(tmp_path_factory.mktemp("base"))
    opened = open_run(workdir, Experiment("variety"), experiment_config, one_device, Progress())
    run = opened.with_task(TASKS["running_sum"])
    return pretrain(run.stage("pretrain"), small_pretrain, toy_records["running_sum_corpus"])


@pytest.fixture
def in_process(tmp_path, experiment_config, small_pretrain, one_device, toy_records, base):
    """A run in this process whose stage `base` is complete, its config, corpus and problems."""
    numbers = dict(
        steps=4, prompts_per_step=4, group_size=4, minibatches_per_rollout=2, num_prompts=16, max_new_tokens=12,
        save_every=10,
    )  # fmt: skip
    config = dataclasses.replace(
        experiment_config,
        pretrain=small_pretrain,
        rl=change(experiment_config.rl, **numbers),
        evaluate=evaluate_config(
            slots=32, num_prompts=8, samples_per_prompt=8, max_prompt_tokens=24, max_new_tokens=12
        ),
    )
    opened = open_run(str(tmp_path / "run"), Experiment("variety"), config, one_device, Progress())
    run = opened.with_task(TASKS["running_sum"])
    shutil.copytree(base, run.workdir / "base")
    return run, config, toy_records["running_sum_corpus"], toy_records["running_sum_problems"]


TRANSFERS_OF_ROUND = 8  # of decoding: the slots that are free, limits, and six settings
TRANSFERS_OF_STEP = 30  # insertion, keys, the temperature and the learning rate


def test_nothing_compiles_and_little_is_transferred_after_the_first_step(in_process, monkeypatch, capfd):
    """By JAX's own events, steps 2 and later compile nothing, not even a small host-side operation.

    By its transfer guard they give programs a stated number of arrays and numbers of the host. (On a CPU, where devices
    have the host's memory, the guard does not see transfers to the host.)
    """
    run, config, corpus, problems = in_process
    compilations: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compilations.append(1) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    per_step: dict[str, list[int]] = {}
    transfers, rounds = list[int](), list[int]()
    write, metrics = rl_stage.MetricsWriter.write, RolloutEngine.metrics

    def counting(self, step, values):
        per_step.setdefault(self.path.parent.name, []).append(len(compilations))
        transfers.append(capfd.readouterr().err.count("host-to-device transfer"))
        write(self, step, values)

    def counting_rounds(self):
        rounds.append(self.counts.rounds)
        return metrics(self)

    monkeypatch.setattr(rl_stage.MetricsWriter, "write", counting)
    monkeypatch.setattr(RolloutEngine, "metrics", counting_rounds)
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    rewards = zero_rules(config.rewards)
    # Arrays of other ranks are broadcast by hand, so that none is by mistake.
    with jax.numpy_rank_promotion("raise"), jax.transfer_guard_host_to_device("log"):
        rl(run.stage("rl"), config.rl, base, problems, rewards)
    jax.monitoring.clear_event_listeners()
    assert len(rounds) == 4
    for made, of_rounds in zip(transfers[-3:], rounds[1:], strict=True):
        assert 0 < made <= TRANSFERS_OF_ROUND * of_rounds + TRANSFERS_OF_STEP
    assert compilations, "the listener saw nothing at all"
    for name, counts in per_step.items():
        assert len(counts) == 4
        assert counts[-1] == counts[0], f"{name} compiled after its first step: {counts}"


TRAINER = {"snapshot": 2, "first_state": 1, "add_logprobs": 1, "rl_gradients": 1, "add_gradients": 1, "rl_update": 1}
ENGINE = ("empty_slots", "rollout_params", "prefill_prompts", "insert", "decode")


@pytest.mark.slow
def test_a_whole_rl_stage_compiles_a_stated_number_of_programs(in_process, monkeypatch):
    """`RolloutEngine.max_programs`, seven of the trainer, and at most eight small ones of JAX's own."""
    monkeypatch.setattr(engine_module, "SMALLEST_BUCKET", 4)
    run, config, corpus, problems = in_process
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    rewards = zero_rules(config.rewards)
    engine = dict(prefill_rows=1, weight_dtype="int8", slots=3)
    lengths = dict(max_prompt_tokens=30, max_new_tokens=30, row_tokens=70, microbatch_rows=1)
    numbers = change(config.rl, **engine, **lengths)
    jax.clear_caches()  # what other tests compiled counts too
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, fun_name="", **_: (
            compiled.append(fun_name) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    rl(run.stage("rl"), numbers, base, problems, rewards)
    jax.monitoring.clear_event_listeners()
    times = Counter(name.removeprefix("jit(").removesuffix(")") for name in compiled)
    most = engine_module.RolloutEngine(run.layout, config.model, None, numbers.engine, numbers.sampling, 4).max_programs
    assert times["decode"] > 1
    assert sum(times[name] for name in ENGINE) <= most == 2 + 2 * 4 + 6
    assert all(0 < times[name] <= most for name, most in TRAINER.items())
    assert sum(times.values()) <= most + 7 + 8, times


def test_logits_that_are_not_finite_stop_the_run_with_the_state_saved(in_process, monkeypatch):
    """The third rollout fails: the state after the second step is saved, and the stage resumes from it."""
    run, config, corpus, problems = in_process
    base = run.workdir / "base"
    rewards = zero_rules(config.rewards)
    arguments = (config.rl, base, problems, rewards)
    rounds, calls = rl_stage.RolloutEngine.rounds, []

    def failing(self, weights, *others, **options):
        calls.append(1)
        if len(calls) == 3:
            head_DV = weights.params["head_DV"].at[3, 5].set(np.nan)
            weights = weights._replace(params=weights.params | {"head_DV": head_DV})
        return rounds(self, weights, *others, **options)

    monkeypatch.setattr(rl_stage.RolloutEngine, "rounds", failing)
    with pytest.raises(RunError, match=r"step 3: .*problem \d+, sample 0, token 0.*step 3"):
        rl(run.stage("failed"), *arguments)
    assert [p.name for p in (run.workdir / "failed" / "checkpoints").iterdir()] == ["2"]
    rl(run.stage("failed"), *arguments)
    assert [row["step"] for row in read_metrics(run.workdir / "failed" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_stage_that_ran_out_of_memory_may_resume_with_fewer_slots(in_process):
    """Slots and the like change no token. Fields that do are still refused."""
    run, config, corpus, problems = in_process
    run.stage("any").open("rl", {}, rl=config.rl)
    fewer = change(config.rl, slots=2, prefill_rows=1, steps_per_round=3, speculative=True)
    run.stage("any").open("rl", {}, rl=fewer)
    with pytest.raises(UsageError, match=r"rl.engine.weight_dtype: model .*int8"):
        run.stage("any").open("rl", {}, rl=change(config.rl, weight_dtype="int8"))


def test_evaluation_is_repeatable_and_writes_its_samples(in_process):
    run, config, corpus, problems = in_process
    base = run.workdir / "base"
    rewards = zero_rules(config.rewards)
    a = evaluate(run.stage("one"), config.evaluate, base, rewards)
    b = evaluate(run.stage("two"), config.evaluate, base, rewards)
    assert a == b
    samples = [json.loads(line) for line in (run.workdir / "one" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    assert set(samples[0]["rewards"]) == {"accuracy", "format", "language_mix", "last_number"}


@pytest.fixture
def in_bfloat16(in_process):
    """A run whose weights are stored in bfloat16, and functions that run its stages with changes of their configs."""
    run, config, corpus, problems = in_process
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, param_dtype="bfloat16"))
    varied = {"varied": Reward(lambda sample: sum(sample.tokens) % 97 / 97, 1.0)}

    def start_pretrain(name: str, **changes) -> epath.Path:
        return pretrain(run.stage(f"{name}_pretrain"), change(config.pretrain, save_every=2, **changes), corpus)

    def start_rl(name: str, base: epath.Path, **changes) -> epath.Path:
        return rl(run.stage(name), change(config.rl, save_every=2, **changes), base, problems, varied)

    return run, start_pretrain, start_rl


@pytest.mark.slow
def test_masters_resume_with_the_same_bits(in_bfloat16):
    """From the checkpoint of the second step, with the optimizer in the hosts' memory as the first run has not."""
    run, start_pretrain, start_rl = in_bfloat16
    base = start_pretrain("whole")
    starts = (start_pretrain, lambda *name, **changes: start_rl(*name, base, moment_dtype="bfloat16", **changes))
    for name, start, offload in zip(("whole", "rl"), starts, ({}, {"offload": ("optimizer",)}), strict=True):
        directory = start(name)
        last = directory / "checkpoints" / "4"
        whole = contents(last)
        last.rmtree()
        (directory / "complete.json").unlink()
        resumed = contents(start(name, **offload) / "checkpoints" / "4")
        assert whole.keys() == resumed.keys()
        for key in whole:
            np.testing.assert_array_equal(resumed[key], whole[key], err_msg=f"{name} {key}")
        masters, stored = (
            next(x for key, x in whole.items() if part in key and "head_DV" in key) for part in ("masters", "policy")
        )
        assert (masters.dtype, stored.dtype) == ("float32", "bfloat16")
        np.testing.assert_array_equal(masters.astype(stored.dtype), stored)
        assert (masters != stored.astype("float32")).any()


@pytest.mark.parametrize("kind", ["pretrain", pytest.param("rl", marks=pytest.mark.slow)])
def test_a_first_update_that_rounds_to_nothing_stops_the_run(in_bfloat16, kind):
    """Without masters, with nothing saved. With masters the same learning rate trains."""
    run, start, start_rl = in_bfloat16
    if kind == "rl":
        start = functools.partial(start_rl, base=start("whole", steps=1))
    numbers = dict(learning_rate=1e-6, warmup_steps=0, steps=1)
    with pytest.raises(UsageError, match=r"changed 0.* OptimizerConfig.master_weights"):
        start("tiny", master_weights=False, **numbers)
    (stage,) = run.workdir.glob("tiny*")
    assert not list((stage / "checkpoints").iterdir())
    (row,) = read_metrics(start("moved", **numbers) / "metrics.jsonl")
    assert row["update_norm"] > 0
    assert row["changed_weights"] < LEAST_CHANGE


def test_metrics_that_are_not_finite_stop_the_run(in_process):
    run, config, corpus, _ = in_process
    hot = dataclasses.replace(config.pretrain.optimizer, learning_rate=1e38)
    with pytest.raises(RunError, match=r"pretrain: update_norm .* step 1.*OptimizerConfig.learning_rate"):
        pretrain(run.stage("pretrain"), dataclasses.replace(config.pretrain, optimizer=hot), corpus)


def test_minibatches_hold_every_valid_sample_once(experiment_config):
    asked = [Problem(b, "", "", "en") for b in range(5)]
    groups = [[Sample(p, p.id, g, tokens=[3 * p.id + g], loss_mask=[1]) for g in range(3)] for p in asked]
    groups[2][2].valid = False
    config = change(experiment_config.rl, minibatches_per_rollout=4)
    samples = compute_advantages(groups, experiment_config.rl.loss, experiment_config.rl.sampling)

    def ids(step: int) -> list[list[int]]:
        return [[sample.tokens[0] for sample in part] for part in make_minibatches(samples, config, (0, 5, step))]

    parts = ids(1)
    assert sorted(i for part in parts for i in part) == [i for i in range(15) if i != 8]  # 8 is not valid
    assert {len(part) for part in parts} <= {3, 4}
    assert parts == ids(1) != ids(2)


def test_a_path_without_a_checkpoint_is_refused(tmp_path, one_device):
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_policy(epath.Path(tmp_path), one_device)


def test_a_stage_marked_complete_without_its_last_checkpoint_is_no_base(finished, tmp_path, one_device):
    """After the last checkpoint is removed, an unfinished policy must not be used silently."""
    workdir = tmp_path / "short"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "pretrain" / "checkpoints" / "4")
    with pytest.raises(RunError, match=r"pretrain.* step 2.* step 4.*complete.json"):
        load_policy(epath.Path(workdir) / "pretrain", one_device)
    (workdir / "pretrain" / "complete.json").unlink()
    load_policy(epath.Path(workdir) / "pretrain", one_device)


def test_a_model_that_differs_from_the_bases_is_refused(in_process):
    run, config, corpus, problems = in_process
    base = run.workdir / "base"
    rewards = zero_rules(config.rewards)
    other = dataclasses.replace(config.model, routed_scaling_factor=2.0)
    with pytest.raises(UsageError, match=r"routed_scaling_factor: 1.0 .*2.0"):
        rl(dataclasses.replace(run, model=other).stage("rl"), config.rl, base, problems, rewards)


def test_a_vocabulary_that_differs_from_the_tasks_is_refused(in_process):
    run, config, corpus, _ = in_process
    other = dataclasses.replace(config.model, vocab_size=256)
    with pytest.raises(UsageError, match=r"ModelConfig.vocab_size is 256, .*208 .*'running_sum'"):
        pretrain(dataclasses.replace(run, model=other).stage("pretrain"), config.pretrain, corpus)


def run_rl(in_process, name: str, rewards=None, **changes):
    """An RL stage of four steps, its metrics and its directory."""
    run, config, corpus, problems = in_process
    base = run.workdir / "base"
    rewards = rewards or zero_rules(config.rewards)
    directory = rl(run.stage(name), change(config.rl, **changes), base, problems, rewards)
    return read_metrics(directory / "metrics.jsonl"), directory


def test_a_dense_model_is_pretrained_and_learns_by_grpo(in_process, dense_model, one_device):
    """With the same programs, and without a router bias."""
    run, config, corpus, problems = in_process
    model = dataclasses.replace(dense_model, initializer_range=None)
    run = dataclasses.replace(run, model=model)
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    rewards = {"variety": Reward(lambda sample: len(set(sample.text.split())) / 10, 1.0)}
    directory = rl(run.stage("rl"), config.rl, base, problems, rewards)
    rows = read_metrics(directory / "metrics.jsonl")
    assert len(rows) == 4
    assert all(row["grad_norm"] > 0 and "expert_load_max" not in row for row in rows)
    before, after = (load_policy(path, one_device, model) for path in (base, directory))
    assert before.weights.router_bias == after.weights.router_bias == {}
    for a, b in zip(jax.tree.leaves(before.weights.params), jax.tree.leaves(after.weights.params), strict=True):
        assert (np.asarray(a) != np.asarray(b)).any()


def test_groups_without_signal_give_way_to_others(in_process):
    """A reward that differs only within groups of problems with an even id: half of the groups teach nothing."""
    varied = Reward(lambda s: sum(s.tokens) % 97 / 97 if s.problem.id % 2 == 0 else 0.3, 1.0)
    rows, directory = run_rl(in_process, "replaced", {"varied": varied}, max_generation_batches=4, log_samples_every=2)
    for row in rows:
        assert 4 / row["prompts_run"] <= row["groups_with_signal"] < 1  # of all that were drawn
        assert row["samples_trained"] == 16
        assert row["prompts_run"] in (8, 12, 16)
    samples = read_metrics(directory / "samples.jsonl")
    assert {s["step"] for s in samples} == {2, 4}
    assert all((s["problem"]["id"] % 2 == 0) == s["trained"] for s in samples)  # what was replaced is there as well
    assert len(samples) == 4 * sum(row["prompts_run"] for row in rows if row["step"] in (2, 4))
    rows, _ = run_rl(in_process, "kept", {"varied": varied})
    assert {row["prompts_run"] for row in rows} == {4}
    assert any(row["groups_with_signal"] < 1 for row in rows)


def test_where_no_group_has_signal_nothing_is_learnt(in_process):
    """The cap on rounds holds; what is dropped is in no sum and no KL: the policy does not move."""
    same = Reward(lambda sample: 0.1 + 0.2, 1.0)
    rows, directory = run_rl(in_process, "flat", {"same": same}, max_generation_batches=2, kl_coef=1.0, steps=2)
    assert [row["prompts_run"] for row in rows] == [8, 8]
    assert [row["samples_trained"] for row in rows] == [0, 0]
    assert all("grad_norm" not in row for row in rows)  # there was no update
    run, *_ = in_process
    before, after = (load_policy(run.workdir / name, run.layout).weights.params for name in ("base", "flat"))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))


def test_the_sample_log_says_what_each_output_was_worth(in_process):
    rows, directory = run_rl(in_process, "logged", log_samples_every=4)
    samples = read_metrics(directory / "samples.jsonl")
    assert len(samples) == 16
    of_sample = {"problem", "text", "tokens", "finished", "finish_reason", "rewards", "reward", "valid", "advantage"}
    of_sample |= {"trained"}
    assert samples[0].keys() == {"step"} | of_sample
    for first in range(0, 16, 4):
        group = samples[first : first + 4]
        assert len({s["problem"]["id"] for s in group}) == 1
        assert sum(s["advantage"] for s in group) == pytest.approx(0, abs=1e-4)
    expected = {"reward_std", "reward_p10", "reward_p90", "accuracy_std", "tokens_wrong", "groups_all_wrong"}
    assert (
        expected | {"sampler_kl", "clip_fraction_low", "ratio_max", "slots_in_use", "seconds_rollout"}
        <= rows[-1].keys()
    )


def test_one_step_off_policy_learns_from_the_policy_before(in_process):
    """Stale rollouts are those that are not behind a checkpoint; they are weighed, and resuming gives the same bits."""
    changes = dict(
        steps=6, save_every=3, max_staleness=1, minibatches_per_rollout=1, importance="token", optimizer=hot(in_process)
    )
    rows, whole = run_rl(in_process, "whole", {"varied": VARIED}, **changes)
    assert [row["staleness"] for row in rows] == [0, 1, 1, 0, 1, 1]
    for row in rows:  # only a stale rollout differs from what the trainer would draw
        assert (row["logprob_gap_max"] > 1e-3) == (row["staleness"] == 1)
        assert (abs(row["importance_weight"] - 1) > 1e-5) == (row["staleness"] == 1)
        assert row["ratio_deviation_max"] == 0  # the ratio's denominators are the trainer's own
    kept = contents(epath.Path(whole) / "checkpoints" / "6")
    shutil.rmtree(whole / "checkpoints" / "6")
    (whole / "complete.json").unlink()
    again, whole = run_rl(in_process, "whole", {"varied": VARIED}, **changes)
    repeated = contents(epath.Path(whole) / "checkpoints" / "6")
    for name in kept:
        np.testing.assert_array_equal(repeated[name], kept[name], err_msg=name)
    names = ("step", "loss", "reward", "grad_norm", "importance_weight", "staleness")
    assert [{k: row[k] for k in names} for row in again] == [{k: row[k] for k in names} for row in rows]


VARIED = Reward(lambda sample: sum(sample.tokens) % 97 / 97, 1.0)


def hot(in_process) -> OptimizerConfig:
    """A learning rate at which one update shows in the log-probabilities."""
    return dataclasses.replace(in_process[1].rl.optimizer, learning_rate=1e-2, warmup_steps=0)


def test_more_epochs_train_on_each_minibatch_again(in_process):
    once, _ = run_rl(in_process, "once", {"varied": VARIED}, steps=1, optimizer=hot(in_process))
    twice, directory = run_rl(
        in_process, "twice", {"varied": VARIED}, steps=1, epochs_per_rollout=2, optimizer=hot(in_process)
    )
    step = next(x for n, x in contents(epath.Path(directory) / "checkpoints" / "1").items() if n.endswith("['step']"))
    assert step == 4
    assert twice[0]["ratio_deviation_max"] > once[0]["ratio_deviation_max"] > 0  # the second minibatch is off-policy


class Verifier:
    """Fails on some outputs, and says when it has graded."""

    notice = "asks nobody"

    def __init__(self) -> None:
        self.graded = threading.Event()

    def grade(self, samples):
        self.graded.set()
        return [None if len(s.response_tokens) % 2 else 0.5 + sum(s.tokens) % 7 / 7 for s in samples]


def test_rewards_run_beside_rollouts_and_failures_pay_nothing(in_process, monkeypatch, capsys):
    """Each group is graded while the rollout waits for that, and has others to draw."""
    verifier, rounds = Verifier(), rl_stage.RolloutEngine.rounds

    def waiting(self, *arguments, done, **options):
        def done_and_graded(samples):
            verifier.graded.clear()
            done(samples)
            assert verifier.graded.wait(30)

        return rounds(self, *arguments, done=done_and_graded, **options)

    monkeypatch.setattr(rl_stage.RolloutEngine, "rounds", waiting)
    rewards = {"verified": Reward(verifier, 1.0)}
    rows, directory = run_rl(in_process, "beside", rewards, log_samples_every=1, steps=2, temperature=2.0)
    assert json.loads((directory / "notices.json").read_text()) == {"verified": "asks nobody"}
    assert "beside, verified: asks nobody" in capsys.readouterr().out
    samples = read_metrics(directory / "samples.jsonl")
    failed = [s for s in samples if s["rewards"]["verified"] is None]
    assert failed
    for s in failed:
        group = [o for o in samples if (o["step"], o["problem"]["id"]) == (s["step"], s["problem"]["id"])]
        if any(o["rewards"]["verified"] is not None for o in group):
            assert s["advantage"] == 0
    assert any(row["samples_trained"] < 16 for row in rows)
    assert all(0 <= row["device_idle"] < 1 for row in rows)


# ---- episodes


EPISODES = '''"""RL in an environment, which kills the run at the turn that KILL_AT names."""

import itertools
import os
import signal
from dataclasses import replace

from experiments.r1_zero import GIN_FILES, TASK, Config
from r1jax.data.feeds import Records, ensure_records
from r1jax.rewards.rules import Reward, environment_reward
from r1jax.rollout.advantages import turn_advantages
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.types import Environments, Step

TURNS, KILL_AT = itertools.count(1), int(os.environ.get("KILL_AT", 0))


class Answers:
    """Says words that depend on the whole episode, and rewards long turns."""

    def reset(self, problem, seed):
        self.state = seed

    def step(self, turn):
        if next(TURNS) == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        self.state = (self.state * 31 + sum(map(ord, turn))) % 9973
        words = [20 + self.state % 70] * (1 + self.state % 3)
        return Step(words, done=self.state % 5 == 0, reward=len(turn.split()) / 10)


def run(run, config):
    run = run.with_task(replace(TASK, environments=Environments(Answers, TASK.tokenizer.encode_plain)))
    wanted = [
        Records(TASK.corpus, "train", config.pretrain.documents),
        Records(TASK.prompts, "train", config.rl.num_prompts),
    ]
    corpus, problems = ensure_records(wanted, run.seed, run.workdir / "data")
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    rewards = {"accuracy": Reward(environment_reward, 1.0)}
    rl(run.stage("rl"), config.rl, base, problems, rewards, advantage=turn_advantages(0.9))
'''
EPISODE_NUMBERS = {
    "RLConfig.steps": 24, "SamplingConfig.max_new_tokens": 24, "SamplingConfig.max_turns": 4,
    "SamplingConfig.stop_ids": tuple(range(10, 100, 2)), "RLConfig.save_every": 1, "EngineConfig.append_chunk": 2,
}  # fmt: skip


@pytest.mark.slow
def test_killed_in_twenty_episodes_it_ends_in_the_same_bits(tmp_path):
    fork, rng, killed = tmp_path / "fork.py", random.Random(0), 0
    fork.write_text(EPISODES)
    whole = r1jax("run", str(fork), "--workdir", str(tmp_path / "whole"), *settings(**EPISODE_NUMBERS))
    assert whole.returncode == 0, whole.stderr
    again = ("run", str(fork), "--workdir", str(tmp_path / "killed"), *settings(**EPISODE_NUMBERS))
    for _ in range(20):  # a step has about 30 turns: some kills repeat a step, others come in a later one
        killed += r1jax(*again, variables={"KILL_AT": str(rng.randint(1, 60))}).returncode == -9
    assert killed == 20
    done = r1jax(*again)
    assert done.returncode == 0, done.stderr
    require_same_bits(tmp_path / "whole", tmp_path / "killed", rl_step=24)
