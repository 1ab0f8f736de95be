"""Each scale is a run's, and where every parameter lies on its mesh is written down: a change shows as a diff.

`python -m tests.pods_and_clouds.test_scales` writes tests/pods_and_clouds/shardings/ again.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from r1jax.cli.gin_config import read_config
from r1jax.cli.main import gin_path, load_experiment
from r1jax.model.spec import is_spec, param_specs
from r1jax.parallel.layout import AXES, ROLLOUT_RULES, Layout, Rules
from r1jax.runs.run import check_stages
from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "shardings"
B16 = ("model/deepseek_v2_lite.gin", "scale/r1_zero_16b.gin")
B671 = ("model/deepseek_v3.gin", "scale/r1_zero_671b.gin")
FILES = {
    "cpu": ("model/tiny.gin", "scale/cpu.gin", "algorithm/grpo.gin"),
    "gpu_1": ("model/small.gin", "scale/gpu_1.gin", "algorithm/grpo.gin"),
    "v5e_16": (*B16, "scale/v5e_16.gin", "algorithm/r1.gin"),
    "v6e_64": (*B16, "scale/v6e_64.gin", "algorithm/r1.gin"),
    "v5p_256": (*B671, "scale/v5p_256.gin", "algorithm/r1.gin"),
    "v5p_1024": (*B671, "scale/v5p_1024.gin", "algorithm/r1.gin"),
    "v5p_1024_32k": (*B671, "scale/v5p_1024_32k.gin", "algorithm/r1.gin"),
    "v5p_2x1024": (*B671, "scale/v5p_2x1024.gin", "algorithm/r1.gin"),
}
CHIPS = {"cpu": 1, "gpu_1": 1, "v5e_16": 16, "v6e_64": 64, "v5p_256": 128}
CHIPS |= {"v5p_1024": 512, "v5p_1024_32k": 512, "v5p_2x1024": 1024}


def config_of(scale: str):
    return read_config(load_experiment("r1_zero").Config, [gin_path(file) for file in FILES[scale]], [])


def layout_of(mesh, rules: Rules) -> Layout:
    sizes = {axis: max(getattr(mesh, axis), 1) for axis in AXES}  # -1: of one device
    return Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)), rules)


def dump(scale: str) -> str:
    """A line for each tensor: its shape, and over how many devices of which axes each dimension is divided."""
    config, lines = config_of(scale), []
    layouts = {"training": layout_of(config.mesh, Rules())}
    if config.rl.rollout.mesh is not None:
        layouts["rollouts"] = layout_of(config.rl.rollout.mesh, ROLLOUT_RULES)
    for name, layout in layouts.items():
        lines.append(f"# {name}: {' x '.join(f'{axis} {size}' for axis, size in layout.mesh.shape.items())}")
        specs = jax.tree_util.tree_leaves_with_path(param_specs(config.model), is_leaf=is_spec)
        for path, spec in specs:
            key = ".".join(part.key for part in path)
            several = [entry or () for entry in layout.param(key, spec).spec]
            axes = [(entry,) if isinstance(entry, str) else entry for entry in several]
            divided = [[a for a in entry if layout.mesh.shape[a] > 1] for entry in axes]
            parts = [f"{n}/{'*'.join(axes)}" if axes else str(n) for n, axes in zip(spec.shape, divided, strict=True)]
            lines.append(f"{key} [{', '.join(parts)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("scale", FILES)
def test_where_every_parameter_lies(scale):
    assert dump(scale) == (GOLDEN / f"{scale}.txt").read_text()  # python -m tests.pods_and_clouds.test_scales rewrites


@pytest.mark.parametrize("scale", FILES)
def test_every_stage_can_be_laid_out(scale):
    config = config_of(scale)
    layout = layout_of(config.mesh, Rules())
    assert math.prod(layout.mesh.shape.values()) == CHIPS[scale]
    check_stages(layout, config, memory=False)
    if config.rl.rollout.mesh is not None:
        assert layout_of(config.rl.rollout.mesh, ROLLOUT_RULES).mesh.size == CHIPS[scale]


def test_builds_first_run_on_a_pod_can_be_laid_out(monkeypatch):
    """Of a checkpoint of DeepSeek-V2-Lite, with the gin files that BUILD.md names."""
    build = (ROOT / "BUILD.md").read_text()
    [command] = re.findall(r"run.sh -- r1_zero_math (.*?)--workdir", build, flags=re.DOTALL)
    files = re.findall(r"--gin (\S+)", command)
    assert files == re.findall(r"--gin (\S+)", (ROOT / "tpu_scripts/README.md").read_text().split("## 6. Run")[1])[:3]
    experiment = load_experiment("r1_zero_math")
    lite = config_of("v6e_64").model
    monkeypatch.setattr(experiment, "base_model", lambda base: replace(lite, dtype="bfloat16", remat=base.remat))
    config = read_config(experiment.Config, [gin_path(file) for file in files], [])
    assert config.model.remat == "full"
    layout = layout_of(config.mesh, Rules())
    assert layout.mesh.size == 16
    check_stages(layout, config, memory=False)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for scale in FILES:
        (GOLDEN / f"{scale}.txt").write_text(dump(scale))
