"""R1's four RL stages share their compiled programs; without a KL term nobody holds a reference policy."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.data.tasks import TASKS
from r1jax.parallel import programs, rollout_programs
from r1jax.parallel.memory import stage_memory
from r1jax.rewards.rules import Reward
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.run import Experiment, open_run
from r1jax.runs.state import split_policy
from r1jax.stages import rl as rl_stage
from r1jax.telemetry.progress import Progress
from tests.shared.checkpoints import contents
from tests.shared.configs import change

RL_STAGES = ("rl", "reasoning_rl", "rules_rl", "final_rl")
WITHOUT_KL = ("dapo", "dr_grpo", "gspo", "cispo")
TASK = TASKS["running_sum"]


def config_of(experiment: str, *files: str):
    module = load_experiment(experiment)
    return read_config(module.Config, [gin_path(file) for file in files or module.GIN_FILES], [])


def test_r1s_four_rl_stages_share_their_programs(one_device):
    """Each maker makes one program for all four, and all call it with the same shapes."""
    config = config_of("r1")
    configs = [getattr(config, name) for name in RL_STAGES]
    assert len({c.steps for c in configs}) > 1 and len({c.sampling.temperature for c in configs}) > 1
    trainers = [rl_stage.Trainer(one_device, config.model, c) for c in configs]
    engines = [
        RolloutEngine(
            one_device, config.model, TASK.tokenizer, c.engine, c.sampling, c.group_size, keeps_sampling_masks=True
        )
        for c in configs
    ]
    of_trainer = {
        name: [getattr(t, name) for t in trainers]
        for name in ("logprobs_program", "gradients_program", "update_program")
    }
    of_engine = {
        "slots": [rollout_programs.make_slots(e.spec, e.slots, e.width) for e in engines],
        "prefill": [rollout_programs.make_prefill(e.spec) for e in engines],
        "insert": [rollout_programs.make_insert(e.spec) for e in engines],
        "decode": [rollout_programs.make_decode(e.spec, e.width) for e in engines],
    }
    for name, made in (of_trainer | of_engine).items():
        assert len({id(program) for program in made}) == 1, name
    assert len({t.shape for t in trainers}) == 1
    assert len({(e.slots, e.width, e.sampling.max_prompt_tokens) for e in engines}) == 1


def test_the_makers_run_once_for_the_four_stages(one_device):
    """Counted by their caches."""
    config = config_of("r1")
    makers = (programs.make_add_logprobs, programs.make_rl_gradients, programs.make_rl_update)
    before = [maker.cache_info() for maker in makers]
    for name in RL_STAGES:
        # No other test has a model with so many positions.
        model = replace(config.model, max_position_embeddings=4099)
        rl_stage.Trainer(one_device, model, getattr(config, name))
    for maker, was in zip(makers, before, strict=True):
        now = maker.cache_info()
        assert (now.misses - was.misses, now.hits - was.hits) == (1, 3), maker


def preset(name: str):
    return config_of("r1_zero", "model/tiny.gin", f"algorithm/{name}.gin", "scale/cpu.gin")


@pytest.mark.parametrize("name", WITHOUT_KL)
def test_without_a_kl_term_there_is_no_reference(name, one_device, model, saved_policy, monkeypatch):
    """It is not copied, not part of what a checkpoint holds, and not counted."""
    config = preset(name).rl
    assert config.loss.kl_coef == 0
    snapshots = []
    monkeypatch.setattr(rl_stage, "snapshot", lambda tree: snapshots.append(tree) or tree)
    trainer = rl_stage.Trainer(one_device, model, config)
    state = trainer.start(saved_policy)
    for step in range(1, config.steps + 1):  # beyond reference_refresh_updates
        assert trainer.refresh_reference(state, step) is state
    assert config.steps * config.updates_per_rollout > config.reference_refresh_updates
    assert state.reference is None and not snapshots
    _, rest = split_policy(state)
    assert rest.reference is None

    held = stage_memory(one_device, model, config)
    with_kl = stage_memory(one_device, model, change(config, kl_coef=0.001))
    assert "reference" not in held
    assert with_kl == held | {"reference": held["weights"]}


def test_masters_begin_with_all_bits_of_a_float32_checkpoint(one_device, model, policy, saved_policy):
    """The policy and the reference are rounded."""
    stored = replace(model, param_dtype="bfloat16")
    state = rl_stage.Trainer(one_device, stored, preset("grpo").rl).start(saved_policy)
    masters, params, reference = state.train.opt_state.masters, state.train.params, state.reference.params
    for original, master, *others in zip(*map(jax.tree.leaves, (policy[0], masters, params, reference)), strict=True):
        np.testing.assert_array_equal(master, original)
        for x in others:
            np.testing.assert_array_equal(x, original.astype("bfloat16"))


@pytest.mark.slow
def test_a_checkpoint_without_a_kl_term_has_no_reference(
    tmp_path, experiment_config, one_device, model, saved_policy, toy_records
):
    """Also where the reference would be offloaded; the stage resumes from such a checkpoint."""
    config = change(
        preset("dr_grpo").rl, steps=2, prompts_per_step=4, group_size=4, minibatches_per_rollout=1, num_prompts=16,
        max_new_tokens=12, slots=16, save_every=1, reference_refresh_updates=1, offload=("reference",),
    )  # fmt: skip
    opened = open_run(str(tmp_path / "run"), Experiment("x"), experiment_config, one_device, Progress())
    run = replace(opened, model=model, task=TASK)
    problems = toy_records[TASK.prompts]
    rewards = {"varied": Reward(lambda sample: sum(sample.tokens) % 97 / 97, 1.0)}

    def train(name: str, config) -> epath.Path:
        return rl_stage.rl(run.stage(name), config, saved_policy, problems, rewards)

    directory = train("without", config)
    saved = contents(directory / "checkpoints" / "2")
    assert any("opt_state" in name for name in saved)
    assert not [name for name in saved if "'reference'" in name]
    (directory / "complete.json").unlink()
    (directory / "checkpoints" / "2").rmtree()
    again = contents(train("without", config) / "checkpoints" / "2")
    assert saved.keys() == again.keys()
    for name in saved:
        np.testing.assert_array_equal(again[name], saved[name], err_msg=name)

    with_kl = contents(train("with_kl", change(config, kl_coef=0.001, steps=1)) / "checkpoints" / "1")
    assert [name for name in with_kl if "'reference'" in name]
