"""The floors of BUILD.md, read off the imports; sizes of functions, and of the RL loop."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "errors": 0, "config": 0, "types": 0, "paths": 0,
    "model": 1, "objectives": 1, "sampling": 1,
    "parallel": 2,
    "rollout": 3, "data": 3, "rewards": 3, "checkpoint": 3, "telemetry": 3,
    "runs": 4, "dry_run": 4, "report": 4, "environments": 4,
    "stages": 5,
    "cli": 6, "library": 6, "__main__": 6, "__init__": 6, "experiments": 6,
}  # fmt: skip
FILES = sorted([*ROOT.glob("r1jax/**/*.py"), *ROOT.glob("experiments/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def test_stages_compute_no_arrays():
    stages = [path for path in FILES if package(path) == "stages"]
    assert stages
    for path in stages:
        assert not uses_jit(path), path
        assert not {name for name in imports(path) if name in ("jax.numpy", "jax.lax")}, path
        attributes = {
            ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Attribute
        }
        assert not attributes & {"jax.numpy", "jax.lax"}, path


def functions() -> Iterator[tuple[str, Function]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parameters(node: Function) -> int:
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg is not None]
    return len([name for name in names if name not in ("self", "cls")])


def test_no_function_is_long():
    """The declarations of a command's arguments aside."""
    long = [f"{name}: {lines(f)} lines" for name, f in functions() if f.name != "add_arguments" and lines(f) > 60]
    assert not long


def test_no_function_has_many_parameters():
    many = [f"{name}: {parameters(f)} parameters" for name, f in functions() if parameters(f) > 7]
    assert not many


def test_the_rl_loop_fits_on_a_screen():
    tree = ast.parse((ROOT / "r1jax" / "stages" / "rl.py").read_text())
    [loop] = [n for n in ast.walk(tree) if isinstance(n, ast.For) and ast.unparse(n.target) == "step"]
    assert lines(loop) <= 40


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_test_modules_do_not_import_each_other(path):
    """What several tests need is in tests/shared/, and fixtures are in conftest.py."""
    assert not {name for name in imports(path) if any(part.startswith("test_") for part in name.split(".")[:-1])}
    assert not {name for name in imports(path) if name.split(".")[-1].startswith("test_") and name.startswith("tests.")}


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
