"""The build step that puts `experiments/` and `gin_configs/` into the wheel; pyproject.toml has everything else.

They stay beside the package in a checkout, where people read and copy them. In a wheel they are in `r1jax/_project/`,
so that no package `experiments` is installed; r1jax/paths.py finds them in either place.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel


class BuildWithProject(build_py):
    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "r1jax"
        shutil.rmtree(package, ignore_errors=True)  # an earlier build may have left files that are gone since
        super().run()
        for directory in ("experiments", "gin_configs"):
            built = package / "_project" / directory
            shutil.copytree(directory, built, ignore=shutil.ignore_patterns("__pycache__"))


class EditableWithExperiments(editable_wheel):
    """A checkout's experiments can be imported from any directory."""

    def run(self) -> None:
        self.distribution.packages.append("experiments")
        super().run()


setup(cmdclass={"build_py": BuildWithProject, "editable_wheel": EditableWithExperiments})
