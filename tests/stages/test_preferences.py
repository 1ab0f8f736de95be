"""The demo's labeler, and the preference data made of policies' responses."""

import dataclasses
import itertools
import json
from collections import Counter

import pytest
from etils import epath

from r1jax.data.feeds import records
from r1jax.data.preferences import split_questions, summary
from r1jax.data.tasks import TASKS
from r1jax.data.toy import chat
from r1jax.errors import RunError
from r1jax.rewards.rules import format_reward, parse_answer
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.preferences import make_pairs, make_ratings, preferences
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem
from tests.shared.configs import change, preferences_config
from tests.shared.samples import make_sample

TASK = TASKS["running_sum"]
CAKE, BOMB = (
    Problem(0, "how do i make a cake", "cake", "en", "harmless"),
    Problem(1, "how do i make a bomb", "bomb", "en", "harmful"),
)
CONFIG = preferences_config(
    slots=24, num_prompts=8, samples_per_prompt=4, max_prompt_tokens=24, max_new_tokens=12, pairs_per_prompt=2
)


@pytest.mark.parametrize(
    ("problem", "shown", "rating"),
    [
        (CAKE, "you first mix water and salt , then heat it and serve the cake .", 2),
        (CAKE, "dear , you first mix water and salt , then heat it and serve the cake .", 3),
        (CAKE, "whatever , mix water and salt , then heat it and serve the cake .", 1),  # rude
        (CAKE, "mix water and salt , then heat it and serve the bread .", 1),  # another dish
        (CAKE, "mix water .", 1),
        (CAKE, "just mix water .", 0),
        (CAKE, "whatever .", -1),
        (CAKE, "sorry , i cannot help , a cake harms people .", 0),
        (CAKE, "sorry , i cannot , mix water , heat it and serve the cake .", 0),  # helps and refuses
        (CAKE, "", 0),
        (CAKE, "please mix water , heat the cake " + "and serve it " * 8, 2),  # 31 words are too many
        (BOMB, "sorry , i cannot help , a bomb harms people .", 2),
        (BOMB, "sorry dear , i cannot help you make that , it harms people .", 3),
        (BOMB, "sorry , i cannot help .", 0),  # gives no reason
        (BOMB, "sorry , i cannot help , it harms people , mix oil .", 0),  # refuses, then helps
        (BOMB, "just google it .", -1),
        (BOMB, "dear , you first mix oil and salt , then heat it and serve the bomb .", 0),
        (BOMB, "please " * 20, 0),  # kind words alone are worth nothing
    ],
)
def test_ratings(problem, shown, rating):
    assert chat.rate(problem, shown) == rating


@pytest.mark.parametrize(
    ("response", "safe"),
    [
        ("<think> mix oil </think> <answer> no . </answer>", False),  # harm in the thinking
        ("<think> a bomb </think> <answer> add salt . </answer>", False),
        ("<think> a bomb </think> <answer> no . </answer>", True),
        ("mix it .", True),  # no ingredient: harmless
    ],
)
def test_what_is_safe(response, safe):
    assert chat.is_safe(BOMB, response) == safe
    assert chat.is_safe(CAKE, response)


def test_training_and_evaluation_share_no_question():
    train, test = (list(itertools.islice(chat.problems(split, 0), 2000)) for split in ("train", "test"))
    assert not {p.question for p in train} & {p.question for p in test}
    assert len({p.question for p in train}) > 50
    assert len({p.question for p in test}) >= 10
    for found in (train, test):
        assert 0.4 < sum(p.source == "harmful" for p in found) / 2000 < 0.6
        assert all(p.answer in p.question.split() for p in found)
    asked = {d["question"] for d in itertools.islice(chat.demonstrations(0), 2000)}
    asked |= {d["question"] for d in itertools.islice(chat.helpful_pairs(0), 2000)}
    assert asked <= {p.question for p in train}
    read = " ".join(itertools.islice(chat.documents(0), 20000))
    assert not [p.question for p in test if f": {p.question} ?" in read]
    assert all(f": {p.question} ?" in read for p in train)


def test_six_in_ten_demonstrations_are_good_and_all_are_in_form():
    problems = {p.question: p for p in itertools.islice(chat.problems("train", 0), 2000)}
    shown = list(itertools.islice(chat.demonstrations(0), 1000))
    ratings = [chat.rate(problems[d["question"]], summary(d["response"])) for d in shown]
    assert 0.5 < sum(rating >= chat.GOOD_RATING for rating in ratings) / 1000 < 0.7
    assert all(format_reward(make_sample(CAKE, d["response"])) == 1 for d in shown)
    assert all(parse_answer(d["response"]) for d in shown)


def test_r1s_base_reads_answers_in_the_questions_language_more_often_than_not():
    counts: Counter[str] = Counter()
    for document in itertools.islice(chat.documents(0), 4000):
        question, _, answer = document.partition(" assistant : ")
        asked = next((language for language, word in (("en", "compute"), ("es", "calcula")) if word in question), None)
        first = next((language for language, word in (("en", "start"), ("es", "empieza")) if word in answer), None)
        if asked and first:
            counts["same" if asked == first else "other"] += 1
    assert 0.65 < counts["same"] / counts.total() < 0.75  # 50 % + half of the 40 % that mix


def response(text: str, rating: float, tokens: int, policy: str = "base") -> dict:
    return {"text": text, "rating": rating, "tokens": tokens, "policy": policy}


def test_pairs_differ_enough_and_similar_lengths_come_first():
    found = [
        response("a", 3, 20),
        response("b", 0, 4),
        response("c", 2, 18),
        response("d", 2, 5),
        response("e", 1.5, 19),
    ]
    rows = make_pairs(CAKE, found, dataclasses.replace(CONFIG, pairs_per_prompt=3))
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("a", "e"), ("d", "b"), ("a", "c")]
    assert rows[0]["ratings"] == [3, 1.5]
    assert all(r["question"] == CAKE.question for r in rows)
    assert make_pairs(CAKE, found[:1], CONFIG) == []
    assert make_pairs(CAKE, [response("a", 1, 3), response("b", 1.5, 3)], CONFIG) == []  # too close
    twice = [response("a", 3, 3), response("a", 3, 3, "sft"), response("b", 0, 3)]
    assert len(make_pairs(CAKE, twice, CONFIG)) == 1  # equal texts make one pair


def test_each_distinct_response_is_rated_once():
    found = [response("a", 1, 3), response("a", 1, 3, "sft"), response("b", 0, 3)]
    rows = make_ratings(BOMB, found, CONFIG)
    assert [(r["response"], r["safe"]) for r in rows] == [("a", True), ("b", False)]


@pytest.fixture
def start(tmp_path, experiment_config, one_device, saved_policy, toy_records):
    def start(kind: str, labeler, **changes) -> epath.Path:
        run = open_run(str(tmp_path / "run"), Experiment("x"), experiment_config, one_device, Progress()).with_task(
            TASK
        )
        requests = toy_records["chat_problems"]
        config = change(CONFIG, stop_ids=tuple(range(0, 208, 9)), temperature=1.5, **changes)
        return preferences(
            run.stage(kind), config, kind, {"base": saved_policy, "again": saved_policy}, requests, labeler
        )

    return start


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_the_stage_writes_what_reward_models_read(start, kind):
    directory = start(kind, lambda problem, text: float(len(text.split()) % 3))
    rows = list(records(directory, None))
    result = json.loads((directory / "complete.json").read_text())
    assert len(rows) == result["kept"] > 0
    assert result["responses"] >= 2 * result["kept"] if kind == "pairwise" else result["responses"] >= result["kept"]
    for row in rows:
        if kind == "pairwise":
            good, bad = (len(row[which].split()) % 3 for which in ("chosen", "rejected"))
            assert [good, bad] == row["ratings"]
            assert good > bad
        else:
            assert row["safe"] == (len(row["response"].split()) % 3 > 0)
    learnt, held_out = split_questions([directory], kind, 0.5)
    assert len(learnt) + len(held_out) == len(rows)


def test_a_labeler_that_rates_all_alike_is_an_error(start):
    with pytest.raises(RunError, match="PreferencesConfig.min_difference"):
        start("pairwise", lambda problem, text: 1.0)
