"""The command line: `python -m r1jax …`.

Exit status 0 on success, 2 on a usage or config error, 1 on failure, 75 where the same command goes on.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from r1jax.errors import Preempted, RunError, UsageError

ROOT = Path(__file__).resolve().parents[2]
NOT_YET = {
    "bench": "throughput on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    # gs:// goes through gcsfs, without TensorFlow's memory and threads; other hosts write what this one lists again.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
    status, error = 0, None
    try:
        args.command(args)
    except (Exception, KeyboardInterrupt) as raised:
        if args.debug and not args.hosts and not isinstance(raised, KeyboardInterrupt | Preempted):
            raise
        if args.debug:
            traceback.print_exception(raised)
        status, line = explain(raised)
        error = raised
        print(f"r1jax: {line}", file=sys.stderr)
    if args.hosts:
        args.hosts.end(status, error)
    return status


def explain(error: BaseException) -> tuple[int, str]:
    """The exit status, and the line that says what happened."""
    if isinstance(error, UsageError | RunError):
        return (2 if isinstance(error, UsageError) else 1), str(error)
    if isinstance(error, Preempted):
        return os.EX_TEMPFAIL, f"{error}: the same command goes on"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; a run goes on from its last checkpoint when it is started again"
    return 1, f"{type(error).__name__}: {str(error)[:500]} (--debug shows where)"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1jax", description="The DeepSeek-R1 recipe in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=command, hosts=None)
        return sub

    run = add("run", run_experiment, "run an experiment, or go on with it")
    run.add_argument("experiment", metavar="EXPERIMENT", help="a name (see `experiments`) or a path to a file")
    run.add_argument("--gin", action="append", metavar="FILE", help="gin files instead of the experiment's own")
    run.add_argument("--from", dest="rerun_from", metavar="STAGE", help="make a stage again, and what hangs on it")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a gin binding, after the files")
    run.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where JAX does not know the cluster")
    run.add_argument("--processes", type=positive, metavar="N", help="that make this run together; 1: this one alone")
    run.add_argument("--process_id", type=not_negative_int, metavar="I", help="of this one: 0 to N - 1")
    run.add_argument(
        "--heartbeat_timeout",
        type=positive,
        default=30,
        metavar="S",
        help="without a sign of a process (default 30): all end",
    )
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", metavar="DIR", help="where the run lives")
    where.add_argument(
        "--dry_run", action="store_true", help="count parameters and memory, lower programs, make nothing"
    )

    run.add_argument("--topology", metavar="T", help="of a dry run: compile for these TPUs, such as v5p:4x4x8")
    run.add_argument("--slices", type=positive, metavar="N", help="of a topology: so many of them (default 1)")
    run.add_argument("--programs", metavar="NAME[,NAME]", help="of a topology: compile these programs alone")

    add("experiments", list_experiments, "list the experiments")

    evaluate = add("eval", evaluate_checkpoint, "pass@k and cons@k of a checkpoint, by the papers' protocol")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a stage's directory, or one step in it")
    evaluate.add_argument(
        "--task", required=True, metavar="TASK", help="running_sum, countdown, or with --file one of gin_configs/data/"
    )
    evaluate.add_argument("--file", metavar="FILE", help="problems, a JSON object a line, with the task's columns")
    evaluate.add_argument("--problems", type=positive, default=256, metavar="N", help="at most (default 256)")
    evaluate.add_argument("--samples", type=positive, metavar="N", help="for each problem (default 8, or K)")
    evaluate.add_argument("--k", type=positive, metavar="K", help="of pass@k, beside 1, 2, 4, … (default 8)")
    evaluate.add_argument("--temperature", type=not_negative, default=0.6, metavar="T", help="default 0.6")
    evaluate.add_argument("--top_p", type=positive_share, default=0.95, metavar="P", help="default 0.95; 1 is off")
    evaluate.add_argument(
        "--max_tokens",
        type=positive,
        metavar="N",
        help="longest output (default 32768, or the model's room)",
    )
    evaluate.add_argument("--slots", type=positive, metavar="N", help="outputs in the making at once; cost memory")
    evaluate.add_argument("--out", metavar="DIR", help="where evaluation.json, .md and .svg and samples.jsonl go")
    evaluate.add_argument("--seed", type=seed, default=0, metavar="N")

    generate = add("generate", generate_text, "one answer from a checkpoint")
    generate.add_argument("checkpoint", metavar="CHECKPOINT", help="a stage's directory, or one step in it")
    prompt = generate.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="a question; it is put in the task's or tokenizer's template")
    prompt.add_argument("--prompt_ids", metavar="5,17,3", help="token ids, taken as they are")
    generate.add_argument("--max_tokens", type=positive, default=44, metavar="N", help="longest answer (default 44)")
    generate.add_argument(
        "--temperature", type=not_negative, default=0.0, metavar="T", help="0, the default, is greedy"
    )
    generate.add_argument("--top_k", type=not_negative_int, default=0, metavar="K", help="0, the default, is off")
    generate.add_argument("--top_p", type=positive_share, default=1.0, metavar="P", help="1, the default, is off")
    generate.add_argument("--min_p", type=share, default=0.0, metavar="P", help="0, the default, is off")
    generate.add_argument(
        "--stop", action="append", type=some_text, default=[], metavar="TEXT", help="a text that ends the answer"
    )
    generate.add_argument("--seed", type=seed, default=0, metavar="N")
    generate.add_argument("--ignore_eos", action="store_true", help="go on after the end token")
    generate.add_argument("--speculative", action="store_true", help="draft by multi-token prediction; same tokens")
    generate.add_argument("--json", action="store_true", help="one line: text, ids, logprobs, finish_reason")

    talk = add("chat", chat_with, "a conversation with a checkpoint, streamed, the thinking dimmed")
    talk.add_argument("checkpoint", metavar="CHECKPOINT", help="a stage's directory, or one step in it")
    talk.add_argument("--max_tokens", type=positive, default=512, metavar="N", help="longest answer (default 512)")
    talk.add_argument("--context", type=positive, default=4096, metavar="N", help="of all turns (default 4096)")
    talk.add_argument("--temperature", type=not_negative, default=0.6, metavar="T", help="default 0.6; 0 is greedy")
    talk.add_argument("--top_p", type=positive_share, default=0.95, metavar="P", help="default 0.95; 1 is off")
    talk.add_argument("--speculative", action="store_true", help="draft by multi-token prediction; same tokens")
    talk.add_argument("--seed", type=seed, default=0, metavar="N")

    report = add("report", write_report, "one self-contained HTML page of a run")
    report.add_argument("workdir", metavar="WORKDIR")

    import_hf = add("import-hf", import_checkpoint, "a published checkpoint into one of ours")
    import_hf.add_argument("source", metavar="SOURCE", help="config.json, safetensors (bf16, float32, FP8), tokenizer")
    import_hf.add_argument("dest", metavar="DEST", help="the checkpoint; an interrupted import goes on when repeated")
    import_hf.add_argument("--no-mtp", action="store_true", help="leave the multi-token-prediction module out")

    export_hf = add("export-hf", export_checkpoint, "a checkpoint in the published form, for transformers and others")
    export_hf.add_argument("checkpoint", metavar="CHECKPOINT", help="a stage's directory, or one step in it")
    export_hf.add_argument("dest", metavar="DEST")

    for name, what in NOT_YET.items():
        later = add(name, not_yet, f"{what}: not there yet")
        later.add_argument("arguments", nargs=argparse.REMAINDER)
        later.set_defaults(name=name)
    return parser


def run_experiment(args: argparse.Namespace) -> None:
    from r1jax.cli.gin_config import read_config
    from r1jax.parallel import hosts
    from r1jax.parallel.layout import make_layout
    from r1jax.report.report import write_report
    from r1jax.runs.run import open_run
    from r1jax.telemetry.progress import Progress

    if args.topology and not args.dry_run:
        raise UsageError(
            f"--topology {args.topology} is a dry run's: nothing runs on devices that are not there. Add --dry_run"
        )
    if (args.slices or args.programs) and not args.topology:
        raise UsageError("--slices and --programs are a topology's: add --topology, such as --topology v5p:4x4x8")
    start_jax()
    if not args.dry_run:
        args.hosts = hosts.start_hosts(
            args.coordinator, args.processes, args.process_id, heartbeat_timeout=float(args.heartbeat_timeout)
        )
    module = load_experiment(args.experiment)
    config = read_config(module.Config, [gin_path(file) for file in args.gin or module.GIN_FILES], args.set)
    if args.topology:
        from r1jax.dry_run.compilation import dry_run_topology

        dry_run_topology(config, args.topology, args.slices or 1, args.programs.split(",") if args.programs else [])
        return
    find_devices()
    if args.dry_run:
        from r1jax.dry_run.lowering import dry_run

        dry_run(config)
        return
    layout = make_layout(config.mesh)
    progress = Progress(quiet=not hosts.is_main_process())
    with hosts.catch_sigterm():
        run = open_run(
            args.workdir,
            Path(args.experiment).stem,
            config,
            layout,
            progress,
            summary=first_line(module),
            note=vars(module).get("REPORT_NOTE", ""),
            rerun_from=args.rerun_from,
        )
        module.run(run, config)
        if hosts.is_main_process():
            progress.say(f"report: {write_report(run.workdir)}")


def list_experiments(args: argparse.Namespace) -> None:
    for path in sorted((ROOT / "experiments").glob("[!_]*.py")):
        print(f"{path.stem:24} {first_line(load_experiment(path.stem))}")


def evaluate_checkpoint(args: argparse.Namespace) -> None:
    from r1jax.cli.evaluate import evaluate

    start_jax()
    evaluate(args, checkpoint_path(args.checkpoint), ROOT / "gin_configs" / "data", local_device())


def generate_text(args: argparse.Namespace) -> None:
    from rich.console import Console

    from r1jax.cli.answer import answer
    from r1jax.config import MeshConfig, RolloutConfig
    from r1jax.parallel.layout import make_layout
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.runs.policy import load_policy

    start_jax()
    layout = make_layout(MeshConfig(data=1), devices=local_device())
    policy = load_policy(checkpoint_path(args.checkpoint), layout)
    ids = policy.ask(args.prompt) if args.prompt is not None else parse_ids(args.prompt_ids, policy.model.vocab_size)
    if not ids:
        raise UsageError("the prompt is empty: give some text with --prompt")
    config = RolloutConfig(
        slots=1,
        steps_per_round=8,
        prefill_rows=1,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        stop=tuple(args.stop),
        speculative=args.speculative,
    )
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, 1, len(ids), args.max_tokens)
    console = None if args.json else Console()
    output = answer(
        engine, policy, ids, console, temperature=args.temperature, seed=args.seed, ignore_eos=args.ignore_eos
    )
    if args.json:
        fields = {"text": output.text, "ids": output.tokens, "logprobs": output.logprobs}
        print(json.dumps(fields | {"finish_reason": output.finish_reason}))


def chat_with(args: argparse.Namespace) -> None:
    from rich.console import Console

    from r1jax.cli.answer import chat
    from r1jax.config import MeshConfig, RolloutConfig
    from r1jax.parallel.layout import make_layout
    from r1jax.runs.policy import load_policy

    start_jax()
    layout = make_layout(MeshConfig(data=1), devices=local_device())
    policy = load_policy(checkpoint_path(args.checkpoint), layout)
    if policy.tokenizer is None:
        raise UsageError(f"{args.checkpoint} has no tokenizer: `generate --prompt_ids` takes ids")
    context = min(args.context, policy.model.max_position_embeddings)
    if context <= args.max_tokens:
        raise UsageError(f"--max_tokens {args.max_tokens} leaves no room for a prompt in a context of {context} tokens")
    console = Console()
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        alone = "" if policy.task is None else "; each question stands alone"
        console.print(f"{args.checkpoint}: /clear begins anew, Ctrl-D ends{alone}", style="dim", highlight=False)
    config = RolloutConfig(slots=1, steps_per_round=4, prefill_rows=1, top_p=args.top_p, speculative=args.speculative)
    chat(
        layout,
        policy,
        config,
        typed_lines() if is_terminal else (line.rstrip("\n") for line in sys.stdin or ()),
        console,
        context=context,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )


def typed_lines() -> Iterator[str]:
    """What the user types, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def import_checkpoint(args: argparse.Namespace) -> None:
    from r1jax.runs.hugging_face import import_hf
    from r1jax.telemetry.progress import Progress

    start_jax()
    import_hf(checkpoint_path(args.source), checkpoint_path(args.dest), mtp=not args.no_mtp, progress=Progress())


def export_checkpoint(args: argparse.Namespace) -> None:
    from r1jax.runs.hugging_face import export_hf
    from r1jax.telemetry.progress import Progress

    start_jax()
    export_hf(checkpoint_path(args.checkpoint), checkpoint_path(args.dest), progress=Progress())


def write_report(args: argparse.Namespace) -> None:
    from etils import epath

    from r1jax.report.report import write_report as write

    print(f"report: {write(epath.Path(args.workdir))}")


def not_yet(args: argparse.Namespace) -> None:
    raise UsageError(f"`{args.name}` ({NOT_YET[args.name]}) is not there yet")


def positive(text: str) -> int:
    """An argument of 1 or more, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected 1 or more")
    return int(text)


def not_negative_int(text: str) -> int:
    """An argument of 0 or more, for argparse."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 or more")
    return int(text)


def share(text: str) -> float:
    """An argument of 0 to 1, for argparse."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 to 1")
    return float(text)


def positive_share(text: str) -> float:
    """An argument above 0, up to 1, for argparse."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected more than 0, up to 1")
    return float(text)


def some_text(text: str) -> str:
    """An argument that is not empty, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected some text")
    return text


def seed(text: str) -> int:
    """An argument of 32 bits, for argparse."""
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 to {2**32 - 1}")
    return int(text)


def not_negative(text: str) -> float:
    """An argument of 0 or more, for argparse."""
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 or more")
    return float(text)


def load_experiment(name: str) -> ModuleType:
    """An experiment by name, or by the path of a file anywhere."""
    path = Path(name) if name.endswith(".py") else ROOT / "experiments" / f"{name}.py"
    if not path.is_file():
        raise UsageError(f"no experiment '{name}': expected a name from `r1jax experiments` or a path to a .py file")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # so that a fork anywhere can import `experiments`
    spec = importlib.util.spec_from_file_location(f"r1jax_experiment_{path.stem}", path)
    assert spec and spec.loader  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"experiment {path} can't be loaded: {error}") from error
    missing = [attribute for attribute in ("Config", "GIN_FILES", "run") if not hasattr(module, attribute)]
    if missing:
        raise UsageError(
            f"experiment {path} has no {', '.join(missing)}: see experiments/r1_zero.py for what one needs"
        )
    return module


def first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def gin_path(name: str) -> str:
    """A gin file as given, or below gin_configs/."""
    for path in (Path(name), ROOT / "gin_configs" / name):
        if path.is_file():
            return str(path)
    raise UsageError(f"no gin file '{name}', neither here nor below gin_configs/")


def checkpoint_path(name: str):
    from r1jax.paths import absolute

    return absolute(name)


def parse_ids(text: str, vocabulary: int) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--prompt_ids is '{text}', expected numbers with commas between, such as 5,17,3") from error
    if any(not 0 <= i < vocabulary for i in ids):
        raise UsageError(f"--prompt_ids {text}: ids must lie in 0..{vocabulary - 1}")
    return ids


def find_devices() -> None:
    """On a machine without TPU keeps away what libtpu, with which --topology compiles, has to say of that."""
    import jax

    from r1jax.dry_run.topology import without_stderr

    has_tpu = next(Path("/dev").glob("accel*"), None) or next(Path("/dev").glob("vfio/*"), None)
    with contextlib.nullcontext() if has_tpu else without_stderr():
        jax.devices()


def local_device():
    import jax

    find_devices()
    return jax.local_devices()[:1]


def ignore_closed_loops(unraisable) -> None:
    """Reads that a failed restore leaves under way find their event loop closed: its own error has said all."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def start_jax() -> None:
    """Programs compiled once are read back by later runs; JAX_COMPILATION_CACHE_DIR moves the cache."""
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax tells of its options at each checkpoint
    sys.unraisablehook = ignore_closed_loops

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "r1jax" / "xla"))
