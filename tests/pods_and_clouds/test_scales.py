"""Every scale can be laid out, and the sharding of every parameter is recorded, so that a change shows as a diff.

`python -m tests.pods_and_clouds.test_scales` rewrites the records in tests/pods_and_clouds/shardings/.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import MeshConfig
from r1jax.errors import UsageError
from r1jax.model.spec import param_specs
from r1jax.parallel.layout import AXES, ROLLOUT_RULES, Layout, Rules
from r1jax.runs.checks import check_stages
from tests.conftest import ROOT
from tests.shared.scales import DEVICES, FILES, scale_config

GOLDEN = Path(__file__).parent / "shardings"


def layout_of(mesh, rules: Rules) -> Layout:
    sizes = {axis: max(getattr(mesh, axis), 1) for axis in AXES}  # -1: one device
    return Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)), rules)


def dump(scale: str) -> str:
    """A line for each tensor: its shape, and the mesh axes that shard each dimension."""
    config, lines = scale_config(scale), []
    layouts = {"training": layout_of(config.mesh, Rules())}
    if config.rl.engine.mesh is not None:
        layouts["rollouts"] = layout_of(config.rl.engine.mesh, ROLLOUT_RULES)
    for name, layout in layouts.items():
        lines.append(f"# {name}: {' x '.join(f'{axis} {size}' for axis, size in layout.mesh.shape.items())}")
        specs = jax.tree_util.tree_leaves_with_path(param_specs(config.model))
        for path, spec in specs:
            key = ".".join(part.key for part in path)
            several = [entry or () for entry in layout.param(key, spec).spec]
            axes = [(entry,) if isinstance(entry, str) else entry for entry in several]
            divided = [[a for a in entry if layout.mesh.shape[a] > 1] for entry in axes]
            parts = [f"{n}/{'*'.join(axes)}" if axes else str(n) for n, axes in zip(spec.shape, divided, strict=True)]
            lines.append(f"{key} [{', '.join(parts)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("scale", FILES)
def test_the_sharding_of_every_parameter(scale):
    assert dump(scale) == (GOLDEN / f"{scale}.txt").read_text()  # python -m tests.pods_and_clouds.test_scales rewrites


@pytest.mark.parametrize("scale", FILES)
def test_every_stage_can_be_laid_out(scale):
    config = scale_config(scale)
    layout = layout_of(config.mesh, Rules())
    assert math.prod(layout.mesh.shape.values()) == DEVICES[scale]
    check_stages(layout, config, memory=False)
    if config.rl.engine.mesh is not None:
        assert layout_of(config.rl.engine.mesh, ROLLOUT_RULES).mesh.size == DEVICES[scale]


def test_shared_prompts_are_refused_on_rows_that_devices_share_where_the_kernel_has_no_mask_for_them():
    config = scale_config("cpu", "RLConfig.share_prompts=True", "ModelConfig.attention='full'")
    splash = replace(config, architecture=replace(config.model, attention="splash"))
    whole, divided = (layout_of(MeshConfig(context=n), Rules()) for n in (1, 2))
    for layout, one in ((whole, config), (whole, splash), (divided, config)):
        check_stages(layout, one, memory=False)
    with pytest.raises(UsageError, match=r"RLConfig\.share_prompts"):
        check_stages(divided, splash, memory=False)


def test_builds_first_run_on_a_pod_can_be_laid_out():
    """The run of DeepSeek-V2-Lite, with the gin files that BUILD.md names."""
    build = (ROOT / "BUILD.md").read_text()
    [command] = re.findall(r"run.sh -- r1_zero_math (.*?)--workdir", build, flags=re.DOTALL)
    files = re.findall(r"--gin (\S+)", command)
    assert files == re.findall(r"--gin (\S+)", (ROOT / "tpu_scripts/README.md").read_text().split("## 6. Run")[1])[:3]
    files = ["model/deepseek_v2_lite.gin", *files]  # in the place of a checkpoint
    config = read_config(load_experiment("r1_zero_math").Config, [gin_path(file) for file in files], [])
    assert config.model.remat == "full"
    layout = layout_of(config.mesh, Rules())
    assert layout.mesh.size == 16
    check_stages(layout, config, memory=False)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for scale in FILES:
        (GOLDEN / f"{scale}.txt").write_text(dump(scale))
