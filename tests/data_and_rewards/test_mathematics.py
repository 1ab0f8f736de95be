"""Mathematics: a table of responses, GSM8K, noise; and workers that hang, die and exhaust memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1jax.errors import RunError
from r1jax.rewards.mathematics import MathVerifier, decide, explodes, extract_answer, last_number, number, read
from r1jax.rewards.workers import Workers
from r1jax.types import Problem
from tests.conftest import ROOT
from tests.shared.deepseek_tokens import gsm8k_rows
from tests.shared.samples import make_sample


def thought(answer: str, thinking: str = "x") -> str:
    return f"<think> {thinking} </think> <answer> {answer} </answer>"


EXTRACTION = [  # response, extracted answer
    (thought("42"), "42"),
    (thought(r"so it is \boxed{42}"), "42"),
    (thought(r"\boxed{42} and again \boxed{42}"), "42"),
    (thought(r"\boxed{42} or \boxed{43}"), None),
    (thought(r"\boxed{\boxed{42}}"), "42"),
    (thought(r"\boxed{\frac{1}{\sqrt{2}}}"), r"\frac{1}{\sqrt{2}}"),
    (thought(r"\boxed{\{1, 2\}}"), r"\{1, 2\}"),
    (thought(r"\boxed{42"), None),
    (thought(r"\boxed 42"), None),
    (thought(r"\boxed{}"), None),
    (thought(r"\fbox{42}"), "42"),
    (thought(""), None),
    (thought(" \n\t "), None),
    ("<answer>42</answer>", "42"),
    ("<answer>42", None),
    ("42</answer>", None),
    ("</answer>42<answer>", None),
    ("<answer>1</answer><answer>1</answer>", None),
    ("<answer><answer>42</answer></answer>", None),
    ("<answer>1</answer> \\boxed{2}", "1"),
    (r"first \boxed{1}, then \boxed{2}", "2"),
    (r"\boxed{1} \boxed{2", None),
    (r"It is \boxed{x = \boxed{2}}.", "2"),
    ("2 + 2 = <<2+2=4>>4\n#### 4", "4"),
    ("#### 4\nno,\n#### 5 ", "5"),
    ("####", None),
    ("####  \n", None),
    ("42", None),
    ("The answer is 42.", None),
    ("", None),
    ("<think> <answer>42</answer> </think>", None),
    (r"<think> \boxed{42} </think> done", None),
    (r"<think> \boxed{42}", None),
    (r"</think> \boxed{42}", "42"),
    (r"<answer>42</answer> <think> hm", "42"),
    ("<think> a </think> <answer>1</answer> </think> <answer>2</answer>", "2"),
    ("<think> a </think> <answer> answer here </answer> <think> b </think> <answer>2</answer>", "2"),
    ("<ANSWER>42</ANSWER>", None),
    ("\\boxed{" * 20_000, None),
    (thought("\\boxed{" * 20_000 + "}" * 20_000), None),
]


@pytest.mark.parametrize(("response", "answer"), EXTRACTION, ids=lambda text: repr(text)[:40])
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response, answer",
    [
        ("5 bags of 3 is 15.", "15"),
        ("x=-4", "-4"),
        ("10-3=7", "7"),
        ("from 2-3", "3"),
        ("it costs $1,234.50 in all", "1,234.50"),
        ("so 7/2", "7/2"),
        ("**12** apples", "12"),
        ("60 km/h", "60"),
        ("v2 is none", None),
        ("none", None),
    ],
)
def test_the_last_number(response, answer):
    assert last_number(response) == answer
    with MathVerifier(processes=1, extract=last_number) as verifier:
        assert verifier.verify([(response, answer or "2")]) == [float(answer is not None)]


PLAIN = [  # answer, gold, verdict; decided without sympy
    ("42", "42", 1),
    ("42.", "42", 1),
    (" +042 ", "42", 1),
    ("42.0", "42", 1),
    ("42.000001", "42", 0),
    ("-42", "42", 0),
    ("- 42", "-42", 1),
    ("−42", "-42", 1),  # the sign U+2212
    ("-0", "0", 1),
    ("0.0000001", "0", 0),  # math-verify would round it
    ("--42", "42", 0),
    ("0.0", "10^{-7}", 0),
    ("10^6", "1000000", 1),
    ("1,234", "1234", 1),
    ("1234", "1,234", 1),
    ("1{,}234", "1234", 1),
    (r"1\,234", "1234", 1),
    ("1,23", "123", 0),
    ("12,34", "1234", 0),
    ("1,2345", "12345", 0),
    ("0,123", "123", 0),
    ("1 234", "1234", 0),
    ("4 5", "9", 0),  # math-verify reads it as 4 + 5
    ("4 5", "20", 0),
    ("42 42", "42", 0),
    (".5", "0.5", 1),
    ("1/2", "0.5", 1),
    (r"\frac{1}{2}", "0.5", 1),
    (r"\dfrac12", "1/2", 1),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", 1),
    ("2/4", "1/2", 1),
    ("0.333", "1/3", 0),
    ("0.333333333", r"\frac{1}{3}", 0),
    ("1 1/2", "3/2", 1),
    (r"1\frac{1}{2}", "1.5", 1),
    (r"\frac{1}{2}5", "1/25", 0),
    ("1/0", "1", 0),
    (r"\frac{0}{0}", "0", 0),
    (r"3 \times 10^5", "300000", 1),
    (r"3 \times 10^{-2}", "0.03", 1),
    ("50%", "50", 1),
    ("50", r"50\%", 1),
    (r"50\%", r"\frac{1}{2}", 1),
    ("50 percent", "0.5", 1),
    ("0.5", "50%", 1),
    ("0.5", "50", 0),
    ("0.5%", "0.5", 0),
    ("5%", "50%", 0),
    ("$42", "42", 1),
    (r"\$1,234.50", "1234.5", 1),
    ("$42$", "42", 1),
    (r"\(42\)", "42", 1),
    (r"\[ 42 \]", "42", 1),
    ("**42**", "42", 1),
    (r"\text{42}", "42", 1),
    ("42 dollars", "42", 1),
    ("42 cm", "42", 1),
    ("42cm", r"42\text{ cm}", 1),
    (r"42\text{ cm}^2", r"42 \mathrm{cm}^{2}", 1),
    ("42 cm", r"42\text{ km}", 0),
    (r"42\text{ cm}", r"42\text{ cm}^2", 0),
    ("42 miles per hour", "42", 1),
    (r"42^\circ", "42", 1),
    ("42°", r"42^{\circ}", 1),
    ("42 thousand", "42", 0),
    (r"42\text{ million}", "42", 0),
    ("42 squared", "42", 0),
    ("42 or more", "42", 0),
    ("42 is wrong and it is nine", "42", 0),
    ("6xy", "6", 0),
    ("6", "6xy", 0),
    ("2 sin x", "2", 0),
    ("x = 42", "42", 1),
    ("42", "x = 42", 1),
    ("y = 42", "x = 42", 0),
    ("x = 42 = 43", "42", 0),
    ("41 = 42", "42", 0),
    ("٤٢", "42", 1),  # Arabic digits, and they are 42
    ("４２", "42", 1),  # noqa: RUF001
    ("4²", "42", 0),  # superscript
    ("4²", "4", 0),
    ("Ⅳ", "4", 0),
    ("④", "4", 0),
    ("½", "1/2", 0),
    ("1О", "10", 0),  # noqa: RUF001  a Cyrillic letter
    ("l0", "10", 0),
    ("forty-two", "42", 0),
    ("1+1", "2", 0),  # restates the question
    ("6*7", "42", 0),
    (r"6 \cdot 7", "42", 0),
    ("3!", "6", 0),
    (r"\sum_{k=1}^{8} k", "36", 0),
    (r"\int_0^1 2x \, dx", "1", 0),
    (r"\approx 42", "42", 0),
    (r"42 \approx 43", "42", 0),
    ("42 or 43", "42", 0),
    (r"42 \text{ or } 43 \text{ or } 44", "42", 0),
    ("either 42 or 42", "42", 0),
    ("maybe 42", "42", 0),
    ("42?", "42", 0),
    ("A or B or C", "A", 0),
    ("A", "A", 1),
    ("(A)", "A", 1),
    ("Monday", r"\text{Monday}", 1),
    ("monday", "Monday", 1),
    ("Friday", "Monday", 0),
    ("not Monday", "Monday", 0),
    ("Monday or Friday", "Monday", 0),
    ("9**9**9**9", "42", 0),
    ("9^{9^{9^9}}", r"\sqrt{2}", 0),
    ("((9^{99})^{99})^{9999}", r"\sqrt{2}", 0),
    ("9^{999999999}", r"\sqrt{2}", 0),
    (r"9^\frac{999999999}{1}", r"\sqrt{2}", 0),
    ("((9!)!)!", r"\sqrt{2}", 0),
    ("99999!", r"\sqrt{2}", 0),
    ("9^{99!}", r"\sqrt{2}", 0),
    ("(" * 500 + "1" + ")" * 500, r"\sqrt{2}", 0),
    (r"\frac{1}{" * 60 + "2" + "}" * 60, r"\sqrt{2}", 0),
    (r"\sqrt{2}" * 2000, r"\sqrt{2}", 0),
    ("9" * 100_000, "9", 0),
    ("42" + " " * 5000 + "or 43", "42", 0),
    ("4}{2", "4", 0),
    ("4}, {2", "4", 0),
    ("__import__('os').system('true')", "42", 0),
    ("\x00", "42", 0),
    ("answer here", "42", 0),
    ("What is 6 times 7?", "42", 0),
]

ALGEBRA = [  # answer, gold, verdict; decided by math-verify
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1),
    (r"\frac{\sqrt{3}}{2}", r"\frac{1}{\sqrt{2}}", 0),
    (r"2\sqrt{3}", r"\sqrt{12}", 1),
    (r"2\pi", r"\pi \cdot 2", 1),
    ("3.141593", r"\pi", 1),  # math-verify rounds to six places
    ("3.1416", r"\pi", 0),
    ("x + 1", "1 + x", 1),
    ("x + 1", "x - 1", 0),
    ("(x-1)(x+1)", "x^2 - 1", 1),
    ("y = 2x + 1", "y = 1 + 2x", 1),
    ("y = 2x + 1", "y = 2x - 1", 0),
    (r"\{1, 2, 3\}", r"\{3, 2, 1\}", 1),
    ("1, 2, 3", r"\{3, 1, 2\}", 1),
    ("1, 2", r"\{3, 1, 2\}", 0),
    ("1, 2, 3", "1", 0),
    ("2 or 1", "1, 2", 1),
    ("2 and 1", "1, 2", 1),
    ("[1, 2)", r"\left[1, 2\right)", 1),
    ("[1, 2]", "[1, 2)", 0),
    ("(1, 2)", "(2, 1)", 0),
    (r"(-\infty, 3]", r"(-\infty,3]", 1),
    (r"(-\infty, 1) \cup (2, \infty)", r"(2,\infty) \cup (-\infty,1)", 1),
    (r"1 \le x \le 2", "[1, 2]", 1),
    (r"x \in [1, 2]", "[1, 2]", 1),
    (r"33\frac{1}{3}\%", r"\frac{1}{3}", 1),
    (r"\frac{\pi}{2}\text{ cm}", r"\frac{\pi}{2}", 1),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ km}", 0),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1),
    (r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", 0),
    ("2 + 3i", "3i + 2", 1),
    ("2 - 3i", "3i + 2", 0),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}", 1),
    ("2^{10}", "1024", 1),
    ("2t", "2", 0),
    ("2t", "2c", 0),
    (r"e^{x^2}", r"e^{x^{2}}", 1),
    (r"\frac{x}{0}", r"\sqrt{2}", 0),
    ("A, B", "A", 0),
    ("the answer is b", "b", 0),
    (r"\text{B}", "B", 1),
    ("__import__('os')", r"\sqrt{2}", 0),
    (r"\input{/etc/passwd}", r"\sqrt{2}", 0),
    (r"\sqrt{", r"\sqrt{2}", 0),
    ("√2", r"\sqrt{2}", 0),
]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(processes=2, seconds=20.0) as verifier:
        yield verifier
        assert verifier.workers.timeouts == 0


@pytest.mark.parametrize(("answer", "gold", "right"), PLAIN + ALGEBRA, ids=lambda text: repr(text)[:40])
def test_answers(verifier, answer, gold, right):
    for response in (thought(answer), thought("$" + answer + "$") if "$" not in answer else thought(answer)):
        assert verifier.verify([(response, gold)]) == [right]


def test_boxes_and_final_lines_are_graded_alike(verifier):
    rows = [row for row in PLAIN + ALGEBRA if not {"{", "}"} & set(row[0])]
    assert verifier.verify([(rf"so \boxed{{{a}}}", gold) for a, gold, _ in rows]) == [right for _, _, right in rows]
    rows = [row for row in PLAIN if "\n" not in row[0]]
    assert verifier.verify([(f"#### {a}", gold) for a, gold, _ in rows]) == [right for _, _, right in rows]


def test_no_sympy_for_numbers_and_bombs():
    asked = [(a, gold) for a, gold, _ in PLAIN if len(a) <= 1000 and decide(read(a), read(gold)) is None]
    assert all(number(read(a).value) is None or number(read(gold).value) is None for a, gold in asked)
    assert not [a for a, _ in asked if "9^" in a or "9**" in a or "!" in a]
    assert not explodes("2^{100} + 3^{100} + x^2 - e^{-x^2}")


def test_wrong_in_the_thinking_right_in_the_answer(verifier):
    response = thought("42", thinking=r"<answer>41</answer> \boxed{40} #### 39")
    assert verifier.verify([(response, "42"), (response, "41"), (response, "40"), (response, "39")]) == [1, 0, 0, 0]


def test_no_gold_answer_is_not_applicable(verifier):
    assert verifier.verify([(thought("42"), ""), (thought("42"), " "), (thought("42"), "42")]) == [None, None, 1]
    assert verifier.verify([]) == []


def test_reward_of_a_sample_and_of_a_batch(verifier):
    samples = [
        make_sample(Problem(i, "6 * 7?", "42", "en"), thought(answer)) for i, answer in enumerate(("42", "43", "6 * 7"))
    ]
    assert verifier.grade(samples) == [1, 0, 0]
    assert [verifier.grade([sample])[0] for sample in samples] == [1, 0, 0]


def test_an_answer_that_makes_the_verifier_hang_is_wrong_and_counted():
    slow = " + ".join(rf"\frac{{\sqrt{{{n}}} x}}{{{n + 1}}}" for n in range(2, 40))  # takes long
    question = (thought(slow), r"\sqrt{2} x")
    with MathVerifier(processes=1, seconds=20.0) as verifier:
        verifier.workers.seconds = 0.0
        assert verifier.verify([question, (thought("42"), "42")]) == [0.0, 1.0]  # the gold beside it does not hang
        assert verifier.failures == {"timeouts": 1, "crashes": 0}
        verifier.workers.seconds = 20.0
        assert verifier.verify([question]) == [0.0]


PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "}", "{", "####", "42", "4", "1/2", ".", ",", " ", "\n",
    "\\", "$", "%", "^", "^{", "**", "!", "(", ")", "[", "]", r"\frac", r"\sqrt", r"\text{", "or", "x", "=", "<", "cm",
    "-", r"\infty", r"\cup", r"\pm", "_", "&", "\x00", "𝟚", "٢", "\ud800", "√", "'", '"', "|", "#", "~", r"\left",
    r"\begin{pmatrix}",
]  # fmt: skip
NOISE = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
@given(
    noise=NOISE, gold=st.sampled_from(["42", r"\frac{1}{2}", r"\sqrt{2}", "[1, 2)", r"\{1, 2\}", "x + 1", "B", "50%"])
)
def test_noise(verifier, noise, gold):
    values = verifier.verify([(noise, gold), (thought(noise), gold), (rf"\boxed{{{noise}}}", gold), (noise, noise)])
    assert set(values) <= {0.0, 1.0, None}


@pytest.fixture(scope="module")
def gsm8k() -> list[dict[str, str]]:
    return gsm8k_rows()


def test_gsm8k(verifier, gsm8k):
    golds = [row["answer"].rpartition("####")[2].strip() for row in gsm8k]
    assert verifier.verify([(row["answer"], gold) for row, gold in zip(gsm8k, golds, strict=True)]) == [1.0] * len(
        golds
    )
    for form in (thought, r"\boxed{{{}}}".format):
        assert verifier.verify([(form(gold), gold) for gold in golds]) == [1.0] * len(golds)
    others = golds[1:] + golds[:1]
    equal = [float(a.replace(",", "")) == float(b.replace(",", "")) for a, b in zip(golds, others, strict=True)]
    assert 0 < sum(equal) < len(golds) / 10
    assert verifier.verify([(thought(a), b) for a, b in zip(golds, others, strict=True)]) == equal


# ---- workers

OBEY = "tests.shared.worker_tasks:obey"
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def children() -> set[int]:
    """Child processes, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":  # an orphan that init will reap
            return True
        time.sleep(0.05)
    return False


@linux
def test_workers_keep_order_and_leave_nothing():
    before, files = children(), open_files()
    with Workers(OBEY, 2, seconds=20.0) as workers:
        assert workers.map([["double", i] for i in range(200)]) == [2 * i for i in range(200)]
        assert workers.map([]) == []
        there = children() - before
        assert set(workers.map([["pid", 0]] * 40)) <= there
        assert children() - before == there, "workers are used again"
        assert 0 < workers.startup_seconds < 120
        assert (workers.timeouts, workers.crashes) == (0, 0)
    workers.close()
    assert children() == before
    assert open_files() == files
    with pytest.raises(ValueError, match="closed"):
        workers.map([["double", 1]])


BAD = [
    (["spin", 0], "timeouts"),
    (["sleep", 1000], "timeouts"),
    (["ignore signals", 0], "timeouts"),
    (["kill", 0], "crashes"),
    (["exit", 0], "crashes"),
    (["raise", "x" * 1_000_000], "crashes"),
    (["eat memory", 8 << 30], "crashes"),
    (["recurse", 0], "crashes"),
    (["not json", 0], "crashes"),
]


@linux
@pytest.mark.parametrize(("task", "counter"), BAD, ids=lambda x: str(x)[:20])
def test_a_bad_task_fails_alone(task, counter):
    before, files = children(), open_files()
    with Workers(OBEY, 2, seconds=1.0, memory=1 << 30) as workers:
        good = [["double", i] for i in range(10)]
        assert workers.map([*good[:5], task, *good[5:]]) == [0, 2, 4, 6, 8, None, 10, 12, 14, 16, 18]
        assert {"timeouts": workers.timeouts, "crashes": workers.crashes} == {"timeouts": 0, "crashes": 0, counter: 1}
        assert workers.map(good) == [2 * i for i in range(10)]
    assert children() == before
    assert open_files() == files


@linux
def test_a_worker_that_gets_no_core_is_waited_for():
    with Workers(OBEY, 1, seconds=0.2) as workers:
        [pid] = workers.map([["pid", 0]])
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (pid, signal.SIGCONT)).start()
        start = time.monotonic()
        assert workers.map([["double", 1], ["pid", 0]]) == [2, pid]
        assert time.monotonic() - start > 1.5
        assert (workers.timeouts, workers.crashes) == (0, 0)


def test_time_is_cpu_time():
    with Workers(OBEY, 1, seconds=0.5) as workers:
        assert workers.map([["sleep", 0.7], ["spin", 0], ["sleep", 0.7]]) == [None] * 3  # sleeping returns None
        assert (workers.timeouts, workers.crashes) == (1, 0)


@linux
def test_time_is_limited_where_the_caller_ignores_the_signal():
    """As a process does that has loaded libtpu."""
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with Workers(OBEY, 1, seconds=0.5) as workers:
            assert workers.map([["spin", 0], ["double", 1]]) == [None, 2]
            assert (workers.timeouts, workers.crashes) == (1, 0)
    finally:
        signal.signal(signal.SIGPROF, before)


def test_every_task_bad():
    with Workers(OBEY, 2, seconds=20.0) as workers:
        assert workers.map([["kill", 0]] * 5) == [None] * 5
        assert workers.crashes == 5


def test_prints_of_a_task_are_not_its_result():
    with Workers(OBEY, 1, seconds=20.0) as workers:
        assert workers.map([["print", 1], ["double", 2]]) == [1, 4]


def test_large_items_and_results():
    with Workers(OBEY, 1, seconds=20.0) as workers:
        assert workers.map([["double", "x" * 500_000]]) == ["x" * 1_000_000]


def test_a_worker_killed_between_two_calls_costs_one_item_at_most():
    with Workers(OBEY, 1, seconds=20.0) as workers:
        [pid] = workers.map([["pid", 0]])
        os.kill(pid, signal.SIGKILL)
        results = workers.map([["double", 1], ["double", 2]])
        assert results == [None, 4] and workers.crashes == 1


def test_from_any_thread_and_several_at_once():
    results = {}
    with Workers(OBEY, 2, seconds=2.0) as workers:

        def work(name: int) -> None:
            results[name] = workers.map([["double", name], ["spin", 0], ["double", -name]])

        threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert workers.timeouts == 2
    assert results == {name: [2 * name, None, -2 * name] for name in range(2)}


@pytest.mark.parametrize("function", ["tests.shared.worker_tasks:nothing", "no_such_module:obey", "os:_exit"])
def test_a_worker_that_cannot_start_is_an_error(function):
    with Workers(function, 1, seconds=5.0) as workers:
        if function == "os:_exit":  # starts, and exits on each item
            assert workers.map([1, 2]) == [None, None]
            return
        with pytest.raises(RunError, match=function):
            workers.map([1])


@linux
def test_an_interrupted_call_leaves_no_stale_result(monkeypatch):
    import r1jax.rewards.workers as module

    with Workers(OBEY, 2, seconds=20.0) as workers:
        workers.map([["double", 0]] * 8)
        real = module.wait

        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.map([["double", i] for i in range(4)])
        monkeypatch.setattr(module, "wait", real)
        assert workers.map([["double", i] for i in range(10, 14)]) == [20, 22, 24, 26]


OWNER = """
import os, sys, time
from r1jax.rewards.workers import Workers
workers = Workers("tests.shared.worker_tasks:obey", 2, seconds=2.0)
print(*set(workers.map([["pid", 0]] * 50)), flush=True)
if sys.argv[1] == "killed":
    import threading
    threading.Thread(target=workers.map, args=([["spin", 0]] * 2,), daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
"""


@linux
@pytest.mark.parametrize("end", ["exits", "killed"])
def test_workers_end_with_their_owner(end):
    owner = subprocess.run([sys.executable, "-c", OWNER, end], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert owner.returncode == {"exits": 0, "killed": -9}[end], owner.stderr
    pids = [int(pid) for pid in owner.stdout.split()]
    assert pids and all(gone(pid, seconds=20.0) for pid in pids)


def test_a_worker_knows_no_jax():
    code = (
        "import sys, r1jax.rewards.equality; sys.exit(bool({'jax', 'numpy', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
