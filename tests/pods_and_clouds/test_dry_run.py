"""A dry run has the programs of a run, on the same shapes, for every experiment at every scale."""

import dataclasses
import io
import sys
from collections.abc import Iterator

import jax
import pytest
from rich.console import Console

from experiments._toy import zero_rules
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import (
    EngineConfig,
    EvaluateConfig,
    MeshConfig,
    OptimizerConfig,
    PreferencesConfig,
    PretrainConfig,
    RejectionConfig,
    RewardModelConfig,
    RLConfig,
    SamplingConfig,
    SFTConfig,
)
from r1jax.data.feeds import Records, distinct_problems, ensure_records, write_array_record
from r1jax.data.tasks import TASKS
from r1jax.dry_run.lowering import Lowering, lower_stages
from r1jax.dry_run.stage_programs import abstract, stage_programs
from r1jax.dry_run.tables import format_bytes
from r1jax.parallel import programs, reward_programs, rollout_programs, transfers
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import resident_memory, stage_memory
from r1jax.rewards.rules import Reward
from r1jax.runs.checks import check_stages, stages
from r1jax.runs.learned_reward import LearnedReward
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.preferences import preferences
from r1jax.stages.pretrain import pretrain
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.stages.sft import sft
from r1jax.telemetry.progress import Progress
from r1jax.types import Environments, Problem, Sample, Step
from tests.conftest import ROOT
from tests.shared.command_line import command

ROLLOUTS = {"make_slots", "prefill", "insert", "decode"}
RL = ROLLOUTS | {"start_training", "snapshot", "add_logprobs", "rl_gradients", "add_gradients"}
PROGRAMS = {
    PretrainConfig: {"init_weights", "start_training", "pretrain_step", "checksums"},
    SFTConfig: {"start_training", "sft_step", "checksums"},
    RewardModelConfig: {
        "start_reward_model", "reward_model_step", "reward_model_metrics", "checksums", "reward_scores",
    },
    RLConfig: RL | {"rl_update", "checksums"},
    EvaluateConfig: ROLLOUTS,
    RejectionConfig: ROLLOUTS,
    PreferencesConfig: ROLLOUTS,
}  # fmt: skip
MODELS = {"16b": "model/deepseek_v2_lite.gin", "671b": "model/deepseek_v3.gin"}
DEVICES = {"16b": 1, "671b": 8}  # slow tests swap them


def config_of(experiment: str, scale: str):
    module = load_experiment(experiment)
    files = module.GIN_FILES
    if scale != "own":
        files = (MODELS[scale], "algorithm/r1.gin", f"scale/{experiment}_{scale}.gin")
    return read_config(module.Config, [gin_path(file) for file in files], [])


def lower(config, devices: int, environments: Environments | None = None) -> list[Lowering]:
    layout = make_layout(config.mesh, jax.devices()[:devices])
    check_stages(layout, config, memory=False)
    return lower_stages(config, layout, Progress(Console(file=io.StringIO())), environments)


CASES = [("r1_zero_one_language", "own", 8)]
SLOW = [
    ("r1", "671b", 8),
    ("r1", "own", 8),
    ("r1", "16b", 1),
    ("r1_zero", "16b", 1),
    ("r1_zero", "671b", 8),
    ("r1_zero", "own", 8),
]
SLOW += [("r1", scale, 9 - devices) for scale, devices in DEVICES.items()]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("experiment", "scale", "devices"), CASES)
def test_every_experiment_lowers_at_every_scale(experiment, scale, devices):
    """All stages, all programs, and not an array on a device."""
    config = config_of(experiment, scale)
    before = {id(x) for x in jax.live_arrays()}
    lowered = lower(config, devices)
    assert [x.shape for x in jax.live_arrays() if id(x) not in before and x.size > 8] == []
    for name, stage in stages(config).items():
        programs = PROGRAMS[type(stage)]
        if hasattr(stage, "engine") and config.model.param_dtype != config.model.dtype:
            programs = programs | {"copy_weights"}  # in the dtype of the activations
        assert {one.program for one in lowered if one.stage == name} == programs, name
    own = [one for one in lowered if one.shared_with is None]
    assert all(one.seconds > 0 for one in own)
    assert len(own) < len(lowered)


def test_environments_add_the_program_that_appends_their_answers(one_device):
    """To each stage whose samples they answer. It holds what a round of decoding does, and runs a chunk of each row."""
    config, environments = config_of("r1_tools", "own"), load_experiment("r1_tools").TASK.environments
    alone, answered = ({(p.stage, p.program) for p in lower(config, 1, given)} for given in (None, environments))
    assert answered - alone == {("rl", "append"), ("evaluate", "append")} and alone < answered
    found = {program.name: program for program in stage_programs(one_device, config.model, config.rl, environments)}
    append, decode = found["append"], found["decode"]
    assert append.work.tokens == config.rl.engine.append_rows * config.rl.engine.append_chunk
    assert append.argument_bytes > 0
    assert abstract(append.result[0]) == abstract(decode.result[0])
    held = stage_memory(one_device, config.model, config.rl)
    assert resident_memory(held, "append", accumulates=True) == resident_memory(held, "decode", accumulates=True)
    preferences = PreferencesConfig(config.rl.sampling, config.rl.engine, num_prompts=8, samples_per_prompt=2)
    programs = stage_programs(one_device, config.model, preferences, environments)
    assert "append" not in {program.name for program in programs}


def test_each_experiment_has_its_scales():
    found = {path.stem for path in ROOT.glob("gin_configs/scale/r1_*b.gin")}
    assert found == {f"{experiment}_{scale}" for experiment in ("r1", "r1_zero") for scale in MODELS}


@pytest.mark.parametrize("scale", MODELS)
def test_the_papers_numbers(scale):
    """R1, supplement: 8,192 outputs of a rollout, 512 of an update; 10,400 and 1,700 updates; 600k demonstrations."""
    config = config_of("r1", scale)
    for stage in (config.rl, config.reasoning_rl, config.rules_rl, config.final_rl):
        assert stage.prompts_per_step * stage.group_size == 8192
        assert stage.prompts_per_step * stage.group_size / stage.minibatches_per_rollout == 512
        assert (stage.loss.clip_high, stage.loss.kl_coef, stage.sampling.max_new_tokens) == (10, 0.001, 32768)
        assert stage.optimizer.learning_rate == 3e-6
    assert config.rl.steps * config.rl.updates_per_rollout == 10400
    assert (config.rules_rl.steps + config.final_rl.steps) * 16 == pytest.approx(1700, abs=8)
    assert config.final_rl.steps * 16 == 400
    assert [s.sampling.temperature for s in (config.rl, config.reasoning_rl, config.final_rl)] == [1.0, 1.0, 0.7]
    assert config.rejection.num_prompts * config.rejection.keep == 600_000
    assert (config.model.param_dtype, config.model.dtype) == ("float32", "bfloat16")


# Against a run.

PROGRAM = type(jax.jit(lambda: 0))


class Watched:
    """A jitted program that records the arguments of its calls and traces."""

    def __init__(self, name: str, jitted, seen: set):
        self.name, self.jitted, self.seen = name, jitted, seen

    def __call__(self, *arguments):
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):  # memory's count
            self.seen.add((self.name, signature(arguments)))
        return self.jitted(*arguments)

    def trace(self, *arguments):
        self.seen.add((self.name, signature(arguments)))
        return self.jitted.trace(*arguments)


def signature(arguments) -> str:
    """Structure, and each array's shape, dtype and part on a device; None where the host passed it as it is."""

    def one(x):
        is_laid_out = isinstance(x, jax.ShapeDtypeStruct) or (isinstance(x, jax.Array) and x.committed)
        sharding = x.sharding if is_laid_out else None
        return x.shape, str(x.dtype), None if sharding is None else sharding.shard_shape(x.shape)

    leaves, tree = jax.tree.flatten(arguments)
    return f"{tree} {[one(x) for x in leaves]}"


@pytest.fixture
def seen(monkeypatch) -> Iterator[set[tuple[str, str]]]:
    """(maker, signature) of every call of every program in `parallel/`, so that no program is forgotten."""
    found: set[tuple[str, str]] = set()

    def watching(name, made):
        if isinstance(made, PROGRAM):
            return Watched(name, made, found)
        if not hasattr(made, "cache_clear"):
            return made

        def maker(*arguments, **options):
            program = made(*arguments, **options)
            return Watched(name, program, found) if isinstance(program, PROGRAM) else program

        return maker

    ours = [module for name, module in sys.modules.items() if name.startswith("r1jax.")]
    for source in (programs, reward_programs, rollout_programs, transfers):
        for name, made in list(vars(source).items()):
            watched = watching(name, made)
            for module in ours if watched is not made else ():
                for alias in [alias for alias, value in vars(module).items() if value is made]:
                    monkeypatch.setattr(module, alias, watched)
    return found


TASK = TASKS["running_sum"]


class SaysThree:
    """Answers every turn with three words."""

    def reset(self, problem: Problem, seed: int) -> None:
        pass

    def step(self, turn: str) -> Step:
        return Step([20, 21, 22])


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_a_dry_run_has_the_programs_of_a_run_and_no_others(seen, experiment_config, tmp_path, everything):
    """Name, structure, shapes, dtypes and shardings of all arguments are the same.

    `everything`: on four devices, with all that rollouts can do, and an environment.
    """
    task = dataclasses.replace(TASK, environments=Environments(SaysThree, TASK.tokenizer.encode_plain))
    task = task if everything else TASK
    mesh = MeshConfig(data=1, fsdp=2, tensor=2) if everything else MeshConfig(data=1)
    layout = make_layout(mesh, jax.devices()[: mesh.fsdp * mesh.tensor])
    ends = tuple(range(10, 100, 2))  # so that some responses, and turns, end
    sampling = other_sampling = SamplingConfig(max_prompt_tokens=24, max_new_tokens=12, stop_ids=ends)
    plain = engine = other = EngineConfig(slots=24, prefill_rows=4, weight_dtype="int8")
    if everything:
        engine = dataclasses.replace(plain, routing_replay=True, speculative=True)
        plain, other = EngineConfig(slots=16, mesh=MeshConfig()), EngineConfig(slots=8, cache_dtype="int8")
        other_sampling = dataclasses.replace(sampling, top_p=0.9)
    optimizer = OptimizerConfig(1e-3)
    configs = {
        "pretrain": PretrainConfig(optimizer, steps=1, batch_size=4, sequence_length=80, documents=200),
        "rl": dataclasses.replace(
            experiment_config.rl, sampling=sampling, engine=engine, steps=2, prompts_per_step=4, group_size=4,
            minibatches_per_rollout=2, num_prompts=16, row_tokens=70, microbatch_rows=2, reference_refresh_updates=3,
        ),
        "evaluate": EvaluateConfig(sampling, plain, num_prompts=8, samples_per_prompt=8),
        "sft": SFTConfig(optimizer, epochs=1, batch_size=4, sequence_length=80),
        "preferences": PreferencesConfig(other_sampling, other, num_prompts=8, samples_per_prompt=2),
        "reward_model": RewardModelConfig(optimizer, "pairwise", max_tokens=64, batch_size=6, held_out=0.5),
    }  # fmt: skip
    config = dataclasses.make_dataclass("Config", ["run", "model", *configs])(
        experiment_config.run, experiment_config.model, **configs
    )
    expected = {name: set() for name in configs}
    for name, stage in stages(config).items():
        for program in stage_programs(layout, config.model, stage, task.environments):
            assert program.traced
        expected[name] = set(seen)
        seen.clear()

    run = open_run(str(tmp_path / "run"), Experiment("small"), config, layout, Progress()).with_task(task)
    corpus, sums = ensure_records(
        [Records(TASK.corpus, "train", 200), Records(TASK.prompts, "train", 16)], 0, run.workdir / "data"
    )
    demonstrations, preferred = (run.workdir / "data" / f"{name}.array_record" for name in ("shown", "preferred"))
    questions = [p.question for p in distinct_problems(sums, 16)]
    write_array_record(demonstrations, [{"question": q, "response": "3"} for q in questions])
    write_array_record(preferred, [{"question": q, "chosen": "3", "rejected": "4"} for q in questions])

    def check(stage: str, output):
        """The stage that has just run has called exactly the programs that its dry run has traced."""
        dry, real = (sorted(name for name, _ in found) for found in (expected[stage] - seen, seen - expected[stage]))
        assert seen == expected[stage], f"{stage}: only a dry run has {dry}, only a run {real}"
        seen.clear()
        return output

    base = check("pretrain", pretrain(run.stage("pretrain"), config.pretrain, corpus))
    rewards = zero_rules(experiment_config.rewards)
    varied = {
        "varied": Reward(lambda sample: sum(sample.response_tokens) % 97 / 97, 1.0)
    }  # a base of one step is never right
    check("rl", rl(run.stage("rl"), config.rl, base, sums, varied))
    check("evaluate", evaluate(run.stage("evaluate"), config.evaluate, base, rewards))
    check("sft", sft(run.stage("sft"), config.sft, base, {"shown": demonstrations}))
    marks = iter(range(10_000))
    rated = preferences(
        run.stage("preferences"),
        config.preferences,
        "pointwise",
        {"base": base},
        sums,
        lambda problem, text: next(marks),
    )
    check("preferences", rated)
    directory = reward_model(run.stage("reward_model"), config.reward_model, base, {"preferred": preferred})
    problem = Problem(0, questions[0], "3", "en")
    sample = Sample(problem, text="3", tokens=[3], loss_mask=[1], finish_reason="stop")
    LearnedReward(layout, directory, TASK).grade([sample])
    check("reward_model", directory)


# What it prints.


def test_a_dry_run_names_each_stage_and_program(capsys):
    status, out, _ = command(capsys, "run", "r1", "--dry_run")
    assert status == 0
    config = config_of("r1", "own")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    for name, stage in stages(config).items():
        first = next(i for i, row in enumerate(rows) if len(row) == 4 and row[0] == name)
        until = next((i for i in range(first + 1, len(rows)) if rows[i][0]), len(rows))
        assert {row[1] for row in rows[first:until]} == PROGRAMS[type(stage)], name
    assert "as in rl" in out
    assert "lowering 14/14" in out
    assert "more are the same as these" in out


def test_a_dry_run_counts_what_each_stage_holds(one_device):
    """float32 weights and moments; RL adds up two trees of float32 gradients, and has a reference."""
    config = config_of("r1", "16b")
    weights = 4 * 15_706_484_224
    for stage in (config.cold_start, config.sft):
        held = stage_memory(one_device, config.model, stage)
        assert held == pytest.approx({"weights": weights, "optimizer": 2 * weights, "gradients": weights}, rel=1e-3)
    held = stage_memory(one_device, config.model, config.final_rl)
    assert (held["gradients"], held["reference"]) == (pytest.approx(2 * weights, rel=1e-3), weights)
    head = 4 * 102_400 * 2048  # a reward model has none
    assert stage_memory(one_device, config.model, config.safe)["weights"] == weights - head + 4 * 2048


@pytest.mark.parametrize(
    ("binding", "named"),
    [
        ("sft/SFTConfig.batch_size=6", "sft: SFTConfig.batch_size"),
        ("helpful/RewardModelConfig.max_tokens=9000", "helpful: RewardModelConfig.max_tokens"),
        ("cold_start/SFTConfig.sequence_length=9000", "cold_start: SFTConfig.sequence_length"),
        ("ModelConfig.attention='splash'", "pretrain: 'pretrain_step'"),
    ],
)
def test_a_stage_that_cannot_be_lowered_is_named(capsys, binding, named):
    status, _, err = command(capsys, "run", "r1", "--dry_run", "--set", binding)
    assert (status, named in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_bytes_have_units():
    assert [format_bytes(x) for x in (8, 98_304, 3 * 2**20, 1.5 * 2**40)] == [
        "8 B",
        "96.0 KiB",
        "3.0 MiB",
        "1,536.0 GiB",
    ]
