"""Run an experiment, or resume it."""

import argparse
import contextlib
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from etils import epath

from r1jax.cli.arguments import non_negative_int, positive_int
from r1jax.cli.devices import find_devices, start_jax
from r1jax.cli.experiments import gin_paths, load_experiment, summary
from r1jax.errors import Preempted, UsageError
from r1jax.paths import absolute


def step_range(text: str) -> range:
    """ "3" or "3:5" as the steps 3, or 3 to 5."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and (last or first).isdigit() and 0 < int(first) <= int(last or first)):
        raise argparse.ArgumentTypeError(f"is {text!r}, expected steps such as 3 or 3:5")
    return range(int(first), int(last or first) + 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", help="a name (see `experiments`) or a path to a file")
    add("--gin", action="append", metavar="FILE", help="gin files instead of the experiment's own")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a gin binding, applied after the files")
    add("--from", dest="rerun_from", metavar="STAGE", help="rerun a stage and everything downstream of it")
    add(
        "--profile",
        type=step_range,
        default=range(0),
        metavar="A:B",
        help="trace steps A to B of each stage, for xprof",
    )
    add("--accept_code", action="store_true", help="keep or resume stages that were made with other code")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", metavar="DIR", help="the run's directory")
    where.add_argument("--dry_run", action="store_true", help="show parameters, memory and programs, and run nothing")

    hosts = parser.add_argument_group("several processes")
    add = hosts.add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0, where JAX does not detect the cluster")
    add("--processes", type=positive_int, metavar="N", help="number of processes in this run; 1: this one alone")
    add("--process_id", type=non_negative_int, metavar="I", help="index of this process, 0 to N - 1")
    timeout = "abort when a process sends no heartbeat for this many seconds (default 30)"
    add("--heartbeat_timeout", type=positive_int, default=30, metavar="S", help=timeout)

    topology = parser.add_argument_group("dry runs for TPUs")
    add = topology.add_argument
    add("--topology", metavar="T", help="compile for TPUs that this machine lacks, such as v5p:4x4x8")
    add("--slices", type=positive_int, metavar="N", help="number of slices of that topology (default 1)")
    add("--programs", metavar="NAME[,NAME]", help="compile only these programs")
    add("--json", type=Path, metavar="FILE", help="also write the figures of these programs to a file")


def main(args: argparse.Namespace) -> None:
    from r1jax.cli.gin_config import read_config
    from r1jax.parallel import hosts

    if args.topology and not args.dry_run:
        raise UsageError(f"--topology {args.topology} needs --dry_run: runs use the devices that this machine has")
    if (args.slices or args.programs or args.json) and not args.topology:
        raise UsageError("--slices, --programs and --json need --topology, such as --topology v5p:4x4x8")
    start_jax()
    if not args.dry_run:
        args.hosts = hosts.start_hosts(
            args.coordinator, args.processes, args.process_id, heartbeat_timeout=float(args.heartbeat_timeout)
        )
    module = load_experiment(args.experiment)
    config = read_config(module.Config, gin_paths(module, args.gin), args.set)
    if not args.topology:
        find_devices()
    if args.dry_run:
        from r1jax.dry_run.run import dry_run

        names = args.programs.split(",") if args.programs else []
        environments = getattr(vars(module).get("TASK"), "environments", None)
        dry_run(config, args.topology, args.slices or 1, names, args.json, environments)
    else:
        run_experiment(args, module, config)


@contextmanager
def keep_traceback(workdir: epath.Path) -> Iterator[None]:
    """Writes the traceback of a failure to `traceback.txt`; the command line shows one line."""
    try:
        yield
    except Exception as error:
        from r1jax.parallel.hosts import is_main_process

        if not isinstance(error, UsageError | Preempted) and is_main_process():
            with contextlib.suppress(OSError):  # a full disk may be the failure
                (workdir / "traceback.txt").write_text(traceback.format_exc())
        raise


class Reports:
    """Writes the report of a run that is under way, at its checkpoints, at most once a minute."""

    SECONDS = 60.0

    def __init__(self, workdir: epath.Path):
        self.workdir, self.written = workdir, time.monotonic()

    def write(self) -> None:
        from r1jax.parallel.hosts import is_main_process
        from r1jax.report.report import write_report

        if is_main_process() and time.monotonic() - self.written >= self.SECONDS:
            write_report(self.workdir)
            self.written = time.monotonic()


def run_experiment(args: argparse.Namespace, module, config) -> None:
    """Runs or resumes the experiment in `--workdir`; the main process then writes the report."""
    from r1jax.parallel import hosts
    from r1jax.parallel.layout import make_layout
    from r1jax.report.report import write_report
    from r1jax.runs.code import module_sources
    from r1jax.runs.run import Experiment, open_run
    from r1jax.runs.workdir import undo
    from r1jax.telemetry.progress import Progress

    layout = make_layout(config.mesh)
    progress = Progress(quiet=not hosts.is_main_process())
    with hosts.catch_sigterm():
        note = vars(module).get("REPORT_NOTE", "")
        experiment = Experiment(Path(args.experiment).stem, summary(module.__doc__), note, module_sources(module))
        options = {"rerun_from": args.rerun_from, "accept_code": args.accept_code}
        try:
            run = open_run(args.workdir, experiment, config, layout, progress, **options)
            with keep_traceback(run.workdir):
                module.run(replace(run, profiled=args.profile, saved=Reports(run.workdir).write), config)
        except UsageError:
            if hosts.is_main_process():
                undo(absolute(args.workdir))
            raise
        if hosts.is_main_process():
            progress.say(f"report: {write_report(run.workdir)}")
