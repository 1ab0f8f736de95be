"""The floors of BUILD.md, read off the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "errors": 0, "config": 0, "types": 0, "paths": 0,
    "model": 1, "objectives": 1, "sampling": 1,
    "parallel": 2,
    "rollout": 3, "data": 3, "rewards": 3, "checkpoint": 3, "telemetry": 3,
    "runs": 4, "dry_run": 4, "report": 4,
    "stages": 5,
    "cli": 6, "__main__": 6, "__init__": 6, "experiments": 6,
}  # fmt: skip
FILES = sorted([*ROOT.glob("r1jax/**/*.py"), *ROOT.glob("experiments/*.py")])


def package(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "experiments" if relative.parts[0] == "experiments" else Path(relative.parts[1]).stem


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def project_packages(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imports(path) if name.startswith("r1jax.")}
    found |= {"experiments" for name in imports(path) if name.split(".")[0] == "experiments"}
    return found & FLOORS.keys()


def uses_jit(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap", "pjit") for node in ast.walk(tree))


def test_every_file_stands_on_a_floor():
    assert len(FILES) > 30
    assert {package(path) for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = package(path)
    for there in project_packages(path) - {here}:
        assert FLOORS[there] <= FLOORS[here], f"{path} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"
        if FLOORS[here] == FLOORS[there] == 3:
            pytest.fail(f"{path}: host services don't import each other, but it imports {there}")


def test_no_circles():
    edges = {path: set() for path in FILES}
    by_module = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    for path in FILES:
        edges[path] = {by_module[name] for name in imports(path) if name in by_module}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, f"circle: {[str(p) for p in (*above, path)]}"
        if path not in done:
            for below in edges[path]:
                visit(below, (*above, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def test_only_parallel_jits():
    assert {package(path) for path in FILES if uses_jit(path)} == {"parallel"}


def test_floor_0_is_light():
    for path in FILES:
        if FLOORS[package(path)] == 0 and package(path) != "__init__":
            assert not {name.split(".")[0] for name in imports(path)} & {"jax", "numpy", "optax", "gin"}


def test_seqio_in_one_file_and_gin_in_one():
    assert [p.name for p in FILES if "seqio" in imports(p) or "tensorflow" in imports(p)] == ["seqio_tasks.py"]
    assert [p.name for p in FILES if "gin" in imports(p)] == ["gin_config.py"]


def test_torch_is_for_tests_only():
    for path in FILES:
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}


def test_rewards_know_no_jax():
    for path in FILES:
        if package(path) == "rewards":
            assert not {name.split(".")[0] for name in imports(path)} & {"jax", "numpy"}


def test_core_does_no_io():
    forbidden = {"os", "sys", "logging", "pathlib", "etils", "time", "random", "grain", "orbax"}
    for path in FILES:
        if FLOORS[package(path)] == 1:
            assert not {name.split(".")[0] for name in imports(path)} & forbidden


def test_no_rooms_without_a_name():
    assert not [p for p in FILES if p.stem in ("utils", "util", "common", "helpers", "manager", "misc")]
