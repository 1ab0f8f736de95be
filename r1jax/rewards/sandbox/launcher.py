"""Runs one untrusted Python program with the isolation that the kernel allows, and reports how it ended.

The package's `__init__` starts this script as `python -I -S launcher.py`, with a JSON job on stdin and a JSON report
on stdout, so that none of the caller's threads, devices and secrets reach the program. Layers, outermost first:

* namespaces: an empty root with the interpreter's files read-only and a scratch tmpfs; no network, no other processes.
  Made by this script, or, where the kernel forbids it, by bubblewrap, to which AppArmor may grant it
* landlock: the same list of files, enforced on paths; the only file isolation where namespaces are forbidden
* limits: CPU time, memory, threads, open files, file sizes; this script enforces wall time and output. Wall time
  leaves out the time in which the program waits for a core
* seccomp: one process, no sockets, no signals to others, no tracing, no mounts, no system calls newer than Linux 5.0

The program is one process, since seccomp denies fork, so that the memory limit covers all of its memory. Requires Linux
on x86-64 or ARM64; namespaces need 5.12, landlock 5.13.
Sources: namespaces(7), user_namespaces(7), pivot_root(2), seccomp(2), landlock(7), and the kernel's syscall tables.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
SCRATCH = "/scratch"  # inside the sandbox
BUBBLEWRAP = "/usr/bin/bwrap"  # absolute, so that PATH can't replace it
NEW_ROOT = "/mnt"  # where the new root is assembled; any directory works
# The interpreter, its standard library and shared libraries, but no home, /etc or /proc. Links are resolved here, since
# their targets may be missing inside.
PYTHON, LIB = os.path.realpath(sys.executable), os.path.join(os.path.realpath(sys.base_prefix), "lib")
PATHS = [PYTHON, LIB, LIB + "64", "/lib", "/lib64", "/usr/lib", "/usr/lib64", os.devnull]
READABLE = [path for path in dict.fromkeys(PATHS) if os.path.exists(path)]
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # fixes the order of sets, so that rewards are deterministic
    "HOME": SCRATCH, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "LD_LIBRARY_PATH": LIB,
}  # fmt: skip
# Runs the program, which is descriptor 4; 3 takes its reply. asyncio wakes its loop through a socketpair, and gets a
# pipe instead, since the filter denies sockets. The program finds none of these names.
BOOT = """
def boot():
    import os, sys
    class End:
        def __init__(self, descriptor): self.descriptor = descriptor
        def fileno(self): return self.descriptor
        def recv(self, size): return os.read(self.descriptor, size)
        def send(self, data): return os.write(self.descriptor, data)
        def close(self): os.close(self.descriptor)
    def make_self_pipe(loop):
        loop._ssock, loop._csock = map(End, os.pipe2(os.O_NONBLOCK))
        loop._internal_fds += 1
        loop._add_reader(loop._ssock.fileno(), loop._read_from_self)
    class Loops:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "asyncio.selector_events": return None
            sys.meta_path.remove(Loops)
            found = next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)))
            load = found.loader.exec_module
            def patched(module):
                load(module)
                module.BaseSelectorEventLoop._make_self_pipe = make_self_pipe
            found.loader.exec_module = patched
            return found
    sys.meta_path.insert(0, Loops)
boot()
del boot
exec(compile(open(4, 'rb').read(), 'program.py', 'exec'))
"""

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x20000000, 0x40000000, 0x10000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 0x1000, 0x4000, 0x40000, 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
F_SETOWN_EX = 15
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
MOUNT_SETATTR, LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 442, 444, 445, 446
FIRST_NEW_SYSCALL = 424  # numbers from here on are equal on all machines: io_uring, pidfds, clone3, new mounts

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column in SYSCALLS, AUDIT_ARCH
SYSCALLS = {  # number on x86_64 and on aarch64; -1: missing
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261), "pivot_root": (155, 41),
    "fcntl": (72, 25),
}  # fmt: skip
DENIED = {
    "prctl": (157, 167),  # or the program could undo PR_SET_PDEATHSIG
    "fork": (57, -1), "vfork": (58, -1), "ptrace": (101, 117), "mount": (165, 40),
    # A socket can reach abstract addresses of this machine, and hold descriptors in flight that outlive the program.
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvmsg": (47, 212), "recvmmsg": (299, 243),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "io_setup": (206, 0), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "personality": (135, 92), "modify_ldt": (154, -1), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip


def main() -> None:
    job = json.load(sys.stdin.buffer)
    layers, limits = set(job["layers"]), job["limits"]
    (out, out_in), (reply, reply_in) = os.pipe(), os.pipe()
    stdin, program = memory_file(job["stdin"]), memory_file(job["program"])
    inside = [stdin, out_in, os.open(os.devnull, os.O_WRONLY), reply_in, program]
    arguments, proc = [], None
    if "bubblewrap" in layers:
        if os.getpid() != 1:  # process 1 is this script, started again by bubblewrap in the sandbox
            arguments = bubblewrap_arguments(limits["scratch_bytes"])
    elif {"limits", "seccomp"} <= layers:  # otherwise the program's own processes could starve it, to gain time
        proc = os.open("/proc", os.O_RDONLY)
    if layers & {"bubblewrap", "namespaces"} == {"namespaces"}:
        enter_namespaces()
        make_root(limits["scratch_bytes"])
    if os.getuid() == 0:  # drops root
        user = unprivileged_user()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job["parent"]:
        raise RuntimeError("the calling process has ended")
    if arguments:
        os.dup2(memory_file(json.dumps(job | {"parent": 0})), 0)  # 0: the parent is in another process namespace
        os.execve(BUBBLEWRAP, arguments, {})
    failure, failure_in = os.pipe()
    child = os.fork()
    if child == 0:
        run_program(inside, layers, limits, failure_in)
    for descriptor in (*inside, failure_in):
        os.close(descriptor)
    message = os.read(failure, 4096)  # empty once the program is executed, which closes the pipe
    if message:
        raise RuntimeError(message.decode())
    print("started", flush=True)
    print(json.dumps(watch(child, out, reply, limits, proc)))


def memory_file(text: str) -> int:
    """An anonymous file with this text, positioned at its start."""
    descriptor = os.memfd_create("job")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "replace"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def unprivileged_user() -> int:
    """The program's uid. Root's programs get one of their own: RLIMIT_NPROC counts by user and exempts root."""
    return 20_000 + os.getpid() % 40_000 if os.getuid() == 0 else os.getuid()


def enter_namespaces() -> None:
    """Creates mount, network, process, IPC and host name namespaces; the next forked child is their process 1.

    Other users than root need a user namespace for that, which also counts threads separately (Linux 5.14).
    """
    flags, uid, gid = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS, os.getuid(), os.getgid()
    call("unshare", flags if uid == 0 else flags | CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def make_root(scratch_bytes: int) -> None:
    """Enters a root with the interpreter's files, read-only, without installed packages, and an empty scratch."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount_tmpfs(NEW_ROOT, 1 << 20)
    for path in READABLE:
        bind(path)
    for packages in package_directories():
        if os.path.isdir(NEW_ROOT + packages):
            mount_tmpfs(NEW_ROOT + packages, 4096)
    os.mkdir(NEW_ROOT + SCRATCH)
    os.chdir(NEW_ROOT)
    call("syscall", number("pivot_root"), b".", b".")  # stacks the old root on the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    mount_tmpfs(SCRATCH, scratch_bytes, unprivileged_user())
    os.chdir(SCRATCH)


def bubblewrap_arguments(scratch_bytes: int) -> list[str]:
    """The command that makes the root of `make_root` and runs this script in it as process 1.

    bubblewrap can't limit the number of files. When it is setuid it also rejects --size, and the layer is unavailable.
    """
    if not os.path.exists(BUBBLEWRAP):
        raise RuntimeError(f"no {BUBBLEWRAP}: install bubblewrap")
    words = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    words += ["--as-pid-1", "--die-with-parent", "--dev-bind", os.devnull, os.devnull]
    for path in READABLE:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif path != os.devnull:
            words += ["--ro-bind", path, path]
    for packages in filter(os.path.isdir, package_directories()):
        words += ["--tmpfs", packages, "--remount-ro", packages]
    words += ["--size", str(scratch_bytes), "--tmpfs", SCRATCH, "--remount-ro", "/", "--chdir", SCRATCH]
    with open(__file__) as file:  # passed as text, so that the program finds no such file
        script = [PYTHON, "-I", "-S", "-c", file.read()]
    return [BUBBLEWRAP, *words, "--setenv", "LD_LIBRARY_PATH", LIB, "--", *script]


def package_directories() -> list[str]:
    """The interpreter's directories of installed packages, which the sandbox hides."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libs = [path for path in READABLE if os.path.basename(path).startswith("lib")]
    return [f"{lib}/{packages}" for lib in libs for packages in (f"{version}/site-packages", "python3/dist-packages")]


def mount_tmpfs(path: str, size: int, owner: int | None = None) -> None:
    options = f"size={size},nr_inodes=4096,mode=755" + (f",uid={owner},gid={owner}" if owner is not None else "")
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())


def bind(path: str) -> None:
    """Binds `path` under the new root; links (/lib to usr/lib) are recreated."""
    target = NEW_ROOT + path
    if os.path.exists(target):  # in a directory that is bound already
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    call("mount", path.encode(), target.encode(), None, MS_BIND | MS_REC, None)


def run_program(inside: list[int], layers: set[str], limits: dict, failure: int) -> None:
    """Drops the child's privileges and executes the program. Never returns."""
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, 100)
        for target, descriptor in enumerate([fcntl.fcntl(d, fcntl.F_DUPFD_CLOEXEC, 100) for d in inside]):
            os.dup2(descriptor, target)
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if "landlock" in layers:
            restrict_paths("namespaces" in layers)
        if "limits" in layers:
            set_limits(limits, "namespaces" in layers)
        if "seccomp" in layers:
            install_filter()
        os.execve(PYTHON, [PYTHON, "-B", "-s", "-P", "-X", "utf8", "-c", BOOT], ENVIRONMENT)
    except BaseException as error:
        os.write(failure, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def set_limits(limits: dict, own_count: bool) -> None:
    """Sets resource limits. Threads are limited only if they are counted for this sandbox alone (`own_count`)."""
    values = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 1,  # too small for a core file; unlike 0 it also disables a core handler
    }
    if own_count:
        values[resource.RLIMIT_NPROC] = limits["threads"] + 1  # with the launcher
    for name, value in values.items():
        resource.setrlimit(name, (value, value))


def restrict_paths(scratch: bool) -> None:
    """Landlock: allows reading and executing READABLE, and writing to the scratch directory and /dev/null."""
    execute, write, read_file, read_directory, everything = 1, 2, 4, 8, (1 << 13) - 1
    ruleset = call("syscall", LANDLOCK_CREATE_RULESET, struct.pack("Q", everything), 8, 0)
    rules = [(path, execute | read_file | (read_directory if os.path.isdir(path) else 0)) for path in READABLE]
    rules += [(os.devnull, read_file | write)] + [(SCRATCH, everything)] * scratch
    for path, access in rules:
        rule = struct.pack("=Qi", access, os.open(path, os.O_PATH))
        call("syscall", LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
    call("syscall", LANDLOCK_RESTRICT_SELF, ruleset, 0)


def install_filter() -> None:
    """Seccomp: denied calls fail with EPERM, newer ones with ENOSYS, on which libc falls back to older calls."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in filter_program(os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def filter_program(pid: int) -> Iterator[tuple[int, int, int, int]]:
    """Classic BPF (code, jump if true, if false, k) on `struct seccomp_data`: number at 0, machine 4, arguments 16."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, eperm, enosys, kill = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38, 0x80000000
    yield from [(load, 0, 0, 4), (equal, 1, 0, MACHINES[os.uname().machine][1]), (give, 0, 0, kill), (load, 0, 0, 0)]
    yield from [(at_least, 0, 1, FIRST_NEW_SYSCALL), (give, 0, 0, enosys)]
    for name in DENIED:
        if number(name) >= 0:
            yield from [(equal, 0, 1, number(name)), (give, 0, 0, eperm)]
    # The owner of a descriptor, who gets its signals, could be a process outside.
    yield from [(equal, 0, 6, number("fcntl")), (load, 0, 0, 24)]
    for command in (fcntl.F_SETOWN, F_SETOWN_EX):
        yield from [(equal, 0, 1, command), (give, 0, 0, eperm)]
    yield (give, 0, 0, allow)
    # Allowed by the first argument: threads but not processes, signals to itself, limits of itself.
    for name, test, operand in (
        ("clone", any_bit, CLONE_THREAD), ("kill", equal, pid), ("tgkill", equal, pid), ("prlimit64", equal, 0),
    ):  # fmt: skip
        yield from [(equal, 0, 4, number(name)), (load, 0, 0, 16), (test, 1, 0, operand)]
        yield from [(give, 0, 0, eperm), (give, 0, 0, allow)]
    yield (give, 0, 0, allow)


def number(name: str) -> int:
    return (SYSCALLS | DENIED)[name][MACHINES[os.uname().machine][0]]


def call(function: str, *arguments: object) -> int:
    """Calls a libc function. Raises OSError when it returns -1."""
    converted = [ctypes.c_long(int(a)) if isinstance(a, int) else a for a in arguments]
    result: int = getattr(LIBC, function)(*converted)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"{function}({', '.join(map(str, arguments[:2]))})")
    return result


def watch(child: int, out: int, reply: int, limits: dict, proc: int | None) -> dict:
    """Reads until the program ends or exceeds a limit, kills it, and returns the report."""
    streams = {out: bytearray(), reply: bytearray()}
    reason, seconds = read_until_end(child, streams, limits, proc)
    os.kill(-1 if os.getpid() == 1 else child, signal.SIGKILL)  # not reaped yet, so that its pid isn't reused
    _, status, usage = os.wait4(child, 0)  # the -1 has killed all other processes in its namespace
    for descriptor, content in streams.items():
        os.set_blocking(descriptor, False)  # what the program left is in the pipe, even if another end is still open
        with contextlib.suppress(BlockingIOError):
            while len(content) <= limits["output_bytes"] and (chunk := os.read(descriptor, 1 << 16)):
                content += chunk
    if any(len(content) > limits["output_bytes"] for content in streams.values()):
        reason = "output"
    code = os.waitstatus_to_exitcode(status)
    if reason == "exit" and code < 0:
        spent = usage.ru_utime + usage.ru_stime
        reason = "cpu time" if code == -signal.SIGKILL and spent > limits["cpu_seconds"] - 0.5 else "signal"
    stdout, replied = (bytes(streams[d][: limits["output_bytes"]]).decode("latin-1") for d in (out, reply))
    return {"stdout": stdout, "reply": replied, "status": code, "reason": reason, "seconds": seconds}


def read_until_end(child: int, streams: dict[int, bytearray], limits: dict, proc: int | None) -> tuple[str, float]:
    """Reads both streams; returns "exit" or the limit that was exceeded ("wall time", "output"), and the seconds.

    The seconds leave out the time in which the program was ready and other processes had the cores, so that the load
    of the machine doesn't change verdicts.
    """
    ended = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (ended, *streams):
        poll.register(descriptor, select.POLLIN)
    started, starved = time.monotonic(), 0.0
    while True:
        passed = time.monotonic() - started
        starved = max(starved, starved_seconds(child, proc))
        remaining = limits["wall_seconds"] - (passed - starved)
        if remaining <= 0 or passed > limits["longest_seconds"]:
            return "wall time", passed - starved
        for descriptor, _ in poll.poll(max(remaining, 0.01) * 1000):
            if descriptor == ended:
                starved = max(starved, starved_seconds(child, proc))
                return "exit", max(time.monotonic() - started - starved, 0.0)
            chunk = os.read(descriptor, 1 << 16)
            streams[descriptor] += chunk
            if not chunk:
                poll.unregister(descriptor)  # closed by the program, which may run on
            if len(streams[descriptor]) > limits["output_bytes"]:
                return "output", passed - starved


def starved_seconds(child: int, proc: int | None) -> float:
    """How long the program's threads were ready without a core, of the one that waited most; 0 where unknown."""
    if proc is None:  # bubblewrap gives no /proc
        return 0.0
    longest = 0
    with contextlib.suppress(OSError):  # threads come and go
        threads = os.open(f"{child}/task", os.O_RDONLY, dir_fd=proc)
        try:
            for thread in os.listdir(threads):
                with open(os.open(f"{thread}/schedstat", os.O_RDONLY, dir_fd=threads)) as file:
                    longest = max(longest, int(file.read().split()[1]))
        finally:
            os.close(threads)
    return longest / 1e9


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
