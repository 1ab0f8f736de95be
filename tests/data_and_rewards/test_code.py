"""Code rewards and the sandbox: attacks on either, and correct programs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from r1jax.errors import RunError, UsageError
from r1jax.rewards import sandbox as sandbox_module
from r1jax.rewards.code import CodeReward, extract_program, parse_tests, prints, same
from r1jax.rewards.rules import Reward, by_source
from r1jax.rewards.sandbox import FULL, PROBES, Limits, Sandbox, detect_layers
from r1jax.types import Problem

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(cpu_seconds=1, wall_seconds=4.0, memory_bytes=256 << 20, output_bytes=1 << 16, threads=8)
SHORT = Limits(cpu_seconds=1, wall_seconds=1.0, memory_bytes=256 << 20, output_bytes=1 << 16, threads=8)
SLACK_SECONDS = 5.0  # for starting and reporting on a busy machine

SERVER = socket.create_server(("127.0.0.1", 0))
PORT = SERVER.getsockname()[1]
ABSTRACT = f"\0r1jax_{os.getpid()}"  # a unix socket without a file, which namespaces of the network separate
DATAGRAMS = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
DATAGRAMS.bind(ABSTRACT)
ESCAPE = "r1jax_escape"
PLACES = ["/tmp", "/dev/shm", "/mnt", "/var/tmp", str(ROOT), str(Path.home())]

full = pytest.mark.skipif(bool(FULL - detect_layers()), reason=f"this kernel allows {sorted(detect_layers())} only")


def problem(tests: object) -> Problem:
    return Problem(0, "write a program", json.dumps(tests), "en")


def sample(program: str, tests: object) -> SimpleNamespace:
    text = f"<think> hm </think> Here it is:\n```python\n{program}\n```\n"
    return SimpleNamespace(problem=problem(tests), text=text)


def attempt(body: str) -> str:
    """A program that prints the right answer if and only if the attack succeeds."""
    lines = "\n".join("    " + line for line in body.strip().split("\n"))
    return f"import ctypes, os, socket, sys\ntry:\n{lines}\nexcept BaseException:\n    pass\nelse:\n    print(42)\n"


PRINTS_42 = {"inputs": ["41\n"], "outputs": ["42\n"]}

# Attacks; a score of 0 means that they failed (see `attempt`).
BREAKOUTS = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "daemon": "if os.fork() == 0:\n    os.setsid()\n    os.close(1)\n    if os.fork() == 0:\n"
    "        import time; time.sleep(60)\n    os._exit(0)",
    "zombies": "for _ in range(3):\n    if os.fork() == 0: os._exit(0)",
    "shell": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "os.system": "assert os.system('true') == 0",
    "posix_spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "exec of a shell": "os.execv('/bin/sh', ['sh', '-c', 'echo 42'])",
    "multiprocessing": "import multiprocessing as m\np = m.Process(target=int)\np.start()\np.join()",
    "clone with a new user namespace": "pid = ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)\n"
    "if pid == 0: os._exit(0)\nassert pid > 0",
    "clone3": "pid = ctypes.CDLL(None).syscall(435, bytes(88), 88)\nif pid == 0: os._exit(0)\nassert pid > 0",
    "kill the parent": "os.kill(os.getppid() or 1 << 21, 9)",
    "kill a process by number": f"os.kill({os.getpid()}, 0)",
    "kill every process": "os.kill(-1, 9)",
    "signal the tests' group": f"os.killpg({os.getpgid(0)}, 0)",
    "signals of a pipe": "import fcntl; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getpid())",
    "signals of a pipe, by structure": "import fcntl, struct\n"
    "fcntl.fcntl(os.pipe()[0], 15, struct.pack('ii', 1, os.getpid()))",
    "limits of others": f"import resource; resource.prlimit({os.getpid()}, resource.RLIMIT_CPU, (1, 1))",
    "raise its own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "internet": "socket.create_connection(('1.1.1.1', 53), 1)",
    "localhost": f"socket.create_connection(('127.0.0.1', {PORT}), 1)",
    "IPv6": f"socket.create_connection(('::1', {PORT}), 1)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    "DNS": "socket.getaddrinfo('example.com', 80)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socketpair": "socket.socketpair()",
    "datagram socketpair": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "socketpair by number": "assert ctypes.CDLL(None).syscall(53, 1, 1, 0, bytes(8)) == 0",
    "sendmsg of descriptors": "socket.send_fds(socket.socketpair()[0], [b'x'], [1, 3])",
    "sendmsg by number": "ctypes.CDLL(None, use_errno=True).syscall(46, 1, bytes(56), 0)\n"
    "assert ctypes.get_errno() != 1",
    "bind by number": "ctypes.CDLL(None, use_errno=True).syscall(49, 1, bytes(16), 16)\nassert ctypes.get_errno() != 1",
    "a datagram to an abstract address": "a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    f"a.sendto(b'42', {ABSTRACT!r})",
    "asyncio's wake-up pipe as a socket": "import asyncio\nloop = asyncio.new_event_loop()\n"
    "socket.socket(fileno=loop._csock.fileno())",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "url": "import urllib.request; urllib.request.urlopen('http://example.com', timeout=1)",
    "io_uring": "assert ctypes.CDLL(None).syscall(425, 4, bytes(120)) >= 0",
    "/etc/passwd": "open('/etc/passwd').read()",
    "/etc/hostname": "open('/etc/hostname').read()",
    "the tests": f"open({str(Path(__file__).resolve())!r}).read()",
    "the project": f"assert os.listdir({str(ROOT)!r})",
    "the sandbox's code": f"open({str(sandbox_module.LAUNCHER)!r}).read()",
    "home": f"assert [f for f in os.listdir({str(Path.home())!r}) if f != '.pyenv']",
    "import the project": "import r1jax",
    "import installed packages": "import pip",
    "/proc of the parent": f"open('/proc/{os.getpid()}/environ', 'rb').read()",
    "/proc of the launcher": "open('/proc/self/status').read()",
    "/proc by number": "assert [p for p in os.listdir('/proc') if p.isdigit()]",
    "memory of the parent": f"open('/proc/{os.getpid()}/mem', 'r+b')",
    "/sys": "assert os.listdir('/sys')",
    "/dev": "assert [f for f in os.listdir('/dev') if f != 'null']",
    "environment": "assert 'PATH' in os.environ or 'R1JAX_SECRET' in os.environ",
    "inherited descriptors": "found = 0\nfor d in range(5, 1024):\n    try: os.fstat(d); found += 1\n"
    "    except OSError: pass\nassert found",
    "write outside": f"written = 0\nfor place in {PLACES!r}:\n    try: open(place + '/{ESCAPE}', 'w'); written += 1\n"
    "    except OSError: pass\nassert written",
    "write to the interpreter": "open(os.__file__, 'a')",
    "make the root writable": "os.mkdir('/new')",
    "symlink to the outside": "os.symlink('/etc/passwd', 'link'); open('link').read()",
    "dot dot": "open('../../../../../../etc/passwd').read()",
    "hard link": "os.link(os.__file__, 'os.py'); open('os.py', 'a')",
    "chroot out": "os.mkdir('j'); os.chroot('j'); os.chdir('../../../..'); open('etc/passwd')",
    "device node": "os.mknod('disk', 0o60600, os.makedev(254, 0)); open('disk', 'rb')",
    "fill the disk in one file": "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()",
    "fill the disk in many files": "for i in range(64): open(str(i), 'wb').write(bytes(1 << 20))",
    "many small files": "for i in range(10**4): open(str(i), 'w').close()",
    "memory in files without names": "os.memfd_create('x')",
    "System V memory": "assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
    "memory": "bytearray(1 << 30)",
    "memory, growing": "x = [0]\nwhile True: x += x",
    "memory of threads": "import threading\nthreading.stack_size(64 << 20)\n"
    "for _ in range(8): threading.Thread(target=__import__('time').sleep, args=(9,), daemon=True).start()",
    "many threads": "import threading\nthreading.stack_size(1 << 16)\n"
    "for _ in range(64): threading.Thread(target=__import__('time').sleep, args=(9,), daemon=True).start()",
    "many descriptors": "x = [os.dup(1) for _ in range(200)]",
    "ptrace": "assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "ptrace of the parent": f"assert ctypes.CDLL(None).ptrace(16, {os.getpid()}, 0, 0) == 0",
    "process_vm_readv": f"assert ctypes.CDLL(None).syscall(310, {os.getpid()}, 0, 0, 0, 0, 0) == 0",
    "unshare": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "assert ctypes.CDLL(None).mount(b'x', b'/scratch', b'tmpfs', 0, None) == 0",
    "remount": "assert ctypes.CDLL(None).mount(None, b'/', None, 0x1020, None) == 0",
    "umount": "assert ctypes.CDLL(None).umount2(b'/scratch', 2) == 0",
    "keyctl": "assert ctypes.CDLL(None).syscall(250, 0, -3, 0) >= 0",
    "bpf": "assert ctypes.CDLL(None).syscall(321, 0, bytes(64), 64) >= 0",
    "perf": "assert ctypes.CDLL(None).syscall(298, bytes(128), 0, -1, -1, 0) >= 0",
    "become root": "os.setuid(0)",
    "new privileges": "assert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 0",
    "capabilities": "assert ctypes.CDLL(None).prctl(47, 2, 21, 0, 0) == 0",
    "outlive the trainer": "assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "host name": "socket.sethostname('x')",
    "raise its priority": "os.nice(-5)",
    "32-bit calls": "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
    "m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"  # mov eax, getpid; int 0x80; ret
    "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
}

# Programs that fail, by themselves or at a limit.
ENDINGS = {
    "prints nothing": "",
    "syntax error": "print(42",
    "NUL byte": "print(42)\x00",
    "lone surrogate": "print('\ud800')",
    "a prefix": "print(4, end='')",
    "too much": "print(42)\nprint(42)",
    "more on the line": "print('42 43')",
    "white space in front": "print(' 42')",
    "the answer, and then noise": "print(42)\nprint()\nprint('.')",
    "infinite output": "while True: print(42)",
    "infinite output, one write": "import os\nwhile True: os.write(1, b'42\\n' * 10000)",
    "infinite error output": "import sys\nwhile True: print('x' * 10000, file=sys.stderr)",
    "infinite reply": "import os\nwhile True: os.write(3, b'x' * 10000)",
    "the answer, then a loop": "print(42, flush=True)\nwhile True: pass",
    "the answer, then sleep": "import time\nprint(42, flush=True)\ntime.sleep(60)",
    "closed outputs, then sleep": "import os, time\nos.write(1, b'42')\nos.close(1); os.close(3)\ntime.sleep(60)",
    "closes stdout": "import os\nos.close(1)\nprint(42)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading\ndef f():\n    while True:\n        try: threading.Thread(target=f).start()\n"
    "        except RuntimeError: pass\nf()",
    "threads that never end": "import threading, time\nprint(42, flush=True)\n"
    "threading.Thread(target=time.sleep, args=(60,)).start()",
    "ignores every signal": "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
    "print(42, flush=True)\nwhile True: pass",
    "blocks every signal": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
    "print(42, flush=True)\ntime.sleep(60)",
    "stops itself": "import os, signal\nprint(42, flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)\nsignal.pause()",
    "status 1": "print(42)\nraise SystemExit(1)",
    "raises": "print(42)\nraise ValueError",
    "os._exit(0) before the output": "import os\nprint(42)\nos._exit(0)",
    "raises at exit": "import atexit, os\nprint(42, flush=True)\natexit.register(os._exit, 3)",
    "aborts": "import os\nprint(42, flush=True)\nos.abort()",
    "segmentation fault": "import ctypes\nprint(42, flush=True)\nctypes.string_at(0)",
    "huge recursion": "import sys\nsys.setrecursionlimit(10**9)\nprint(42, flush=True)\ndef f(): return f()\nf()",
    "deep nesting": "print(" + "(" * 5000 + "42" + ")" * 5000 + ")",
    "a huge power": "print(42, flush=True)\n10 ** 10 ** 10",
    "regular expression": "import re\nprint(42, flush=True)\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "a lying class": "class E:\n    __eq__ = lambda s, o: True\n    __repr__ = lambda s: '43'\nprint(E())",
    "reads stdin for ever": "import sys\nwhile True: sys.stdin.read()",
}

ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
RETURNS = {  # `add` should give 3 and 7
    "no function": "x = 1",
    "os._exit(0) in the module": "import os; os._exit(0)",
    "os._exit(0) in the call": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit": "import sys\ndef add(a, b): sys.exit(0)",
    "wrong": "def add(a, b): return a - b",
    "right once": "def add(a, b): return 3",
    "prints it": "print(3); print(7)\nprint([3, 7])\ndef add(a, b): print(a + b)",
    "forged reply without the nonce": "import os\nos.write(3, b'[null, [3, 7]]')\nos._exit(0)",
    "forged reply and a real one": "import os\nos.write(3, b'[3, 7]')\ndef add(a, b): return a + b",
    "reads the job for expected values": "import gc, json, os, sys\njob = sys._getframe(1).f_globals['job']\n"
    "os.write(3, json.dumps([job['nonce'], job.get('outputs', job.get('expected'))]).encode())\nos._exit(0)",
    "reads stdin again for expected values": "import json, os\nos.lseek(0, 0, 0)\njob = json.load(open(0))\n"
    "os.write(3, json.dumps([job['nonce'], job.get('outputs', [])]).encode())\nos._exit(0)",
    "no numbers": "def add(a, b): return float('nan')",
    "infinity": "def add(a, b): return float('inf')",
    "a string": "def add(a, b): return str(a + b)",
    "a set": "def add(a, b): return {a + b}",
    "a list of it": "def add(a, b): return [a + b]",
    "unhashable": "def add(a, b): return {(): []}",
    "an endless generator": "def add(a, b):\n    while True: yield a + b",
    "itself for ever": "x = []; x.append(x)\ndef add(a, b): return x",
    "deep": "def add(a, b):\n    x = []\n    for _ in range(900): x = [x]\n    return x",
    "a huge string": "def add(a, b): return 'x' * 10**8",
    "a huge number": "import sys\nsys.set_int_max_str_digits(0)\ndef add(a, b): return 10 ** 20000",
    "__eq__ lies": "class L:\n    def __eq__(s, o): return True\ndef add(a, b): return L()",
    "an int whose __eq__ lies": "class L(int):\n    def __eq__(s, o): return True\ndef add(a, b): return L(0)",
    "a list whose __eq__ lies": "class L(list):\n    def __eq__(s, o): return True\ndef add(a, b): return L()",
    "True for 1": "def add(a, b): return True",
    "patched json": "import json, sys\njson.dumps = lambda *a, **k: '[3, 7]'\nsys.modules['json'] = None\n"
    "def add(a, b): return 0",
    "patched builtins": "import builtins\nbuiltins.open = builtins.list = builtins.getattr = lambda *a, **k: [3, 7]\n"
    "def add(a, b): return 0",
    "patched modules": "import sys\nsys.modules.clear()\ndef add(a, b): return 0",
    "atexit": "import atexit, os\natexit.register(lambda: os.write(3, b'[3, 7]'))\ndef add(a, b): return 0",
    "a trace function": "import sys\nsys.settrace(lambda f, e, a: f.f_locals.update(values=[3, 7]))\n"
    "def add(a, b): return 0",
    "never returns": "def add(a, b):\n    while True: pass",
    "raises": "def add(a, b): raise BaseException",
    "a thread that holds on": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    "def add(a, b): return 0",
    "wrong arguments": "def add(a): return 3",
    "the operator's add": "from operator import mul",
    "almost": "def add(a, b): return a + b + 1e-10",
    "half": "def add(a, b): return a + b + 0.5",
}

RIGHT = {
    "print": ("print(int(input()) + 1)", PRINTS_42),
    "exit": ("print(42)\nexit()", PRINTS_42),
    "white space at the end": ("print('42  \\n\\n\\n')", PRINTS_42),
    "no newline": ("import sys\nsys.stdout.write('42')", PRINTS_42),
    "open(0)": ("print(int(open(0).read()) + 1)", PRINTS_42),
    "main": ("import sys\nif __name__ == '__main__': print(int(sys.stdin.buffer.read()) + 1)", PRINTS_42),
    "a scratch file": ("open('x', 'w').write('42')\nprint(open('x').read())", PRINTS_42),
    "a temporary file": ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nprint(42)", PRINTS_42),
    "deep recursion in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64 << 20)\n"
        "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(20000) - 19958))\n"
        "t.start(); t.join()", PRINTS_42,
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(int, ['40', '2'])))", PRINTS_42,
    ),
    "asyncio": ("import asyncio\nasync def f(): return 42\nprint(asyncio.run(f()))", PRINTS_42),
    "the library": ("import heapq, itertools, re, decimal, sqlite3, hashlib, random, numbers\nprint(42)", PRINTS_42),
    "letters": ("print(input()[::-1])", {"inputs": ["añ𝟚\n"], "outputs": ["𝟚ña"]}),
    "a number with noise": ("print(0.1 + 0.2)", {"inputs": [""], "outputs": ["0.3"]}),
    "a float for a whole number": ("print(6 / 2)", {"inputs": [""], "outputs": ["3\n"]}),
    "lines": ("print(input())\nprint(input())", {"inputs": [["a", "b"]], "outputs": [["a", "b"]]}),
    "lines in a list": ("print(1, 2)\nprint(3)", {"inputs": [""], "outputs": [[["1", "2"], ["3"]]]}),
    "lines that end": ("print(1)\nprint(2)", {"inputs": [""], "outputs": [["1\n", "2\n"]]}),
    "a lone surrogate": (
        "import sys\nsys.stdout.buffer.write(b'\\xed\\xa0\\x80')", {"inputs": [""], "outputs": ["\ud800"]},
    ),
    "several": ("print(sum(map(int, input().split())))", {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]}),
    "nothing": ("pass", {"inputs": [""], "outputs": [""]}),
    "a function": ("def add(a, b): return a + b", ADD),
    "a method": ("class Solution:\n    def add(self, a, b): return a + b", ADD),
    "a function that prints": ("def add(a, b):\n    print('[3, 7]', a)\n    return a + b", ADD),
    "a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "def add(a, b): return P(a).x + b", ADD,
    ),
    "a tuple for a list": ("def f(x): return x, {}", {"fn_name": "f", "inputs": [[1]], "outputs": [[1, {}]]}),
    "noise in a result": ("def f(x): return [x + 0.2]", {"fn_name": "f", "inputs": [[0.1]], "outputs": [[0.3]]}),
    "a wrapped result": ("def f(x): return x + 1", {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[2], [3]]}),
    "a wrapped list": ("def f(x): return [x]", {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1]], [[2]]]}),
    "a list that is not wrapped": ("def f(x): return [x]", {"fn_name": "f", "inputs": [[1]], "outputs": [[1]]}),
    "LeetCode's types": (
        "class Solution:\n    def f(self, x: List[int], y: Optional[Dict[str, int]] = None) -> int: return sum(x)",
        {"fn_name": "f", "inputs": [[[1, 2]]], "outputs": [3]},
    ),
    "LeetCode's imports": (
        "@cache\ndef f(x):\n    heapq.heapify(a := [gcd(x, 4), inf, bisect.bisect([1], x), bisect_left([1], 0)])\n"
        "    return [heappop(a), pow(2, 3, 5), Counter('aa')['a'], len(deque([x])), reduce(operator.add, [1, x]),"
        " ascii_lowercase[0], *accumulate([1, 2]), math.floor(1.5), re.sub('a', 'b', 'a'), deepcopy([x]),"
        " collections.defaultdict(int)[0], sum(itertools.chain([1], [x])), datetime.date(2024, 1, x).day]",
        {"fn_name": "f", "inputs": [[2]], "outputs": [[0, 3, 2, 1, 3, "a", 1, 3, 1, "b", [2], 0, 3, 2]]},
    ),
    "large numbers": ("def f(x): return x * x", {"fn_name": "f", "inputs": [[10**400]], "outputs": [10**800]}),
}  # fmt: skip


def what_is_left() -> tuple[set[str], set[str], set[str]]:
    """Sandbox processes, children and descriptors of this process, and files that a program could have written."""
    processes, children = set(), set()
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc/self/task").glob("*/children")]:
        with suppress(OSError):  # processes and threads come and go
            text = path.read_bytes()
            if path.name == "children":
                children |= {f"child {number.decode()}" for number in text.split()}
            elif b"rewards/sandbox/launcher.py" in text or b"'program.py', 'exec'" in text:
                processes.add(str(path))
    files = {place for place in PLACES if (Path(place) / ESCAPE).exists()}
    return processes, children | {f"fd {d}" for d in os.listdir("/proc/self/fd")}, files


WRONG = {  # programs and tests
    "a lone surrogate": ("print('x')", {"inputs": [""], "outputs": ["\ud800"]}),
    "not even a number": ("print(float('nan'))", {"inputs": [""], "outputs": ["3"]}),
    "too large": ("print('1e400')", {"inputs": [""], "outputs": ["3.0"]}),
    "unwrapped once": ("def f(x): return x", {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2, 2]]}),
    "wrapped by the program": ("def f(x): return [x]", {"fn_name": "f", "inputs": [[1]], "outputs": [1]}),
    "nothing for an empty list": ("def f(x): return None", {"fn_name": "f", "inputs": [[1]], "outputs": [[]]}),
    "one of the lines": ("print(1)", {"inputs": [""], "outputs": [["1", "2"]]}),
    "a huge number for a fraction": ("def f(x): return 10**400", {"fn_name": "f", "inputs": [[1]], "outputs": [0.5]}),
    "infinity is expected": ("def f(x): return 1e308", {"fn_name": "f", "inputs": [[1]], "outputs": [float("inf")]}),
    "the next fraction": ("def f(x): return x", {"fn_name": "f", "inputs": [[1e9]], "outputs": [1e9 + 0.5]}),
}


def score(program: str, tests: object, limits: Limits = LIMITS, layers: frozenset[str] | None = None) -> float | None:
    """A program's reward; asserts that it kept to its limits and left nothing behind."""
    sandbox = Sandbox(limits, allow_weaker=True)
    sandbox.layers = layers or sandbox.layers
    before, started = what_is_left(), time.monotonic()
    reward = CodeReward(sandbox, workers=1)
    [value] = reward.grade([sample(program, tests)])
    assert time.monotonic() - started < limits.wall_seconds * len(tests["inputs"]) + SLACK_SECONDS
    assert what_is_left() == before
    assert reward.failures.total() == 0, reward.last_failure
    return value


def test_layers_of_this_machine(capsys):
    with capsys.disabled():
        print(f"\nsandbox: this machine reaches {sorted(detect_layers())}")
    assert detect_layers() <= PROBES.keys()


@full
@pytest.mark.parametrize("name", BREAKOUTS)
def test_nothing_breaks_out(name, monkeypatch):
    monkeypatch.setenv("R1JAX_SECRET", "42")
    assert score(attempt(BREAKOUTS[name]), PRINTS_42) == 0.0


@full
@pytest.mark.parametrize("name", ENDINGS)
def test_failing_programs_score_nothing(name):
    assert score(ENDINGS[name], PRINTS_42, SHORT) == 0.0


@full
@pytest.mark.parametrize("name", RETURNS)
def test_no_return_value_is_forged(name):
    assert score(RETURNS[name], ADD, SHORT) == 0.0


@full
@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_score(name):
    assert score(*RIGHT[name]) == 1.0


@full
@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_score_nothing(name):
    assert score(*WRONG[name]) == 0.0


def test_namespaces_without_seccomp():
    """Without seccomp programs can fork; the end of their process namespace kills all processes."""
    layers = frozenset({"namespaces", "limits"})
    if not layers <= detect_layers():
        pytest.skip(f"this kernel allows {sorted(detect_layers())} only")
    for name in ("daemon", "zombies", "fork"):
        score(attempt(BREAKOUTS[name]), PRINTS_42, SHORT, layers)  # may print, must leave nothing
    score(ENDINGS["fork bomb"], PRINTS_42, SHORT, layers)
    for name in (
        "kill the parent", "kill a process by number", "internet", "localhost", "DNS", "/etc/passwd", "the tests",
        "ptrace of the parent", "mount", "become root", "write outside", "limits of others",
    ):  # fmt: skip
        assert score(attempt(BREAKOUTS[name]), PRINTS_42, LIMITS, layers) == 0.0, name


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_descriptors_in_flight_do_not_hold_the_launcher(kind):
    """Without seccomp a program can send its pipes to itself: the kernel closes them some time after its end."""
    layers = frozenset({"namespaces", "limits"})
    if not layers <= detect_layers():
        pytest.skip(f"this kernel allows {sorted(detect_layers())} only")
    program = (
        f"import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.{kind})\n"
        "for s in (a, b): socket.send_fds(s, [b'x'], [1, 3, a.fileno(), b.fileno()])\n"
        "print(42, flush=True)"
    )
    assert score(program, PRINTS_42, SHORT, layers) == 1.0  # and asserts that it took its time and no more


@full
@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(0.5)",
        "import time\nwhile time.process_time() < 0.5: pass",
        "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(0.3)",
    ],
)
def test_all_tests_of_a_sample_share_one_budget(program):
    limits = replace(LIMITS, wall_seconds=2.0)
    reward, started = CodeReward(Sandbox(limits), workers=1), time.monotonic()
    tests = {"inputs": ["x"] * 20, "outputs": ["42"] * 20}
    [value] = reward.grade([sample(program + "\nprint(42)", tests)])
    assert value == 0.0
    assert time.monotonic() - started < limits.wall_seconds + SLACK_SECONDS


@full
def test_verdicts_do_not_depend_on_load():
    """A program that needs less time than the limit is right although others keep it from the cores for longer."""
    busy = [sys.executable, "-c", "while True: pass"]  # in sessions of their own, among which Linux shares the cores
    others = [subprocess.Popen(busy, start_new_session=True) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        started = time.monotonic()
        program = "import time\nwhile time.process_time() < 0.7: pass\nprint(42)"
        [value] = CodeReward(Sandbox(SHORT), workers=1).grade([sample(program, PRINTS_42)])
        assert value == 1.0
        if time.monotonic() - started < SHORT.wall_seconds:
            pytest.skip("the load kept nothing back")
    finally:
        for process in others:
            process.kill()
            process.wait()


def use_an_interpreter_for_all_users(monkeypatch):
    """Root's programs run as another user, who can't read an interpreter in root's home."""
    if os.getuid() == 0:
        python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        monkeypatch.setattr(sys, "_base_executable", python)


def test_other_layers_without_namespaces(monkeypatch):
    """In a container that forbids namespaces, programs still have one process, no network, no files, no signals."""
    layers = frozenset({"landlock", "limits", "seccomp"})
    use_an_interpreter_for_all_users(monkeypatch)
    try:
        ending = sandbox_module.launch("print(42)", "", LIMITS, layers)
    except RunError as error:
        pytest.skip(str(error))
    assert ending.stdout == b"42\n"
    for name in (
        "fork", "daemon", "shell", "kill the parent", "kill a process by number", "signal the tests' group", "internet",
        "localhost", "DNS", "/etc/passwd", "the tests", "the project", "home", "/proc of the parent",
        "memory of the parent", "ptrace of the parent", "write outside", "limits of others", "mount", "unshare",
        "socketpair", "a datagram to an abstract address", "signals of a pipe",
    ):  # fmt: skip
        assert score(attempt(BREAKOUTS[name]), PRINTS_42, LIMITS, layers) == 0.0, name
    with pytest.raises(BlockingIOError):
        DATAGRAMS.recv(16)
    assert score(*RIGHT["print"], LIMITS, layers) == 1.0


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """A launcher that can't make namespaces itself, as on a kernel that allows them to bubblewrap only."""
    use_an_interpreter_for_all_users(monkeypatch)
    source = sandbox_module.LAUNCHER.read_text()
    unshare = 'call("unshare", '
    assert source.count(unshare) == 1
    launcher = tmp_path / "rewards/sandbox/launcher.py"  # `what_is_left` looks for this suffix
    launcher.parent.mkdir(parents=True)
    launcher.write_text(source.replace(unshare, 'raise PermissionError("unshare is refused")\n    print('))
    monkeypatch.setattr(sandbox_module, "LAUNCHER", launcher)
    detect_layers.cache_clear()
    yield launcher
    detect_layers.cache_clear()


@pytest.fixture
def bubblewrap(refused):
    """All layers, with namespaces made by bubblewrap; skips where that is impossible."""
    if not Path("/usr/bin/bwrap").exists():
        pytest.skip("bubblewrap isn't installed")
    if (FULL | {"bubblewrap"}) - detect_layers():
        pytest.skip(f"this kernel refuses bubblewrap, too: {sandbox_module.explain_missing(FULL)}")
    return detect_layers()


def test_bubblewrap_replaces_the_launchers_namespaces(bubblewrap):
    assert Sandbox().layers == bubblewrap >= FULL | {"bubblewrap"}
    for name in sorted({*list(BREAKOUTS)[::2]} - {"many small files"}):  # bubblewrap doesn't limit the number of files
        assert score(attempt(BREAKOUTS[name]), PRINTS_42) == 0.0, name
    for name in (
        "infinite output", "infinite reply", "the answer, then a loop", "closed outputs, then sleep", "fork bomb",
        "thread bomb", "ignores every signal", "stops itself", "segmentation fault", "raises at exit",
    ):  # fmt: skip
        assert score(ENDINGS[name], PRINTS_42, SHORT) == 0.0, name
    for name, (program, tests) in RIGHT.items():
        assert score(program, tests) == 1.0, name
    for program, reason in (
        ("print(1)", "exit"),
        ("while True: pass", "cpu time"),
        ("import ctypes; ctypes.string_at(0)", "signal"),
    ):
        assert Sandbox(LIMITS).run(program).reason == reason, program


def test_bubblewrap_without_seccomp_and_landlock(bubblewrap):
    layers = bubblewrap - {"seccomp", "landlock"}
    for program in (attempt(BREAKOUTS["daemon"]), attempt(BREAKOUTS["zombies"]), ENDINGS["fork bomb"]):
        score(program, PRINTS_42, SHORT, layers)  # may print, must leave nothing
    for name in (
        "kill a process by number", "internet", "localhost", "DNS", "/etc/passwd", "the tests", "the sandbox's code",
        "home", "/proc by number", "/dev", "write outside", "write to the interpreter", "make the root writable",
        "fill the disk in many files", "many threads", "mount", "remount", "umount", "become root",
    ):  # fmt: skip
        assert score(attempt(BREAKOUTS[name]), PRINTS_42, LIMITS, layers) == 0.0, name


def test_the_error_names_missing_bubblewrap(refused):
    refused.write_text(refused.read_text().replace("/usr/bin/bwrap", "/nowhere/bwrap"))
    assert not detect_layers() & {"namespaces", "bubblewrap"}
    with pytest.raises(RunError, match="namespaces.*unshare is refused.*/nowhere/bwrap.*allow_weaker"):
        Sandbox()


def test_other_users_than_root():
    """Other users than root make namespaces within a user namespace; the other tests run as the current user."""
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if os.getuid() != 0 or not Path(python).exists() or not os.access(ROOT, os.R_OK):
        pytest.skip("the other tests cover this user" if os.getuid() else f"no {python}")
    attacks = [attempt(body) for body in BREAKOUTS.values()]
    code = (
        "import json, sys\nfrom concurrent.futures import ThreadPoolExecutor\nsys.path.insert(0, sys.argv[1])\n"
        "from r1jax.rewards.sandbox import *\n"
        "sandbox = Sandbox(Limits(**json.loads(sys.argv[2])), required=())\n"
        "endings = ThreadPoolExecutor(2).map(sandbox.run, json.load(sys.stdin))\n"
        "print(json.dumps([sorted(sandbox.layers), [ending.stdout.decode() for ending in endings]]))"
    )
    done = subprocess.run(
        [python, "-B", "-c", code, str(ROOT), json.dumps(asdict(LIMITS))],
        input=json.dumps(["print(42)", *attacks]), capture_output=True, text=True, user=65534, group=65534,
        extra_groups=[], cwd="/", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"an ordinary user can't run it here: {done.stderr.strip()[-200:]}")
    layers, (right, *attacked) = json.loads(done.stdout)
    if FULL - set(layers):
        pytest.skip(f"this kernel allows ordinary users {layers} only")
    assert right == "42\n"
    assert [name for name, output in zip(BREAKOUTS, attacked, strict=True) if "42" in output] == []


def test_missing_required_layers_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox_module, "detect_layers", lambda: frozenset({"limits", "seccomp"}))
    with pytest.raises(RunError, match="namespaces.*limits, seccomp.*allow_weaker"):
        Sandbox()
    assert Sandbox(allow_weaker=True).layers == {"limits", "seccomp"}
    assert Sandbox(required={"seccomp"}).layers == {"limits", "seccomp"}
    monkeypatch.setattr(sandbox_module, "detect_layers", frozenset)
    with pytest.raises(RunError, match="limits.*allow_weaker"):
        Sandbox(required={"limits"})


@full
def test_reasons():
    sandbox = Sandbox(replace(LIMITS, wall_seconds=10.0))
    for program, reason, status in (
        ("print(1)", "exit", 0), ("1/0", "exit", 1), ("raise SystemExit(7)", "exit", 7),
        ("while True: pass", "cpu time", -signal.SIGKILL), ("while True: print(1)", "output", -signal.SIGKILL),
        ("import ctypes; ctypes.string_at(0)", "signal", -signal.SIGSEGV),
    ):  # fmt: skip
        ending = sandbox.run(program)
        assert (ending.reason, ending.status) == (reason, status), program
    assert Sandbox(SHORT).run("import time; time.sleep(9)").reason == "wall time"


@full
def test_a_batch_runs_in_parallel_and_keeps_its_order():
    programs = ["print(42)", "print(43)", "while True: pass", "print(42)"] * 3
    reward = CodeReward(Sandbox(SHORT), workers=4)
    threads, before = threading.active_count(), what_is_left()
    assert reward.grade([sample(p, PRINTS_42) for p in programs]) == [1.0, 0.0, 0.0, 1.0] * 3
    assert (threads, before) == (threading.active_count(), what_is_left())


def test_a_sandbox_that_fails_gives_none_and_is_counted(monkeypatch, tmp_path):
    reward = CodeReward(Sandbox(LIMITS, allow_weaker=True))
    broken = tmp_path / "launcher.py"
    broken.write_text("import sys\nsys.exit('no room')")
    monkeypatch.setattr(sandbox_module, "LAUNCHER", broken)
    right = sample("print(42)", PRINTS_42)
    assert reward.grade([right, SimpleNamespace(problem=problem(PRINTS_42), text="no code")]) == [None, 0.0]
    assert reward.failures == {"sandbox_failures": 1}
    assert "no room" in reward.last_failure


@full
def test_a_killed_trainer_leaves_nothing():
    killed_trainer("")


def test_a_killed_trainer_leaves_nothing_in_bubblewrap(bubblewrap):
    killed_trainer(
        f"import sys\nfrom r1jax.rewards import sandbox\nsys._base_executable = {sys._base_executable!r}\n"
        f"sandbox.LAUNCHER = {str(sandbox_module.LAUNCHER)!r}\n"
    )


def killed_trainer(first):
    before = what_is_left()
    program = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(60)"  # undoes PR_SET_PDEATHSIG
    code = (
        first + f"from r1jax.rewards.sandbox import *\nprint(detect_layers(), flush=True)\nSandbox().run({program!r})"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    deadline = time.monotonic() + 5
    while len(what_is_left()[0]) < 2 + len(before[0]) and time.monotonic() < deadline:  # the launcher and the program
        time.sleep(0.02)
    assert len(what_is_left()[0]) >= 2 + len(before[0])
    time.sleep(0.5)  # lets the program try
    trainer.kill()
    trainer.communicate()
    while what_is_left() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what_is_left() == before


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nx\n```", "x\n"),
        ("```python\nx\n```\n```python\ny\n```", "y\n"),
        ("```python\nx\n```\n```cpp\ny\n```", "x\n"),
        ("```Python\nx\n```", "x\n"),
        ("```PYTHON3\nx\n```\n", "x\n"),
        ("``` python\nx\n```", "x\n"),
        ('```python title="a.py"\nx\n```', "x\n"),
        ("```{.python}\nx\n```", "x\n"),
        ("```python3.12\nx\n```", "x\n"),
        ("~~~python\nx\n~~~", "x\n"),
        ("~~~\nx\n~~~", "x\n"),
        ("~~~python\nx\n```", None),
        ("````python\nx = (\n```\n)\n````", "x = (\n```\n)\n"),
        ("```\nx\n```", "x\n"),
        ("```\nprint(1)\n```\nIt prints:\n```\n1\n```", "print(1)\n"),
        ("```\n1\n```\nis printed by\n```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\nIt prints:\n```\n1\n```", "print(1)\n"),
        ("```cpp\nx\n```", None),
        ("```text\nx\n```", None),
        ("1. It is\n   ```python\n   if x:\n     y\n   ```", "if x:\n  y\n"),
        ("<answer>```python\nx\n```</answer>", "x\n"),
        ("`" * 100_000 + "\n" + "```" + "a" * 100_000 + "`", None),
        ("```python\nx\n```\n```python\ny", "x\n"),  # truncated: the last closed block
        ("```py\nx\n```", "x\n"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("<think>\n```python\nx\n```\n</think> no", None),  # thinking is ignored
        ("<think> a </think> <answer>\n```python\nx\n```\n</answer>", "x\n"),
        ("<think> a </think> <answer>print(1)</answer>", "print(1)"),
        ("<answer>print(1)</answer> <answer>print(2)</answer>", None),
        ("<answer></answer>", None),
        ("```python\n", None),
        ("print(1)", None),
        ("", None),
        ("```python\n" * 30000, None),
    ],
)  # fmt: skip
def test_extract_program(response, program):
    assert extract_program(response) == program


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.30000000000000004", "0.3"), ("3.0", "3"), ("-3.00", "-3"), ("3", "3.0"), ("3.50", "3.5"), ("-0.0", "0"),
        ("2.9999999999999996", "3.0"), ("1e-17", "0.0"), ("1e-05", "0.00001"), ("0.333333", "0.3333333333333333"),
        ("0.3333333333333333", "0.333333"), ("[0.30000000000000004, 1.0]", "[0.3, 1]"), ("x=3.0;", "x=3;"),
        ("1 0.1\n2.0 3", "1.0 0.1\n2 3"), ("\ud800", "\ud800"), ("9" * 2000 + ".5", "9" * 2000 + ".5"),
    ],
)  # fmt: skip
def test_numbers_that_are_the_same(printed, expected):
    assert prints(printed.encode("utf-8", "surrogatepass"), expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("3.5", "3"), ("nan", "3.0"), ("nan", "nan.0"), ("inf", "3.0"), ("1e400", "3.0"), ("-3.0", "3"), ("30", "3"),
        ("3.0000000001", "3"), ("3e0", "3"), ("3.", "3.0"), ("0x3", "3"), ("03", "3"), ("03.0", "3"), ("1_0.0", "10"),
        ("1.0", "true"), ("True", "1"), ("١.0", "1"), ("1.2.30", "1.2.3"), ("0.31", "0.3"), ("0.3000001", "0.3"),
        ("0.0", "0.0000001"), ("0.000002", "0.000001"), ("1000000000.5", "1000000000.0"), ("2.504", "2.50"),
        ("3.14", "3.14159265"), ("1e-05", "1e05"), ("0.3", "0.3 0.4"), ("0.3  0.4", "0.30 0.4"), ("0.3\n0.4", "0.3"),
        ("1e99999999999999999999", "1.0"), ("9" * 1_100_000, "9.5"), ("x", "\ud800"), ("99.5", "100"),
    ],
)  # fmt: skip
def test_numbers_that_are_not(printed, expected):
    assert not prints(printed.encode("utf-8", "surrogatepass"), expected)


@pytest.mark.parametrize(
    "answer",
    ["", "2", "[]", "{}", "null", '{"inputs": [], "outputs": []}', '{"inputs": ["1"], "outputs": []}',
     '{"inputs": [1], "outputs": ["1"]}', '{"inputs": ["1"], "outputs": [1]}', '{"inputs": "1", "outputs": "1"}',
     '{"fn_name": "f", "inputs": ["1"], "outputs": [1]}'],
)  # fmt: skip
def test_malformed_tests_are_refused(answer):
    with pytest.raises(UsageError, match="problem 0"):
        parse_tests(Problem(0, "", answer, "en"))


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1, True), (1, 1.0, True), (True, 1, False), (1, True, False), (None, None, True), (None, 0, False),
        ("1", 1, False), ([1], [1], True), ([1], [1, 1], False), ([True], [1], False), ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 1}, False), ({"a": True}, {"a": 1}, False), ("", [], False),
        (float("nan"), float("nan"), False), (0.1 + 0.2, 0.3, False),
    ],
)  # fmt: skip
def test_same(value, expected, equal):
    assert same(value, expected) is equal


def test_the_notice_has_the_layers():
    sandbox = Sandbox(allow_weaker=True)  # not all machines that run the tests have every layer
    reward = Reward(CodeReward(sandbox), 1.0)
    assert all(layer in reward.notice for layer in sandbox.layers)
    assert by_source({"code": CodeReward(sandbox)}, 1.0).notice == reward.notice
