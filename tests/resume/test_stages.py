"""Stages end in the same bits however often they were interrupted, and compile nothing after their first step."""

import dataclasses
import json
import shutil
import threading
from collections import Counter

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from r1jax.checkpoint.store import CheckpointStore
from r1jax.cli.main import load_experiment
from r1jax.config import EvaluateConfig, OptimizerConfig, RolloutConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.tasks import TASKS
from r1jax.errors import RunError, UsageError
from r1jax.rewards.rules import Reward
from r1jax.rollout import engine as engine_module
from r1jax.rollout.engine import Output
from r1jax.runs.policy import load_policy
from r1jax.runs.run import open_run
from r1jax.runs.state import restore_onto, split
from r1jax.stages import rl as rl_stage
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from r1jax.types import TrainState
from tests.shared.small_run import r1jax, settings


def contents(checkpoint) -> dict:
    """Every array and every JSON value of a checkpoint."""
    with ocp.PyTreeCheckpointer() as reader:
        items = {name: reader.restore(checkpoint / name) for name in ("policy", "training")}
    flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(items)}
    return flat | {name: (checkpoint / name / "metadata").read_text() for name in ("data", "about")}


def test_what_is_restored_never_lies_beside_what_it_replaces(tmp_path, one_device):
    """A device that has room for one training state goes on from a checkpoint, too."""

    def fresh(value: float) -> TrainState:
        state = TrainState(np.int32(value), {"w": np.full(3, value)}, (np.full(3, value),), {"moe": np.full(3, value)})
        return jax.device_put(state, one_device.replicated())

    store = CheckpointStore(epath.Path(tmp_path))
    store.save(1, *split(fresh(1)), {"read": 7}, {})
    begun = fresh(2)
    state, position = restore_onto(store, 1, begun)
    store.close()
    assert position == {"read": 7}
    assert all(x.is_deleted() for x in jax.tree.leaves(begun))
    assert [np.unique(x) for x in jax.tree.leaves(state)] == [1, 1, 1, 1]


def test_killed_twice_ends_in_the_same_bits(finished, fork, tmp_path):
    arguments = ("run", str(fork), "--workdir", str(tmp_path / "killed"), *settings())
    for stage in ("pretrain", "rl"):
        assert r1jax(*arguments, kill_in=stage).returncode == -9
        assert not (tmp_path / "killed" / stage / "complete.json").exists()
    again = r1jax(*arguments)
    assert again.returncode == 0, again.stderr
    require_same_bits(finished, tmp_path / "killed")


def test_told_to_stop_it_saves_and_goes_on_to_the_same_bits(finished, fork, tmp_path):
    """With reference and optimizer in the hosts' memory, of which the undisturbed run knows nothing."""
    offload = {"RLConfig.offload": ("reference", "optimizer")}
    arguments = ("run", str(fork), "--workdir", str(tmp_path / "stopped"), *settings(**offload))
    for stage, saved in (("pretrain", 4), ("rl", 3)):  # the next step that it can stop at
        told = r1jax(*arguments, kill_in=stage, signal="SIGTERM")
        assert told.returncode == 75
        assert told.stderr.splitlines() == [f"r1jax: {stage} is saved at step {saved}: the same command goes on"]
        assert (tmp_path / "stopped" / stage / "checkpoints" / str(saved)).exists()
    again = r1jax(*arguments)
    assert again.returncode == 0, again.stderr
    require_same_bits(finished, tmp_path / "stopped")


def require_same_bits(finished, other):
    """Checkpoints and metrics of two small runs, and what a checkpoint has to have."""
    for stage in ("pretrain", "rl"):
        whole = contents(epath.Path(finished) / stage / "checkpoints" / "4")
        resumed = contents(epath.Path(other) / stage / "checkpoints" / "4")
        assert whole.keys() == resumed.keys()
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=f"{stage} {name}")
        kept = ("step", "loss", "reward", "accuracy", "kl", "grad_norm")
        rows, resumed_rows = (
            [{k: r[k] for k in kept if k in r} for r in read_metrics(epath.Path(w) / stage / "metrics.jsonl")]
            for w in (finished, other)
        )
        assert rows == resumed_rows
    names = whole.keys()
    for part in ("params", "router_bias", "opt_state", "reference", "reference_router_bias", "reference_step"):
        assert any(part in name for name in names), f"{part} is not in the checkpoint"


def test_rl_moved_the_policy_and_refreshed_the_reference(finished):
    rl_state = contents(epath.Path(finished) / "rl" / "checkpoints" / "4")
    base = contents(epath.Path(finished) / "pretrain" / "checkpoints" / "4")
    name = next(n for n in base if "policy" in n and "head_DV" in n)
    assert (rl_state[name] != base[name]).any()
    reference = next(n for n in rl_state if "'reference'" in n and "head_DV" in n)
    assert (rl_state[reference] != base[name]).any()
    assert (rl_state[reference] != rl_state[name]).any()
    step = next(n for n in rl_state if "reference_step" in n)
    assert rl_state[step] == 6  # 2 updates a step: past 3 after step 2, before the kill, and at 6 after step 3


def test_running_again_skips_what_is_complete(finished, fork):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("*/c*.json")}
    again = r1jax("run", str(fork), "--workdir", str(finished), *settings())
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in finished.glob("*/c*.json")} == before
    assert len(json.loads((finished / "run.json").read_text())["sessions"]) >= 2


def test_another_number_in_the_same_workdir_is_refused(finished, fork):
    done = r1jax("run", str(fork), "--workdir", str(finished), *settings(**{"RLConfig.kl_coef": 0.5}))
    assert done.returncode == 2
    assert "rl.kl_coef: 0.001 there, 0.5 now" in done.stderr


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_still_works(finished, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = workdir / "rl" / "checkpoints" / "4"
    for path in newest.glob("policy/**/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    done = r1jax("generate", str(workdir / "rl"), "--prompt", "compute 3 #a - 1")
    assert done.returncode == 1
    assert str(newest) in done.stderr
    assert "can't be read" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    shutil.rmtree(newest)
    (workdir / "rl" / "complete.json").unlink()
    assert r1jax("generate", str(workdir / "rl"), "--prompt", "compute 3 #a - 1").returncode == 0


@pytest.fixture
def in_process(tmp_path, experiment_config, one_device, fork):
    """A run, its config and its data, without a process of its own."""
    numbers = dict(steps=4, questions=4, group_size=4, minibatches=2, prompts=16, max_new_tokens=12, save_every=10)
    config = dataclasses.replace(
        experiment_config,
        pretrain=dataclasses.replace(experiment_config.pretrain, steps=4, batch_size=4, documents=200, log_every=1),
        rl=dataclasses.replace(experiment_config.rl, **numbers),
        evaluate=EvaluateConfig(
            RolloutConfig(slots=32), problems=8, samples=8, max_prompt_tokens=24, max_new_tokens=12
        ),
    )
    run = open_run(str(tmp_path / "run"), "variety", config, one_device, Progress(), summary="", note="")
    wanted = [Records("running_sum_corpus", "train", 200), Records("running_sum_problems", "train", 16)]
    corpus, problems = ensure_records(wanted, 0, run.workdir / "data")
    return run, config, corpus, problems


def test_nothing_compiles_after_the_first_step(in_process, monkeypatch):
    """Counted by JAX's own events: not one compilation in steps 2 and later, small host-side operations included."""
    run, config, corpus, problems = in_process
    compilations: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compilations.append(1) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    per_step: dict[str, list[int]] = {}
    write = rl_stage.MetricsWriter.write

    def counting(self, step, values):
        per_step.setdefault(self.path.parent.name, []).append(len(compilations))
        write(self, step, values)

    monkeypatch.setattr(rl_stage.MetricsWriter, "write", counting)
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    rl(run, "rl", config.rl, config.model, base, TASKS["running_sum"], problems, rewards)
    jax.monitoring.clear_event_listeners()
    assert compilations, "the listener saw nothing at all"
    for name, counts in per_step.items():
        assert len(counts) == 4
        assert counts[-1] == counts[0], f"{name} compiled after its first step: {counts}"


TRAINER = {"snapshot": 2, "start": 1, "compute": 2, "prepare": 1, "add_gradients": 1, "update": 1}  # of an RL stage
ENGINE = ("empty_slots", "rollout_weights", "prefill", "insert", "decode")


@pytest.mark.slow
def test_a_whole_rl_stage_compiles_a_stated_number_of_programs(in_process, monkeypatch):
    """`RolloutEngine.max_programs`, and eight for the trainer; beside them, JAX's own small ones."""
    monkeypatch.setattr(engine_module, "SMALLEST_BUCKET", 4)
    run, config, corpus, problems = in_process
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    rollout = dataclasses.replace(config.rl.rollout, prefill_rows=1, weights="int8", slots=3)
    lengths = dict(max_prompt_tokens=30, max_new_tokens=30, row_tokens=70, microbatch_rows=1)
    numbers = dataclasses.replace(config.rl, rollout=rollout, **lengths)
    jax.clear_caches()  # what other tests compiled counts too
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, fun_name="", **_: (
            compiled.append(fun_name) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    rl(run, "rl", numbers, config.model, base, TASKS["running_sum"], problems, rewards)
    jax.monitoring.clear_event_listeners()
    times = Counter(name.removeprefix("jit(").removesuffix(")") for name in compiled)
    engine = engine_module.RolloutEngine(run.layout, config.model, None, rollout, 4, 30, 30)
    assert times["decode"] > 1
    assert sum(times[name] for name in ENGINE) <= engine.max_programs == 2 + 2 * 4 + 6
    assert all(0 < times[name] <= most for name, most in TRAINER.items())
    assert sum(times.values()) <= engine.max_programs + 8 + 8, times


def test_logits_that_are_not_finite_stop_the_run_with_the_state_saved(in_process, monkeypatch):
    """The third rollout fails: the state after the second step is on disk, and the run goes on from it."""
    run, config, corpus, problems = in_process
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    arguments = (config.rl, config.model, base, TASKS["running_sum"], problems, rewards)
    rounds, calls = rl_stage.RolloutEngine.rounds, []

    def failing(self, params, *others, **options):
        calls.append(1)
        if len(calls) == 3:
            params = params | {"head_DV": params["head_DV"].at[3, 5].set(np.nan)}
        return rounds(self, params, *others, **options)

    monkeypatch.setattr(rl_stage.RolloutEngine, "rounds", failing)
    with pytest.raises(
        RunError, match=r"rollout of step 3: .*not finite: prompt \d+, sample 0, token 0.*goes on with step 3"
    ):
        rl(run, "failed", *arguments)
    assert [p.name for p in (run.workdir / "failed" / "checkpoints").iterdir()] == ["2"]
    rl(run, "failed", *arguments)
    assert [row["step"] for row in read_metrics(run.workdir / "failed" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_who_ran_out_of_memory_may_go_on_with_less(in_process):
    """Slots and the like change no token; what does is still refused."""
    run, config, corpus, problems = in_process
    rollout = config.rl.rollout
    run.stage("any", "rl", {}, rl=config.rl)
    fewer = dataclasses.replace(rollout, slots=2, prefill_rows=1, steps_per_round=3, speculative=True)
    run.stage("any", "rl", {}, rl=dataclasses.replace(config.rl, rollout=fewer))
    with pytest.raises(UsageError, match=r"rl.rollout.weights: model there, int8 now"):
        run.stage(
            "any", "rl", {}, rl=dataclasses.replace(config.rl, rollout=dataclasses.replace(rollout, weights="int8"))
        )


def test_evaluation_is_repeatable_and_writes_its_samples(in_process):
    run, config, corpus, problems = in_process
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    a = evaluate(run, "one", config.evaluate, base, TASKS["running_sum"], rewards)
    b = evaluate(run, "two", config.evaluate, base, TASKS["running_sum"], rewards)
    assert a == b
    samples = [json.loads(line) for line in (run.workdir / "one" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    assert set(samples[0]["rewards"]) == {"accuracy", "format", "language_mix"}


def test_numbers_that_are_not_finite_stop_the_run(in_process):
    run, config, corpus, _ = in_process
    hot = dataclasses.replace(config.pretrain.optimizer, learning_rate=1e38)
    with pytest.raises(RunError, match=r"pretrain: update_norm not finite at step 1: the last checkpoint is good"):
        pretrain(
            run,
            "pretrain",
            dataclasses.replace(config.pretrain, optimizer=hot),
            config.model,
            TASKS["running_sum"],
            corpus,
        )


def test_minibatches_deal_out_every_output_once(experiment_config):
    config = dataclasses.replace(experiment_config.rl, questions=5, group_size=3, minibatches=4)
    outputs = [[Output(b, g) for g in range(3)] for b in range(5)]
    groups = [rl_stage.Group([b], group, [], [], [True, True, b != 2], True) for b, group in enumerate(outputs)]
    advantages = np.arange(15.0).reshape(5, 3)

    def dealt(step: int) -> list[list[float]]:
        hands = rl_stage.deal(groups, advantages, config, (0, 5, step))
        return [[taught.advantage for taught in hand] for hand in hands]

    hands = dealt(1)
    assert sorted(a for hand in hands for a in hand) == [i for i in range(15) if i != 8]  # 8 does not count
    assert {len(hand) for hand in hands} <= {3, 4}
    assert hands == dealt(1) != dealt(2)


def test_a_path_without_checkpoint(tmp_path, one_device):
    with pytest.raises(UsageError, match="no checkpoint at"):
        load_policy(epath.Path(tmp_path), one_device)


def test_a_stage_marked_complete_without_its_last_checkpoint_is_no_base(finished, tmp_path, one_device):
    """Who removes a damaged last checkpoint must not go on with an unfinished policy in silence."""
    workdir = tmp_path / "short"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "pretrain" / "checkpoints" / "4")
    with pytest.raises(RunError, match="completed at step 4, but its latest checkpoint is of step 2"):
        load_policy(epath.Path(workdir) / "pretrain", one_device)
    (workdir / "pretrain" / "complete.json").unlink()
    load_policy(epath.Path(workdir) / "pretrain", one_device)


def test_another_model_than_the_bases_is_refused(in_process):
    run, config, corpus, problems = in_process
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    other = dataclasses.replace(config.model, routed_scaling_factor=2.0)
    with pytest.raises(UsageError, match="routed_scaling_factor: 1.0 there, 2.0 now"):
        rl(run, "rl", config.rl, other, base, TASKS["running_sum"], problems, rewards)


def test_a_vocabulary_that_is_not_the_tasks(in_process):
    run, config, corpus, _ = in_process
    other = dataclasses.replace(config.model, vocab_size=256)
    with pytest.raises(UsageError, match="vocab_size is 256, expected the 208 of task 'running_sum'"):
        pretrain(run, "pretrain", config.pretrain, other, TASKS["running_sum"], corpus)


def run_rl(in_process, name: str, rewards=None, **changes):
    """An RL stage of four steps, its metrics and its directory."""
    run, config, corpus, problems = in_process
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASKS["running_sum"], corpus)
    rewards = rewards or load_experiment("r1_zero").make_rewards(config, TASKS["running_sum"])
    numbers = dataclasses.replace(config.rl, **changes)
    directory = rl(run, name, numbers, config.model, base, TASKS["running_sum"], problems, rewards)
    return read_metrics(directory / "metrics.jsonl"), directory


def test_a_dense_model_is_pretrained_and_learns_by_grpo(in_process, dense_model, one_device):
    """The same programs; there is no router bias to keep."""
    run, config, corpus, problems = in_process
    model = dataclasses.replace(dense_model, initializer_range=None)
    base = pretrain(run, "pretrain", config.pretrain, model, TASKS["running_sum"], corpus)
    rewards = {"variety": Reward(lambda sample: len(set(sample.text.split())) / 10, 1.0)}
    directory = rl(run, "rl", config.rl, model, base, TASKS["running_sum"], problems, rewards)
    rows = read_metrics(directory / "metrics.jsonl")
    assert len(rows) == 4
    assert all(row["grad_norm"] > 0 and "expert_load_max" not in row for row in rows)
    before, after = (load_policy(path, one_device, model) for path in (base, directory))
    assert before.router_bias == after.router_bias == {}
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert (np.asarray(a) != np.asarray(b)).any()


def test_groups_without_signal_give_way_to_others(in_process):
    """A reward that differs only within groups of problems with an even id: half of the groups teach nothing."""
    varied = Reward(lambda s: sum(s.tokens) % 97 / 97 if s.problem.id % 2 == 0 else 0.3, 1.0)
    rows, directory = run_rl(in_process, "replaced", {"varied": varied}, sampling_rounds=4, log_samples_every=2)
    for row in rows:
        assert 4 / row["prompts_run"] <= row["groups_with_signal"] < 1  # of all that were drawn
        assert row["outputs_trained"] == 16
        assert row["prompts_run"] in (8, 12, 16)
    samples = read_metrics(directory / "samples.jsonl")
    assert {s["step"] for s in samples} == {2, 4}
    assert all(s["problem"]["id"] % 2 == 0 for s in samples)
    rows, _ = run_rl(in_process, "kept", {"varied": varied})
    assert {row["prompts_run"] for row in rows} == {4}
    assert any(row["groups_with_signal"] < 1 for row in rows)


def test_where_no_group_has_signal_nothing_is_learnt(in_process):
    """The cap on rounds holds; what is dropped is in no sum and no KL: the policy does not move."""
    same = Reward(lambda sample: 0.1 + 0.2, 1.0)
    rows, directory = run_rl(in_process, "flat", {"same": same}, sampling_rounds=2, kl_coef=1.0, steps=2)
    assert [row["prompts_run"] for row in rows] == [8, 8]
    assert [row["outputs_trained"] for row in rows] == [0, 0]
    assert all("grad_norm" not in row for row in rows)  # there was no update
    run, *_ = in_process
    before, after = (load_policy(run.workdir / name, run.layout).params for name in ("pretrain", "flat"))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))


def test_the_sample_log_says_what_each_output_was_worth(in_process):
    rows, directory = run_rl(in_process, "logged", log_samples_every=4)
    samples = read_metrics(directory / "samples.jsonl")
    assert len(samples) == 16
    assert samples[0].keys() == {"step", "problem", "text", "tokens", "finished", "rewards", "advantage"}
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
    changes = dict(steps=6, save_every=3, staleness=1, minibatches=1, importance="token", optimizer=hot(in_process))
    rows, whole = run_rl(in_process, "whole", {"varied": VARIED}, **changes)
    assert [row["stale"] for row in rows] == [0, 1, 1, 0, 1, 1]
    for row in rows:  # only a stale rollout differs from what the trainer would draw
        assert (row["logprob_gap_max"] > 1e-3) == (row["stale"] == 1)
        assert (abs(row["importance_weight"] - 1) > 1e-5) == (row["stale"] == 1)
        assert row["ratio_deviation_max"] == 0  # the ratio's denominators are the trainer's own
    kept = contents(epath.Path(whole) / "checkpoints" / "6")
    shutil.rmtree(whole / "checkpoints" / "6")
    (whole / "complete.json").unlink()
    again, whole = run_rl(in_process, "whole", {"varied": VARIED}, **changes)
    repeated = contents(epath.Path(whole) / "checkpoints" / "6")
    for name in kept:
        np.testing.assert_array_equal(repeated[name], kept[name], err_msg=name)
    names = ("step", "loss", "reward", "grad_norm", "importance_weight", "stale")
    assert [{k: row[k] for k in names} for row in again] == [{k: row[k] for k in names} for row in rows]


VARIED = Reward(lambda sample: sum(sample.tokens) % 97 / 97, 1.0)


def hot(in_process) -> OptimizerConfig:
    """A learning rate at which one update shows in the log-probabilities."""
    return dataclasses.replace(in_process[1].rl.optimizer, learning_rate=1e-2, warmup_steps=0)


def test_inner_epochs_train_on_each_minibatch_again(in_process):
    once, _ = run_rl(in_process, "once", {"varied": VARIED}, steps=1, optimizer=hot(in_process))
    twice, directory = run_rl(
        in_process, "twice", {"varied": VARIED}, steps=1, inner_epochs=2, optimizer=hot(in_process)
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
        return [None if len(s.tokens) % 2 else 0.5 + sum(s.tokens) % 7 / 7 for s in samples]


def test_rewards_run_beside_rollouts_and_failures_pay_nothing(in_process, monkeypatch, capsys):
    """Each group is graded while the rollout waits for that, and has others to draw."""
    verifier, rounds = Verifier(), rl_stage.RolloutEngine.rounds

    def waiting(self, *arguments, done, **options):
        def done_and_graded(place, outputs):
            verifier.graded.clear()
            done(place, outputs)
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
    assert any(row["outputs_trained"] < 16 for row in rows)
    assert all(0 <= row["device_idle"] < 1 for row in rows)
