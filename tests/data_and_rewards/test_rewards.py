"""One table for each reward, the hostile rows included."""

import json
import re
import time

import pytest

from r1jax.data.toy.running_sum import LANGUAGES
from r1jax.errors import UsageError
from r1jax.rewards import rules
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.grading import grade_groups
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.telemetry.statistics import summarize
from r1jax.types import Problem, Sample
from tests.shared.deepseek_tokens import gsm8k_rows
from tests.shared.samples import grade, make_sample

PROBLEM = Problem(0, "compute 3 #a - 1", "2", "en")


def sample(response: str, problem: Problem = PROBLEM, tokens: str = "x") -> Sample:
    return make_sample(problem, response, [ord(c) for c in tokens])


def thought(answer: str, thinking: str = "x") -> str:
    return f"<think> {thinking} </think> <answer> {answer} </answer>"


GOOD = "<think> start 3 #a minus 1 gives 2 </think> <answer> 2 </answer>"

INVISIBLE = [  # nobody sees anything
    "\u200b", "\u3164", "\x00", "\u200c\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u115f", "\u1160", "\uffa0",
    "\u2800", "\ufe0f", "\U000e0100", "\u180e", "\u061c", "\u202e", "\u2062", "\ufff9", "\U000e0041", "\U0001d173",
    "\x08", "\x7f", "\u0301", "\u17b4", "\u3000\u200b", "\U0001d159", "\ufffc", "\ud800", "\ue000", "\u0378",
    "\u200b" * 9999,
]  # fmt: skip
TABLE = [  # response, format, accuracy
    (GOOD, 1, 1),
    ("<think> </think> <answer> 2 </answer>", 1, 1),
    ("<think>no spaces</think><answer>2</answer>", 1, 1),
    ("<think> x </think> <answer> +02 </answer>", 1, 1),
    ("<think> x </think> <answer> 3 </answer>", 1, 0),
    ("<think> x </think> <answer> 2 or 3 </answer>", 1, 0),
    ("<think> x </think> <answer> 2 2 </answer>", 1, 0),
    ("<think> x </think> <answer> 12 </answer>", 1, 0),
    ("<think> x </think> <answer> two </answer>", 1, 0),
    ("<think> x </think> <answer> 1+1 </answer>", 1, 0),
    ("<think> x </think> <answer> __import__('os') </answer>", 1, 0),
    ("<think> x </think> <answer> " + "9" * 5000 + " </answer>", 1, 0),
    ("<think> x </think> <answer> ٢ </answer>", 1, 0),  # a digit two that is not ASCII
    ("<think> x </think> <answer> </answer>", 0, 0),
    ("", 0, 0),
    ("2", 0, 0),
    ("so the answer is 2 .", 0, 0),
    ("<answer> 2 </answer>", 0, 0),
    ("<answer> 2 </answer> <think> x </think>", 0, 0),
    ("<think> x <answer> 2 </answer>", 0, 0),
    ("<think> x </think> <answer> 2", 0, 0),
    ("<think> x </think> 2 <answer> 2 </answer>", 0, 0),
    (GOOD + " so 2", 0, 0),
    ("well " + GOOD, 0, 0),
    (GOOD + " " + GOOD, 0, 0),
    ("<think> <think> x </think> <answer> 2 </answer>", 0, 0),
    ("<think> x </think> <answer> 3 </answer> <answer> 2 </answer>", 0, 0),
    ("<think> <answer> 2 </answer> </think> <answer> 3 </answer>", 0, 0),
    ("<THINK> x </THINK> <ANSWER> 2 </ANSWER>", 0, 0),
    ("<answer> <think> x </think> 2 </answer>", 0, 0),
    ("<think> <answer> 2 </answer> </think>", 0, 0),
    ("<think> <think> x </think> </think> <answer> <answer> 2 </answer> </answer>", 0, 0),
    ("<think> x </think> <answer> 2 </answer> </answer>", 0, 0),
    ("<think> x </think> </answer> 2 <answer>", 0, 0),
    ("</think> x <think> <answer> 2 </answer>", 0, 0),
    ("< think > x < /think > < answer > 2 < /answer >", 0, 0),
    ("<think x='1'> x </think> <answer> 2 </answer>", 0, 0),
    ("＜think＞ x ＜/think＞ ＜answer＞ 2 ＜/answer＞", 0, 0),
    ("<think> x </think> <аnswer> 2 </аnswer>", 0, 0),  # a Cyrillic letter
    ("<think> x </think>\x00<answer> 2 </answer>", 0, 0),
    ("<think> x </think> \\boxed{2}", 0, 0),
    ("<think> it is 2 </think> <answer> \n\t </answer>", 0, 0),  # the answer in the thinking only
    *((thought(invisible), 0, 0) for invisible in INVISIBLE),
    *((thought("2", invisible), 0, 0) for invisible in INVISIBLE),
    (thought("2", "\n"), 1, 1),  # does not pretend
    (thought("∅"), 1, 0),
    (thought("."), 1, 0),
    (thought("🙂"), 1, 0),
    (thought("\u200b-"), 1, 0),
    (thought("e\u0301"), 1, 0),
    (thought("A or B or C"), 1, 0),
    (thought("1, 2, 3"), 1, 0),
    (thought("not 2"), 1, 0),
    (thought("2 ."), 1, 0),
    (thought("2.0"), 1, 0),
    (thought("--2"), 1, 0),
    (thought("2\u200b"), 1, 0),  # a space of no width
    (thought("２"), 1, 0),
    (thought("𝟚"), 1, 0),
    (thought("²"), 1, 0),
    (thought("\\boxed{2}"), 1, 0),
    (thought("\\boxed{2} \\boxed{3}"), 1, 0),
    (thought("\\frac{" * 50_000), 1, 0),
    (thought("9**9**9**9"), 1, 0),
    (thought("9**9**9**9 2"), 1, 0),
    (thought("compute 3 #a - 1"), 1, 0),  # the question again
    (thought("answer here"), 1, 0),  # the template's own words
    (thought("3 - 1"), 1, 0),
    (thought("lambda: 2"), 1, 0),
    (thought("{2}"), 1, 0),
    (thought("2\n3"), 1, 0),
]


@pytest.mark.parametrize(("response", "form", "accuracy"), TABLE, ids=lambda text: repr(text)[:40])
def test_format_and_accuracy(response, form, accuracy):
    assert rules.format_reward(sample(response)) == form
    assert rules.accuracy_reward(sample(response)) == accuracy


@pytest.mark.parametrize(
    ("response", "consistency", "mixed"),
    [
        (GOOD, 1.0, 0),
        ("<think> empieza 3 #a menos 1 da 2 </think> <answer> 2 </answer>", 0.0, 0),
        ("<think> start 3 #a menos 1 da 2 </think> <answer> 2 </answer>", 1 / 3, 1),
        ("<think> 3 2 </think> <answer> 2 </answer>", 0.0, 0),
        ("", 0.0, 0),
        ("start menos", 0.5, 1),  # without tags, all of the response counts as thinking
        ("<think> start </think> <answer> menos </answer>", 1.0, 0),  # the answer does not
        ("<think> </think> start start start <answer> 2 </answer>", 0.0, 0),  # nothing said wins nothing
        ("</think> start </think>", 0.0, 0),
        ("<think> ＳＴＡＲＴ stаrt STARTstart </think>", 0.0, 0),  # look-alikes, and no spaces
        ("<think> menos </think> <think> start </think>", 0.0, 0),
        ("<think> start\u200bmenos </think>", 0.0, 0),
        ("start " * 50_000 + "menos", 50_000 / 50_001, 1),
        ("<think> start menos, </think>", 1 / 2, 1),
        ("<think> start MENOS </think>", 1 / 2, 0),
        ("<think> start (menos) </think>", 1 / 2, 1),
        ("<think> start sopa </think>", 1 / 2, 0),
        ("<think> start mas= </think>", 1 / 2, 1),
        ("<think> start m,e,n,o,s </think>", 1 / 2, 1),
        ("<think> start m\ne\nn\no\ns </think>", 1 / 2, 1),
        ("<think> start m\u200be\u200bn\u200bo\u200bs </think>", 1 / 2, 1),
        ("<think> start m\x00e\x00n\x00o\x00s </think>", 1 / 2, 1),
        ("<think> start m\u3164e\u3164n\u3164o\u3164s </think>", 1 / 2, 1),
        ("<think> start m+e+n+o+s </think>", 1 / 2, 1),
        ("<think> start m1e1n1o1s </think>", 1 / 2, 1),
        ("<think> start 1 2 3 #a </think>", 1.0, 0),
        ("<think> start " + "3 " * 6000 + "</think>", 1 / 100, 0),
        ("<think> start " + "+ " * 6000 + "</think>", 1 / 100, 0),
        ("<think> start </think> <answer> empieza 3 #a menos 1 da 2 </answer>", 1 / 4, 1),
        ("<think> start </think> empieza 3 #a menos 1 da 2 <answer> 2 </answer>", 1 / 4, 1),
        ("<think> start </think> <answer> 2 </answer> empieza 3 #a menos 1 da 2", 1 / 4, 1),
        ("<think> menos start </think> <answer> start plus start minus start </answer>", 1 / 2, 1),  # raises nothing
    ],
    ids=lambda text: repr(text)[:40],
)
def test_languages(response, consistency, mixed):
    assert rules.language_consistency_reward(LANGUAGES)(sample(response)) == pytest.approx(consistency)
    assert rules.language_mix_reward(LANGUAGES)(sample(response)) == mixed


def test_the_languages_share_no_word():
    assert not LANGUAGES["en"] & LANGUAGES["es"]


WRITING = [  # thinking, language, share of its words
    ("we add two and three", "en", 1.0),
    ("мы складываем два и три", "ru", 1.0),
    ("我们把二和三相加", "zh", 1.0),
    ("二と三を足すと、ファイブ・センター", "ja", 1.0),
    ("둘과 셋을 더하면 다섯", "ko", 1.0),
    ("हम दो और तीन जोड़ते हैं", "hi", 1.0),  # vowel signs are marks, not letters
    ("نجمع اثنين وثلاثة", "ar", 1.0),
    ("le café e\u0301tait là", "fr", 1.0),
    ("我们 add 二 and 三", "zh", 4 / 6),  # each character is a word
    ("我们用API", "zh", 3 / 4),
    ("我们用API", "en", 1 / 4),
    ("我们", "ja", 1.0),  # can't be told
    ("足すと", "zh", 1 / 3),
    ("二 + 三 = 5, x = y", "zh", 1.0),  # numbers and variables are no words
    (r"因为 \frac{\alpha}{\sqrt{2}} \leq 3", "zh", 1.0),  # nor are LaTeX commands,
    (
        "先写 `print` 再写\n```python\nfor i in range(3): pass\n```\n好",
        "zh",
        5 / 11,
    ),  # code is: thinking could hide there
    ("```\nfirst we add the numbers\n``` 好", "zh", 1 / 6),
    ("`first we add the numbers` 好", "zh", 1 / 6),
    ("<first> <we> <add> 好", "zh", 1 / 4),
    (r"\first \we \add 好", "zh", 1 / 4),
    ("f-i-r-s-t 好 f i r s t", "zh", 1 / 3),
    ("```先加再减``` so", "en", 1 / 5),
    ("let 𝑥 in ℝ with µ", "en", 1.0),
    ("well ``` 好好好", "zh", 3 / 4),  # a fence without an end hides nothing
    ("", "en", 0.0),
    ("   \n", "zh", 0.0),
    ("2 + 3 = 5", "en", 0.0),
    (r"\alpha \beta", "en", 0.0),
    ("``` ```", "en", 0.0),
    ("a b c", "en", 0.0),
    ("!?。，", "zh", 0.0),
    ("🙂🙂", "zh", 0.0),
    ("½ Ⅳ ② ²³", "en", 0.0),
    ("\u0301\u0301\u0301", "en", 0.0),
    ("\ud800\ud800", "en", 0.0),
    ("\ue000\ue000", "zh", 0.0),  # letters of nobody
    ("wе аdd", "en", 0.0),  # Cyrillic look-alikes
    ("𝐰𝐞 𝐚𝐝𝐝", "zh", 0.0),  # mathematical letters are letters
    ("𝐰𝐞 𝐚𝐝𝐝", "en", 1.0),
    ("ｗｅ　ａｄｄ", "en", 1.0),  # wide ones are the same letters
    ("⼀⼆", "zh", 0.0),  # radicals are signs
    ("ελληνικά", "en", 0.0),
    ("hello 世界 привет", "en", 1 / 4),
    ("we" * 100_000, "en", 1.0),
]


@pytest.mark.parametrize(("thinking", "language", "share"), WRITING, ids=lambda text: repr(text)[:40])
def test_scripts(thinking, language, share):
    problem = Problem(0, "q", "a", language)
    for response in (f"<think> {thinking} </think> <answer> 好 да yes </answer>", thinking):
        assert script_consistency_reward()(sample(response, problem)) == pytest.approx(share)


MATHEMATICS = {  # reasoning in the language, full of formulas and code
    "en": [
        r"So $f(x) = (x-2)^2 + 3$ \implies x = 2. Wait, let me check: $f'(x) = 2x - 4 = 0$, and \boxed{3} follows.",
        r"We have $AB = 13$, so $s = \frac{13+14+15}{2} = 21$ and $K = \sqrt{21 \cdot 8 \cdot 7 \cdot 6} = 84$.",
        "Try 3 * 8 = 24, 5 - 2 = 3; no. (5 - 2) * 8 = 24, then 3 is left; no. 2 * 8 = 16, 16 + 5 = 21, 21 + 3 = 24.",
        "Using Cauchy-Schwarz, (Σ a_i b_i)^2 ≤ (Σ a_i^2)(Σ b_i^2).",
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May. Altogether she sold 48+24 = <<48+24=72>>72 clips.",
        "```python\nimport sys\nn, m = map(int, sys.stdin.read().split())\nprint([0] * (n + 1))\n```\nIt is O(nm).",
        "P(A|B) = P(A∩B)/P(B) = 0.12/0.4 = 0.3. Independent. E[X] = Σ x p(x) = 3.5; Var(X) = 91/6 - 49/4 = 35/12.",
        "Wait.\n\nHmm.\n\nSo x = 3.\n\nNo, wait.\n\nLet's see.\n\nYes.",
        "| n | f(n) |\n|---|------|\n| 1 | 1 |\n| 2 | 4 |\nSo f(n) = n^2.",
        "strawberry is s-t-r-a-w-b-e-r-r-y, so r appears at 3, 8 and 9: three times.",
    ],
    "zh": [
        r"设 $f(x)=x^2-4x+7$。配方得 $f(x)=(x-2)^2+3$，所以最小值在 $x=2$ 处取到，为 $3$。因此答案是 $\boxed{3}$。",
        "在 △ABC 中，AB = 13，BC = 14，CA = 15。由海伦公式，面积 S = √(21·8·7·6) = 84。",
        "因为 sin 30° = 1/2，所以 2 sin x = 1 的解为 x = 30° 或 x = 150°。log 2 + log 5 = lg 10 = 1。",
        "判别式 Δ = b^2 - 4ac = 4 > 0，所以方程有两个不等实根。",
        "设 x, y, z, w 为正整数，x + y + z + w = 10。",
        "质量 m = 5 kg，v = 3 m/s，动能 = 22.5 J。",
        "由三角形ABC的面积公式可知，直线AB与直线CD平行，点E在AC上。",
        r"解得 $\begin{cases} x + y = 5 \\ 2x - y = 1 \end{cases}$，即 x = 2，y = 3。",
    ],
    "es": ["Entonces 3 + 5 = 8, luego 8 * 4 = 32, y menos 1 da 31. Sea f(x) = x^2, por lo tanto la respuesta es 31."],
    "fr": ["Donc 3 + 5 = 8, puis 8 * 4 = 32, moins 1 fait 31. Soit f(x) = x^2, la réponse est donc 31."],
    "de": ["Also 3 + 5 = 8, dann 8 * 4 = 32, minus 1 ist 31. Moment, sin(x) = 0 für x = π."],
    "ru": ["Сначала 3 + 5 = 8, затем 8 × 4 = 32, и наконец 32 - 1 = 31. Ответ: 31."],
    "uk": ["Спочатку 3 + 5 = 8, потім 8 × 4 = 32, мінус 1 дорівнює 31. Отже, відповідь 31."],
    "ja": ["まず 3 + 5 = 8 を計算します。次に 8 × 4 = 32、最後に 1 を引いて 31 です。"],
    "ar": ["أولا نجمع 3 + 5 = 8 ثم نضرب 8 في 4 فنحصل على 32 ونطرح 1."],
    "hi": ["पहले 3 + 5 = 8 जोड़ते हैं, फिर 8 × 4 = 32, और 1 घटाने पर 31 मिलता है।"],
}


@pytest.mark.parametrize(("language", "thinking"), [(k, text) for k, texts in MATHEMATICS.items() for text in texts])
def test_reasoning_with_formulas_is_in_its_language(language, thinking):
    assert consistency(thinking, language) >= 0.9


def consistency(thinking: str, language: str) -> float:
    problem = Problem(0, "q", "a", language)
    value = script_consistency_reward()(sample(f"<think> {thinking} </think> <answer> 3 </answer>", problem))
    assert value is not None
    return value


SPANISH = (
    "Primero sumamos los números que tenemos y vemos cuánto da. Tres más cinco son ocho, así que nos quedan dos. Luego"
    " multiplicamos el resultado por cuatro y restamos uno."
)
ENGLISH = "First we add the numbers that we have and see what comes out. Three plus five is eight, so two remain."
FOREIGN = [  # reasoning, another language that has its letters, the most that it may score
    (SPANISH, "en", 0.1),
    (SPANISH.upper(), "en", 0.1),
    ("primero sumamos los numeros que tenemos y luego restamos uno", "en", 0.1),
    ("x = 3 entonces y = 4 por lo tanto z = 5 y la respuesta es 12", "en", 0.5),
    ("la respuesta es tres", "en", 0.1),
    ("D'abord, on additionne les nombres que nous avons et on regarde combien cela fait.", "en", 0.1),
    ("Zuerst addieren wir die Zahlen, die wir haben, und sehen, was herauskommt.", "en", 0.1),
    ("Najpierw dodajemy liczby, które mamy, i patrzymy, ile to daje.", "en", 0.1),
    ("Prima sommiamo i numeri che abbiamo e vediamo quanto fa.", "es", 0.1),
    (ENGLISH, "es", 0.1),
    (ENGLISH, "de", 0.1),
    ("Спочатку додамо числа, які ми маємо, і подивимося, скільки вийде.", "ru", 0.5),
    ("Сначала сложим числа, которые у нас есть, и посмотрим, сколько получится.", "uk", 0.5),
    ("首先我们把已知的数字加起来，看看结果是多少。然后乘以四再减一。", "ja", 0.1),
    ("ابتدا اعدادی را که داریم جمع می‌کنیم و نتیجه را در چهار ضرب می‌کنیم.", "ar", 0.5),
    (f"{ENGLISH} {SPANISH}", "en", 0.6),
    (" ".join(f"{a} {b}" for a, b in zip(ENGLISH.split(), SPANISH.split(), strict=False)), "en", 0.95),
    (",".join(SPANISH.replace(" ", "")), "en", 0.5),
    (" ".join(SPANISH), "en", 0.5),
    ("\n".join(SPANISH), "en", 0.5),
    ("\u200b".join(SPANISH), "en", 0.1),
    ("\u3164".join(SPANISH), "en", 0.5),
    (r"\text{primero sumamos los numeros} \quad \text{y luego restamos uno}", "en", 0.1),
    ("```python\n# primero sumamos los numeros que tenemos\nx = 3 + 5\n# y luego restamos uno\n```", "en", 0.5),
    ("好 " + "\u200b".join("first"), "zh", 0.5),
    ("好 " + ",".join("first"), "zh", 0.5),
    ("\t".join("primerosumamosdos"), "en", 0.5),
    ("".join(f"{{{letter}}}" for letter in "primerosumamosdos"), "en", 0.5),
    (SPANISH.replace(" ", "_"), "en", 0.1),
    (SPANISH.replace(" ", ""), "en", 0.3),
    ("".join(letter for letter in SPANISH if letter.isalpha()), "en", 0.1),
    ("**" + SPANISH.replace(" ", "** **") + "**", "en", 0.1),
    (" ".join(rf"\mathrm{{{word}}}" for word in SPANISH.split()), "en", 0.1),
    (" = ".join(SPANISH.split()), "en", 0.1),
    ("好\n" + "\n".join(f"{i}. {letter}" for i, letter in enumerate("firstweadd")), "zh", 0.5),
    ("f,i.r;s:t w/e a|d-d 好", "zh", 0.5),
    ("好\n" + "\n".join("first"), "zh", 0.5),
    ("好 " + "*".join("first"), "zh", 0.5),
    ("好 " + "7".join("first"), "zh", 0.5),
    ("好 " + "\ufe0f".join("first"), "zh", 0.5),
    ("we " + " ".join(map(str, range(5000))), "en", 0.05),
    ("we " + "x " * 5000, "en", 0.05),
    ("we " + "Ⅳ " * 5000, "en", 0.05),
    ("we " + "½ " * 5000, "en", 0.05),
    ("we " + "٣ " * 5000, "en", 0.05),
    ("we " + r"\alpha " * 5000, "en", 0.05),
    ("we " + "🙂" * 5000, "en", 0.05),
    ("\u3164" * 50, "ko", 0.0),
]


@pytest.mark.parametrize(("thinking", "language", "most"), FOREIGN, ids=lambda text: repr(text)[:40])
def test_reasoning_in_another_language_is_told_apart(thinking, language, most):
    assert consistency(thinking, language) <= most


@pytest.mark.parametrize(
    "response",
    [
        f"<think> we add </think> <answer> {SPANISH} </answer>",
        f"<think> we add </think> {SPANISH} <answer> 3 </answer>",
        f"<think> we add </think> <answer> 3 </answer> {SPANISH}",
        f"{SPANISH} <think> we add </think> <answer> 3 </answer>",
        f"<think> we add </think> <think> {SPANISH} </think> <answer> 3 </answer>",
        f"<think> we add </think> \\boxed{{{SPANISH}}}",
        f"<think> we add </think> <answer> {'-'.join(SPANISH.replace(' ', ''))} </answer>",
        f"<think> {SPANISH} </think> <answer> {ENGLISH * 9} </answer>",
        f"<think> {SPANISH}",
        "<think> we add </think> <answer> 我们把二和三相加得到五 </answer>",
        f"<think> {ENGLISH} </think> <answer> {SPANISH} {SPANISH} </answer>",
    ],
)
def test_reasoning_moves_nowhere(response):
    assert script_consistency_reward()(sample(response)) < 0.5


def test_solutions_of_gsm8k_are_english():
    """All but one in a hundred, which have hardly a word, and in the time that a step of RL can spare."""
    answers = [row["answer"] for row in gsm8k_rows()[:300]]
    consistency(answers[0], "en")  # loads the identifier
    started = time.process_time()
    values = [consistency(answer, "en") for answer in answers]
    assert time.process_time() - started < 0.01 * len(answers)
    assert sum(value < 0.99 for value in values) <= len(values) / 100


def test_a_language_without_scripts_is_an_error():
    with pytest.raises(UsageError, match="problem 7: language.*'tlh'"):
        script_consistency_reward()(sample("x", Problem(7, "q", "a", "tlh")))


COUNTDOWN = [  # answer, right or not, for the numbers 3, 5, 2 and the target 16
    ("2 * (3 + 5)", 1),
    ("(5+3)*2", 1),
    ("((((3 + 5))) * 2)", 1),
    ("3*2 + 5*2", 0),  # a number twice
    ("3 + 5 + 2", 0),
    ("16", 0),
    ("8 * 2", 0),
    ("3 + 5 + 8", 0),
    ("2 * (3 + 5) + 0", 0),
    ("2 * (3 + 5) * 1", 0),
    ("2 * (3 + 5) + 3 - 3", 0),
    ("35 - 2 - 17", 0),
    ("3 5 2", 0),
    ("2(3 + 5)", 0),
    ("(3 + 5)(2)", 0),
    ("2 * (3 + 5) = 16", 0),
    ("16 = 2 * (3 + 5)", 0),
    ("2 * (3 + 5) or 16", 0),
    ("2 * (3 + 5), 2 * (5 + 3)", 0),
    ("2 * (3 + 5)\n", 1),  # white space around is none of it
    ("2 *\n(3 + 5)", 0),
    ("2 * (3 + 5", 0),
    ("2 * 3 + 5)", 0),
    ("2 ×  (3 + 5)", 0),
    ("2 * (3 ＋ 5)", 0),
    ("２ * (3 + 5)", 0),
    ("٢ * (3 + 5)", 0),
    ("2 * (3 + 5) # 16", 0),
    ("2. * (3 + 5)", 0),
    ("2 * (3e0 + 5)", 0),
    ("2 * (0x3 + 5)", 0),
    ("02 * (3 + 5)", 0),
    ("2_0 * (3 + 5)", 0),
    ("2 * (+3 + 5)", 0),
    ("- 2 * (- 3 - 5)", 0),
    ("2 * (3 -- 5)", 0),
    ("~2 * (3 + 5)", 0),
    ("5 * 3 + 2 ** 0", 0),
    ("(5 - 3) ** 2 * 2 * 2", 0),
    ("5 * 3 + 2 // 2", 0),
    ("2 << 3", 0),
    ("9**9**9**9", 0),
    ("3 / (5 - 5) * 2", 0),
    ("3/0", 0),
    ("(((" * 1000 + "2 * (3 + 5)" + ")))" * 1000, 0),
    ("(" * 40 + "2 * (3 + 5)" + ")" * 40, 0),
    ("-" * 199 + "1", 0),
    ("1" + "**1" * 60, 0),
    ("9" * 5000, 0),
    ("1+" * 50_000 + "1", 0),
    ("__import__('os').system('true')", 0),
    ("(lambda: 16)()", 0),
    ("[16][0]", 0),
    ("16 if 3 + 5 + 2 else 0", 0),
    ("sum([3, 5, 2]) + 6", 0),
    ("\\boxed{2 * (3 + 5)}", 0),
    ("$2 * (3 + 5)$", 0),
    ("`2 * (3 + 5)`", 0),
    ('{"numbers": [3, 5, 2], "target": 16}', 0),  # the task again
    ("A or B or C", 0),
    ("2 * (3 + 5)\x00", 0),
    ("2 * (3 + 5)\u200b", 0),
    ("()", 0),
    ("-", 0),
    ("", 0),
]


@pytest.mark.parametrize(("answer", "right"), COUNTDOWN, ids=lambda text: repr(text)[:40])
def test_countdown(answer, right):
    task = Problem(0, "q", json.dumps({"numbers": [3, 5, 2], "target": 16}), "en")
    assert countdown_reward(sample(thought(answer), task)) == right


@pytest.mark.parametrize(
    ("answer", "numbers", "target", "right"),
    [
        ("3.5*2", [3, 5, 2], 7, 0),
        ("3*5/2", [3, 5, 2], 7, 0),  # 7.5: division is exact
        ("3*5//2", [3, 5, 2], 7, 0),
        ("1/3*3", [1, 3, 3], 1, 1),  # by way of a fraction
        ("(1/3 + 1/3 + 1/3) * 1", [1, 1, 1, 1, 3, 3, 3], 1, 1),
        ("1/3 + 2/3", [1, 2, 3], 1, 0),
        ("3 + 3", [3, 3], 6, 1),
        ("3 + 3", [3], 6, 0),
        ("3", [3, 3], 3, 0),
        ("1 - 3", [1, 3], -2, 1),
        ("-2", [2], -2, 0),
        ("35", [3, 5], 35, 0),
        ("100000000 * 99999999 - 1", [100000000, 99999999, 1], 9999999899999999, 1),
        ("100000000 * 99999999", [100000000, 99999999], 9999999900000001, 0),  # equal as floats? never compared so
    ],
)
def test_countdown_with_other_numbers(answer, numbers, target, right):
    task = Problem(0, "q", json.dumps({"numbers": numbers, "target": target}), "en")
    assert countdown_reward(sample(thought(answer), task)) == right


@pytest.mark.parametrize(
    "response",
    [
        "",
        "2 * (3 + 5)",
        "<answer> 2 * (3 + 5) </answer>",
        "<think> 2 * (3 + 5) </think> <answer> </answer>",
        "<think> <answer> 2 * (3 + 5) </answer> </think> <answer> 16 </answer>",
        "<think> x </think> \\boxed{2 * (3 + 5)}",
        "#### 2 * (3 + 5)",
        thought("2 * (3 + 5)") + " or so",
        thought("2 * (3 + 5)") * 2,
        thought("<answer> 2 * (3 + 5) </answer>"),
        "Assistant: " + thought("2 * (3 + 5)"),
        thought("2 * (3 + 5)").upper(),
    ],
)
def test_countdown_requires_the_tags(response):
    task = Problem(0, "q", json.dumps({"numbers": [3, 5, 2], "target": 16}), "en")
    assert countdown_reward(sample(response, task)) == 0


@pytest.mark.parametrize(
    "answer",
    ["", "16", "[]", "null", "{}", '{"numbers": [], "target": 1}', '{"numbers": [3, 5]}', '{"numbers": 3, "target": 3}',
     '{"numbers": ["3"], "target": 3}', '{"numbers": [3.0], "target": 3}', '{"numbers": [true], "target": 1}',
     '{"numbers": [3], "target": "3"}', '{"numbers": [3], "target": NaN}'],
)  # fmt: skip
def test_malformed_puzzles_are_refused(answer):
    with pytest.raises(UsageError, match=f"problem 7: Problem.answer.*{re.escape(repr(answer))}"):
        countdown_reward(sample(thought("3"), Problem(7, "q", answer, "en")))


@pytest.mark.parametrize(
    ("tokens", "free", "longest", "penalty"),
    [
        ("", 0, 4, 0.0), ("abcd", 4, 8, 0.0), ("abcdef", 4, 8, -0.5), ("abcdefgh", 4, 8, -1.0),
        ("abcdefgh" * 9, 4, 8, -1.0), ("a", 0, 4, -0.25),
    ],
)  # fmt: skip
def test_length_penalty(tokens, free, longest, penalty):
    assert rules.length_penalty(free, longest)(sample("x" * 99, tokens=tokens)) == penalty


@pytest.mark.parametrize(
    ("tokens", "n", "penalty"),
    [
        ("", 2, 0.0), ("a", 2, 0.0), ("ab", 2, 0.0), ("abcdef", 2, 0.0), ("aaaa", 2, -2 / 3), ("abab", 2, -1 / 3),
        ("ab" * 500, 2, 2 / 999 - 1), ("aab", 1, -1 / 3), ("aab", 2, 0.0), ("abcabc", 3, -0.25), ("a" * 101, 2, -0.99),
    ],
)  # fmt: skip
def test_repetition_penalty(tokens, n, penalty):
    assert rules.repetition_penalty(n)(sample("x x x x", tokens=tokens)) == pytest.approx(penalty)


def test_invalid_penalties_are_refused():
    for free, longest in ((-1, 4), (4, 4), (5, 4)):
        with pytest.raises(UsageError, match="free .* longest"):
            rules.length_penalty(free, longest)
    with pytest.raises(UsageError, match="n .*0"):
        rules.repetition_penalty(0)


def graded(**values: list[float | None]) -> list[Sample]:
    """A group with these values of its rewards."""
    columns = zip(*values.values(), strict=True)
    return [make_sample(PROBLEM, rewards=dict(zip(values, column, strict=True))) for column in columns]


def ask_nothing(sample: Sample) -> None:
    raise AssertionError("must not be called")


def test_totals_are_weighted_sums():
    rewards = {
        "accuracy": rules.Reward(rules.accuracy_reward, 1.0),
        "format": rules.Reward(rules.format_reward, 0.2),
        "watched": rules.Reward(lambda sample: 5.0, 0.0),
    }
    assert rules.totals(rewards, grade(rewards, [sample(GOOD), sample("2")])) == pytest.approx([1.2, 0])
    assert rules.totals({}, [sample(GOOD)]) == [0]
    assert rules.totals(rewards, []) == []


def test_none_adds_nothing_to_totals_and_means():
    rewards = {"accuracy": rules.Reward(rules.accuracy_reward, 1.0), "other": rules.Reward(lambda sample: None, 3.0)}
    group = grade(rewards, [sample(GOOD), sample("2")])
    assert group[0].rewards == {"accuracy": 1.0, "other": None}
    assert rules.totals(rewards, group) == [1.0, 0.0]
    assert summarize([group]) == {"accuracy": 0.5, "response_tokens": 1, "finished": 1}


def test_normalised_terms_have_mean_0_and_deviation_1_before_their_weights():
    rewards = {
        "large": rules.Reward(ask_nothing, 1.0, normalise=True),
        "small": rules.Reward(ask_nothing, 0.5, normalise=True),
        "as_is": rules.Reward(ask_nothing, 2.0),
    }
    group = graded(large=[100, 300, 100, 300], small=[0.1, 0.1, 0.1, 0.5], as_is=[1, 0, 0, 0])
    # small: mean 0.2, deviation sqrt(0.03) = 0.1732…, so -0.577…, and 1.732… for the last
    root = 3**0.5
    assert rules.totals(rewards, group) == pytest.approx(
        [-1 - 0.5 / root + 2, 1 - 0.5 / root, -1 - 0.5 / root, 1 + 0.5 * root], abs=1e-4
    )


def test_normalised_terms_ignore_none():
    rewards = {"accuracy": rules.Reward(ask_nothing, 1.0, normalise=True)}
    assert rules.totals(rewards, graded(accuracy=[None, 0, 1, None])) == pytest.approx([0, -1, 1, 0], abs=1e-5)
    assert rules.totals(rewards, graded(accuracy=[None, None])) == [0, 0]
    for value in (0.0, 1.0, 0.1, 1e9 / 3):  # a group without a difference has no signal, to the last bit
        assert rules.totals(rewards, graded(accuracy=[value] * 7 + [None])) == [0] * 8


def test_rewards_are_chosen_by_source():
    samples = [sample(GOOD, Problem(0, "q", "2", "en", source)) for source in ("sums", "code", "sums", "")]
    rewards = {
        "sums": rules.Reward(rules.accuracy_reward, 1.0, sources=("sums", "more sums")),
        "all": rules.Reward(rules.format_reward, 0.5),
        "none": rules.Reward(ask_nothing, 1.0, sources=("chat",)),
    }
    group = grade(rewards, samples)
    assert [list(s.rewards.values()) for s in group] == [[1, 1, None], [None, 1, None], [1, 1, None], [None, 1, None]]
    assert rules.totals(rewards, group) == [1.5, 0.5, 1.5, 0.5]


class Odd:
    """A grader that knows only odd ids."""

    def grade(self, samples):
        assert all(s.problem.id % 2 for s in samples)
        return [float(s.problem.id) for s in samples]


def test_a_grader_gets_its_source_only_and_values_keep_their_places():
    samples = [sample("", Problem(i, "q", "2", "en", "odd" if i % 2 else "even")) for i in range(6)]
    assert rules.Reward(Odd(), 1.0, ("odd",)).grade(samples) == [None, 1, None, 3, None, 5]
    assert rules.Reward(Odd(), 1.0, ("odd",)).grade([]) == []


class Failing(Odd):
    def __init__(self):
        self.failures = {"timeouts": 2, "crashes": 0}


def test_failures_are_counted_by_reward():
    rewards = {
        "accuracy": rules.Reward(Failing(), 1.0),
        "odd": rules.Reward(Odd(), 1.0),
        "format": rules.Reward(rules.format_reward, 1.0),
    }
    assert rules.failure_counts(rewards) == {"accuracy_timeouts": 2.0, "accuracy_crashes": 0.0}
    assert [r.failures for r in rewards.values()] == [{"timeouts": 2, "crashes": 0}, {}, {}]


def test_a_grader_sees_all_samples_of_a_step_at_once():
    """math-verify's processes work side by side; its reward is used as any other."""
    problems = [Problem(i, "q", gold, "en") for i, gold in enumerate([r"\frac{1}{2}", "x + 1"])]
    texts = [[r"\boxed{0.5}", r"\boxed{2}"], [r"<answer> 1 + x </answer>", "no answer"]]
    groups = [[make_sample(problem, text) for text in group] for problem, group in zip(problems, texts, strict=True)]
    with MathVerifier(processes=2) as verifier:
        grade_groups({"accuracy": rules.Reward(verifier, 1.0)}, groups)
        assert verifier.failures == {"timeouts": 0, "crashes": 0}
    assert [[s.rewards["accuracy"] for s in group] for group in groups] == [[1, 0], [1, 0]]


class Verdicts:
    """A verifier that says what it is told to."""

    def __init__(self, *values, **failures):
        self.values, self.failures = values, failures

    def grade(self, samples):
        return list(self.values[: len(samples)])


def of(source: str) -> Sample:
    return make_sample(Problem(0, "q", rules.parse_answer(GOOD), "en", source), GOOD, [1])


def test_samples_without_a_verdict_are_unverified():
    rewards = {"accuracy": rules.Reward(Verdicts(None, None), 1.0), "format": rules.Reward(rules.format_reward, 0.2)}
    group = grade(rewards, [sample(GOOD), sample("2")])
    assert rules.unverified(rewards, group) == [True, True]
    other = {"accuracy": rules.Reward(Verdicts(None, None), 1.0, sources=("elsewhere",))}
    assert rules.unverified(other, grade(other, [sample(GOOD)])) == [False]  # it was not asked
    watched = {"accuracy": rules.Reward(Verdicts(None), 0.0)}
    assert rules.unverified(watched, grade(watched, [sample(GOOD)])) == [False]
    plain = {"accuracy": rules.Reward(lambda s: None, 1.0)}
    assert rules.unverified(plain, grade(plain, [sample(GOOD)])) == [False]  # a function's None: does not apply


def test_one_reward_by_source():
    reward = rules.by_source({"sums": rules.accuracy_reward, "proofs": Verdicts(0.5, None, timeouts=2)}, 1.0)
    group = [of("sums"), of("proofs"), of("other"), of("proofs")]
    assert reward.grade(group) == [1.0, 0.5, None, None]
    assert reward.failures == {"timeouts": 2}
    assert rules.unverified({"accuracy": reward}, grade({"accuracy": reward}, group)) == [False, False, False, True]


def test_normalised_terms_ignore_rounding():
    near = {"helpful": rules.Reward(Verdicts(0.5, 0.5 + 6e-8), 1.0, normalise=True)}
    assert rules.totals(near, grade(near, [sample(GOOD), sample(GOOD)])) == [0, 0]
