r"""Verifications per second: plain numbers, and LaTeX, of which expressions with variables need sympy.

python benchmarks/verifier.py

LaTeX answers are all different here, and spelled otherwise than the gold answer. "As in RL" are groups of 16 outputs
with 3 different answers; a quarter of the problems have LaTeX answers.
"""

import random
import time

from r1jax.rewards.mathematics import MathVerifier

FORMS = (
    (r"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", r"\frac{{\sqrt{{{b}}} \cdot {a}}}{{{c}}}"),
    (r"{a}x^2 + {b}x - {c}", r"-{c} + {b}x + {a}x^2"),
    (r"[-{a}, {b})", r"\left[-{a}, {b}\right)"),
    (r"\{{ {a}, {b}, x \}}", r"\{{ x, {b}, {a} \}}"),
    (r"x = \frac{{{a} \pi}}{{{b}}}", r"\frac{{\pi {a}}}{{{b}}}"),
)


def response(answer: str) -> str:
    return "<think> " + "so it goes on and on " * 100 + f"</think> <answer> {answer} </answer>"


def numbers(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    return [(response(f"{rng.randrange(10**6):,}"), str(rng.randrange(10**6))) for _ in range(count)]


def latex(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    pairs = []
    for i in range(count):
        answer, gold = FORMS[i % len(FORMS)]
        a, b, c = (rng.randrange(2, 1000) for _ in range(3))
        pairs.append((response(answer.format(a=a, b=b, c=c)), gold.format(a=a + i % 2, b=b, c=c)))
    return pairs


def as_in_rl(count: int) -> list[tuple[str, str]]:
    problems = [pair for i, pair in enumerate(numbers(count // 16)) if i % 4] + latex(count // 64)
    answers = [[pair[0], response(r"\sqrt{2}"), response("17")] for pair in problems]
    return [(answers[i][j % 3], problem[1]) for i, problem in enumerate(problems) for j in range(16)]


def main() -> None:
    with MathVerifier(processes=2) as verifier:
        start = time.perf_counter()
        verifier.verify([(response(r"\sqrt{2}"), "x")] * 2 + [(response(r"\sqrt{3}"), "x")])
        print(f"start: {time.perf_counter() - start:.1f} s\n")
        print("| what | verifications | right | a second |\n| --- | --- | --- | --- |")
        for name, pairs in (("numbers", numbers(8000)), ("LaTeX", latex(1500)), ("as in RL", as_in_rl(4096))):
            start = time.perf_counter()
            verdicts = verifier.verify(pairs)
            seconds = time.perf_counter() - start
            print(f"| {name} | {len(pairs):,} | {verdicts.count(1.0):,} | {len(pairs) / seconds:,.0f} |")
        print(f"\ntimeouts {verifier.workers.timeouts}, crashes {verifier.workers.crashes}")


if __name__ == "__main__":
    main()
