"""reasoning-gym: its problems as sources, splits, mixtures and records, and its verifiers as a reward."""

import itertools
import json
import subprocess
import sys
from ast import literal_eval
from collections import Counter
from dataclasses import dataclass

import pytest
from etils import epath

from r1jax.cli.gin_config import read_config
from r1jax.config import JsonlConfig, ReasoningGymConfig
from r1jax.data import gym_draws
from r1jax.data.feeds import Records, ensure_records, problem_batches, records
from r1jax.data.sources import Source
from r1jax.errors import UsageError
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import extract_answer
from r1jax.rewards.reasoning_gym import ReasoningGymVerifier
from r1jax.rewards.rules import Reward, by_source
from r1jax.types import Problem, Sample
from tests.shared.samples import make_sample

factory = pytest.importorskip("reasoning_gym.factory", reason="the extra gym is not installed: requirements-gym.txt")

# Of each kind; polynomial_multiplication depends on the hash seed, rearc on tuples, and the verifier of
# prime_factorization raises.
NAMES = [
    "chain_sum", "products", "gcd", "fraction_simplification", "number_sorting", "countdown", "knights_knaves",
    "letter_counting", "spell_backward", "word_sorting", "base_conversion", "shortest_path", "spiral_matrix",
    "n_queens", "polynomial_multiplication", "rearc", "prime_factorization",
]  # fmt: skip
WITHOUT_ANSWERS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}  # verifiers alone know
ALL = sorted(factory.DATASETS.keys() - {"composite"} - WITHOUT_ANSWERS)
EASY = {"min_terms": 2, "max_terms": 2, "max_digits": 1}  # of chain_sum


def drawn(name: str, split: str, seed: int, count: int, settings: dict | None = None) -> list[Problem]:
    """As `Source.problems`, but in this process, which is quick."""
    entries = itertools.islice(gym_draws.draw(name, settings or {}, split, seed), count)
    return [
        Problem(i, entry["question"], gym_draws.answer_text(name, settings or {}, entry), "en", name)
        for i, entry in enumerate(entries)
    ]


def reference(problem: Problem) -> str:
    return literal_eval(problem.answer)["answer"]


def answered(problem: Problem, answer: str) -> Sample:
    return make_sample(problem, f"<think> x </think> <answer> {answer} </answer>")


@pytest.fixture(scope="module")
def verifier():
    with ReasoningGymVerifier(processes=2, seconds=30.0) as verifier:
        yield verifier


# ---- problems


@pytest.mark.parametrize("name", ["list_functions", "polynomial_multiplication"])
def test_a_place_has_one_problem_in_every_process(name):
    source = Source("mine", gym=ReasoningGymConfig(name))
    first, again, other = (list(itertools.islice(source.problems("train", seed), 100)) for seed in (0, 0, 1))
    assert first == again  # one generator draws from global random numbers, the other depends on hashes of text
    assert [(p.id, p.source, p.language) for p in first] == [(i, "mine", "en") for i in range(100)]
    assert not {p.question for p in first} & {p.question for p in other}


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint(name):
    train, test = (
        {p.question for seed in (0, 1) for p in drawn(name, s, seed, n)} for s, n in (("train", 40), ("test", 5))
    )
    assert train and test and not train & test
    assert all(map(gym_draws.is_held_out, test)) and not any(map(gym_draws.is_held_out, train))


def test_held_out_questions_come_once():
    """There are a hundred products of two digits."""
    config = ReasoningGymConfig("products", {"max_terms": 2, "min_digits": 1, "max_digits": 1})
    source = Source("products", gym=config)
    found = [p.question for p in source.problems("test", 0)]
    assert found and len(found) == len(set(found))
    train = {p.question for p in itertools.islice(source.problems("train", 0), 3000)}
    assert len(train | set(found)) == 100 and not train & set(found)


def test_a_stream_goes_on_after_a_chunk():
    problems = drawn("chain_sum", "train", 0, 3 * gym_draws.CHUNK, {"min_digits": 9, "max_digits": 9})
    assert len({p.question for p in problems}) == len(problems)


def test_settings_reach_the_generator():
    for problem in itertools.islice(Source("x", gym=ReasoningGymConfig("chain_sum", EASY)).problems("train", 0), 20):
        assert literal_eval(problem.answer)["metadata"]["num_terms"] == 2


def test_a_tuple_survives():
    """In JSON it would come back as a list, and rearc's verifier would score the right answer 0.05."""
    assert isinstance(literal_eval(drawn("rearc", "train", 0, 1)[0].answer)["metadata"]["output"], tuple)


BAD = [  # dataset, settings, what the error names
    ("chain_summ", {}, "chain_sum"),
    ("nothing like it", {}, "word_sorting"),
    ("chain_sum", {"max_term": 3}, "max_terms"),
    ("chain_sum", {"seed": 3}, "seed"),
    ("chain_sum", {"size": 3}, "size"),
    ("chain_sum", {"max_terms": 1}, "max_terms"),
    ("chain_sum", {"max_terms": "three"}, "three"),
    ("composite", {}, "composite"),
]


@pytest.mark.parametrize(("dataset", "settings", "named"), BAD)
def test_bad_configs_are_one_line_and_nothing_is_written(tmp_path, dataset, settings, named):
    source = Source("x", gym=ReasoningGymConfig(dataset, settings))
    with pytest.raises(UsageError) as error:
        ensure_records([Records("mix", "train", 3, (source,))], 0, epath.Path(tmp_path / "data"))
    assert named in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


class Flaky:
    def __init__(self, every: int):
        self.every = every

    def __getitem__(self, place: int) -> dict:
        if place % self.every == 0:
            raise ValueError("no puzzle after 100 trials")
        return {"question": f"{place}?", "answer": "1", "metadata": {}}


def test_places_that_cannot_be_drawn_are_skipped(monkeypatch):
    monkeypatch.setattr(gym_draws, "make_dataset", lambda *arguments: Flaky(20))
    questions = [entry["question"] for entry in itertools.islice(gym_draws.draw("x", {}, "train", 0), 100)]
    assert not {f"{place}?" for place in range(0, 500, 20)} & set(questions)
    monkeypatch.setattr(gym_draws, "make_dataset", lambda *arguments: Flaky(1))
    with pytest.raises(UsageError, match="100 trials"):
        next(gym_draws.draw("x", {}, "train", 0))


def test_too_few_questions_for_a_split():
    coin = ReasoningGymConfig("coin_flip", {"min_trials": 1, "max_trials": 1})
    with pytest.raises(UsageError, match="'test'"):
        next(Source("coin", gym=coin).problems("test", 0))


@pytest.mark.parametrize("settings", [{"range": (1, 2)}, {1: 2}, {"x": object()}, {"x": float("nan")}, [1]])
def test_settings_are_json(settings):
    with pytest.raises(ValueError, match="settings"):
        ReasoningGymConfig("chain_sum", settings)


def test_a_source_has_a_file_or_a_gym(tmp_path):
    with pytest.raises(UsageError, match="gym"):
        Source("x", file=JsonlConfig(str(tmp_path)), gym=ReasoningGymConfig("gcd"))


def test_without_the_library_there_is_a_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError, match="pip install reasoning-gym"):
        Source("x", gym=ReasoningGymConfig("gcd")).problems("train", 0)
    monkeypatch.setattr("r1jax.rewards.reasoning_gym.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install reasoning-gym"):
        ReasoningGymVerifier()


@dataclass(frozen=True)
class WithGym:
    sums: ReasoningGymConfig
    primes: ReasoningGymConfig


def test_gin_binds_settings():
    bindings = ["sums/ReasoningGymConfig.dataset = 'chain_sum'", "primes/ReasoningGymConfig.dataset = 'count_primes'"]
    config = read_config(WithGym, [], [*bindings, "sums/ReasoningGymConfig.settings = {'max_terms': 3}"])
    assert config.sums == ReasoningGymConfig("chain_sum", {"max_terms": 3})
    assert config.primes == ReasoningGymConfig("count_primes")
    with pytest.raises(UsageError, match=r"ReasoningGymConfig\.dataset"):
        read_config(WithGym, [], bindings[:1])
    with pytest.raises(UsageError, match=r"ReasoningGymConfig\.settings"):
        read_config(WithGym, [], [*bindings, "ReasoningGymConfig.settings = 3"])


# ---- mixtures


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[epath.Path, Source]:
    sums = Source("sums", 3.0, gym=ReasoningGymConfig("chain_sum", EASY))
    folder = epath.Path(tmp_path_factory.mktemp("mixed"))
    wanted = [Records("mixed", "train", 200, (sums, Source("countdown")))]
    [path] = ensure_records(wanted, 3, folder)
    assert ensure_records(wanted, 3, folder) == [path]
    return path, sums


def test_a_mixture_has_the_problems_of_its_sources(mixed):
    path, sums = mixed
    rows = list(records(path, None))
    counts = Counter(row["source"] for row in rows)
    assert counts.keys() == {"sums", "countdown"} and 120 < counts["sums"] < 180
    expected = [(p.question, p.answer) for p in itertools.islice(sums.problems("train", 3), counts["sums"])]
    assert [(row["question"], row["answer"]) for row in rows if row["source"] == "sums"] == expected


def test_the_feed_resumes(mixed):
    feed = problem_batches(mixed[0], 16, 0)
    for _ in range(5):
        next(feed)
    state = json.loads(json.dumps(feed.get_state()))
    expected = [next(feed) for _ in range(3)]
    again = problem_batches(mixed[0], 16, 0)
    again.set_state(state)
    assert [next(again) for _ in range(3)] == expected


def test_each_source_has_its_reward(mixed, verifier):
    reward = by_source({"sums": verifier, "countdown": countdown_reward}, 1.0)
    samples = [answered(p, reference(p) if p.source == "sums" else "1") for p in next(problem_batches(mixed[0], 40, 0))]
    assert reward.grade(samples) == [float(s.problem.source == "sums") for s in samples]


def test_other_settings_have_another_file():
    gyms = [ReasoningGymConfig("chain_sum", s) for s in ({}, EASY, EASY | {"max_digits": 2})]
    gyms += [ReasoningGymConfig("products"), ReasoningGymConfig("chain_sum", dict(reversed(EASY.items())))]
    names = [Records("mix", "train", 3, (Source("x", gym=gym),)).file_name(0) for gym in gyms]
    assert len(set(names)) == 4 and names[1] == names[4]  # whatever the order of settings


# ---- verifiers


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(n, marks=pytest.mark.slow) for n in ALL if n not in NAMES)])
def test_the_reference_answer_scores_1_and_another_less(name, verifier):
    problems = drawn(name, "train", 0, 5)
    assert verifier.grade([answered(p, reference(p)) for p in problems]) == [1.0] * 5
    if name != "game_of_life_halting":  # whose verifier accepts all text
        wrong = verifier.grade([answered(p, "no answer at all") for p in problems])
        assert all(score is not None and score < 1 for score in wrong)
    assert verifier.failures.total() == 0


def test_a_response_without_an_answer_scores_0(verifier):
    [problem] = drawn("chain_sum", "train", 0, 1)
    right = reference(problem)
    for text in ("", right, f"<answer> {right} </answer>", f"<think> {right} </think> <answer> </answer>"):
        assert verifier.grade([make_sample(problem, text)]) == [0.0]
    assert verifier.grade([answered(problem, "1" * 20_000)]) == [0.0]


def test_another_extraction():
    [problem] = drawn("chain_sum", "train", 0, 1)
    with ReasoningGymVerifier(processes=1, extract=extract_answer) as verifier:
        sample = make_sample(problem, rf"It is \boxed{{{reference(problem)}}}.")
        assert (verifier.grade([sample]), verifier.answer(sample)) == ([1.0], reference(problem))
        assert Reward(verifier, 1.0).answer(sample) == reference(problem)


def test_an_answer_cannot_read_the_solution_or_do_harm(verifier, tmp_path):
    """These verifiers evaluate answers."""
    file = tmp_path / "made"
    hostile = {
        "spiral_matrix": ["entry['answer'].split()", "[*entry['answer'].split()]"],
        "n_queens": ["entry['metadata']['valid_answers'][0]", f"open({str(file)!r}, 'w')"],
        "polynomial_multiplication": [f"open({str(file)!r}, 'w')", f"__import__('os').mkdir({str(file)!r})", "open(0)"],
        "simple_integration": ["exec(chr(49))", "x.__class__"],
        "prime_factorization": ["zzz"],
    }
    samples = [answered(drawn(name, "train", 0, 1)[0], text) for name, texts in hostile.items() for text in texts]
    scores = verifier.grade(samples)
    assert all(score is not None and score < 0.1 for score in scores), scores
    assert not file.exists()


@pytest.mark.parametrize(
    "harm", ["open('x', 'w')", "os.system('true')", "os.fork()", "socket.socket()", "os.remove('x')"]
)
def test_the_scoring_process_can_do_little(harm, tmp_path):
    program = f"import os, socket, r1jax.rewards.gym_scores\ntry: {harm}\nexcept PermissionError: print('denied')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout == "denied\n"


def test_a_verifier_that_hangs_is_killed_and_counted():
    [matrix], [problem] = (drawn(name, "train", 0, 1) for name in ("spiral_matrix", "chain_sum"))
    with ReasoningGymVerifier(processes=1, seconds=3.0) as verifier:
        samples = [answered(matrix, "9**9**9**9"), answered(problem, reference(problem))]
        assert verifier.grade(samples) == [0.0, 1.0]  # the right answer beside it does not hang
        assert verifier.failures == {"timeouts": 1, "crashes": 0}


def test_other_problems_are_refused(verifier):
    for answer in ("42", "{'dataset': 'gcd'}", "[" * 10_000, "x"):
        with pytest.raises(UsageError, match="problem 7"):
            verifier.grade([answered(Problem(7, "q", answer, "en"), "1")])
