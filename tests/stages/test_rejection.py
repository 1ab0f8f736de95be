"""Rejection sampling keeps right, readable and distinct responses with their provenance, and resumes at any part."""

import dataclasses
import json
import subprocess
import sys

import pytest
from etils import epath

from r1jax.config import RejectionConfig
from r1jax.data.feeds import distinct_problems, records, write_array_record
from r1jax.data.tasks import TASKS
from r1jax.errors import RunError, UsageError
from r1jax.rewards.filters import choose, make_filters
from r1jax.rewards.rules import Reward
from r1jax.runs.run import Experiment, open_run
from r1jax.stages import rejection as stage
from r1jax.stages.rejection import few_shot_prompt, rejection
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem, Sample
from tests.shared.configs import change, rejection_config
from tests.shared.samples import make_sample

TASK = TASKS["running_sum"]
PROBLEM = Problem(7, "compute 1 #a + 2", "3", "en", "running_sum")
RIGHT = {"accuracy": 1.0, "format": 1.0, "language": 1.0}
CONFIG = rejection_config(
    slots=24, num_prompts=12, samples_per_prompt=4, max_prompt_tokens=24, max_new_tokens=12, shard_prompts=4, keep=2
)


def sample(text: str, tokens: int | list[int] = 5, finished: bool = True, **rewards) -> Sample:
    ids = list(range(tokens)) if isinstance(tokens, int) else tokens
    return make_sample(PROBLEM, text, ids, finished=finished, **RIGHT | rewards)


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (sample("a", finished=False), "unfinished"),
        (sample("a", finished=False, accuracy=0.0), "unfinished"),  # counted for the first filter that drops it
        (sample("a", accuracy=0.0), "wrong"),
        (sample("a", accuracy=None), "wrong"),  # the verifier failed
        (sample("a", format=0.0), "malformed"),
        (sample("a", language=0.79), "mixed_language"),
        (sample("a", tokens=11), "too_long"),
        (sample("a", tokens=[1, 2, 3, 4] * 2), "repetitive"),  # 1 of its 5 4-grams is a repetition
        (sample("one two three\n\none two three four"), "long_paragraph"),
        (sample("see ```print(1)```"), "code_block"),
        (sample("one two three\n\nfour"), None),
        (sample("a", tokens=10, language=0.8), None),
        (sample("a", language=None), None),  # the reward does not apply, hence nor does its filter
        (sample("a", format=None), None),
    ],
)
def test_each_filter_drops_its_case(drawn, reason):
    config = dataclasses.replace(CONFIG, longest=10, language=0.8, repetition=0.19, paragraph_words=3)
    kept, dropped = choose([drawn], make_filters(config), config)
    assert kept == ([] if reason else [0])
    assert {name for name, count in dropped.items() if count} == ({reason} if reason else set())


def test_duplicates_are_dropped_and_config_choose_orders_the_rest():
    drawn = [sample("a", 9), sample("b", 5), sample("a", 9), sample("c", 7), sample("d", accuracy=0.0), sample("e", 3)]
    kept, dropped = choose(drawn, make_filters(CONFIG), CONFIG)
    assert kept == [0, 1]
    assert {name: count for name, count in dropped.items() if count} == {"duplicate": 1, "wrong": 1, "beyond_keep": 2}
    shortest = dataclasses.replace(CONFIG, choose="shortest")
    assert choose(drawn, make_filters(shortest), shortest)[0] == [1, 5]


def test_code_blocks_may_be_kept():
    config = dataclasses.replace(CONFIG, code_blocks=True)
    assert choose([sample("```x```")], make_filters(config), config)[0] == [0]


# The stage, on an untrained policy: responses with an even sum of tokens count as right.

REWARDS = {
    "accuracy": Reward(lambda s: float(sum(s.tokens) % 2 == 0), 1.0),
    "language": Reward(lambda s: 1.0, 0.0),
}
LOOSE = change(CONFIG, stop_ids=tuple(range(0, 208, 9)), temperature=1.5)


@pytest.fixture
def problems(toy_records) -> epath.Path:
    return toy_records[TASK.prompts]


@pytest.fixture
def start(tmp_path, experiment_config, one_device, saved_policy, problems):
    def start(name: str, config: RejectionConfig = LOOSE, rewards=REWARDS, **options) -> epath.Path:
        run = open_run(str(tmp_path / name), Experiment("x"), experiment_config, one_device, Progress()).with_task(TASK)
        return rejection(run.stage("kept"), config, saved_policy, problems, rewards, **options)

    return start


def test_kept_responses_have_their_provenance(start, saved_policy, problems):
    directory = start("run")
    rows, result = list(records(directory, None)), json.loads((directory / "complete.json").read_text())
    assert result["drawn"] == 48
    assert 0 < len(rows) == result["kept"] < 48
    assert result["drawn"] == sum(n for name, n in result.items() if name not in ("drawn", "content"))
    asked = {p.id: p for p in distinct_problems(problems, 12)}
    for row in rows:
        assert row["question"] == asked[row["problem"]].question
        assert row["rewards"]["accuracy"] == 1.0
        assert row["stage"] == "kept"
        assert row["policy"] == str(saved_policy)
        assert row["source"] == "running_sum"
        assert sum(r["problem"] == row["problem"] for r in rows) <= 2
        assert row["tokens"] == len(row["response"].split()) + 1  # and the end token
    index = json.loads((directory / "index.json").read_text())
    assert sum(shard["records"] for shard in index["shards"]) == len(rows)


def test_killed_between_parts_it_resumes_to_the_same_bytes(start, monkeypatch):
    whole, written = start("whole"), stage.write_part

    def killing(directory, number, *arguments):
        if number == 2:
            raise KeyboardInterrupt
        written(directory, number, *arguments)

    monkeypatch.setattr(stage, "write_part", killing)
    with pytest.raises(KeyboardInterrupt):
        start("killed")
    monkeypatch.undo()
    graded = []
    monkeypatch.setattr(stage, "write_part", lambda d, n, *rest: (graded.append(n), written(d, n, *rest)))
    again = start("killed")
    assert graded == [2]
    assert {p.name for p in again.iterdir()} == {p.name for p in whole.iterdir()}
    for path in whole.iterdir():
        if path.name != "sessions.json":
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_seqio_reads_the_index(start, tmp_path):
    directory = start("run")
    code = f"""
import json, seqio, tensorflow as tf
from etils import epath
from r1jax.data.seqio_tasks import add_records
columns = {{"question": tf.string, "response": tf.string, "problem": tf.int32}}
add_records("kept", epath.Path({str(directory)!r}), columns)
rows = seqio.TaskRegistry.get("kept").get_dataset(None, "train", shuffle=False).as_numpy_iterator()
print(json.dumps([[r["question"].decode(), r["response"].decode(), int(r["problem"])] for r in rows]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = [[r["question"], r["response"], r["problem"]] for r in records(directory, None)]
    assert json.loads(out.splitlines()[-1]) == expected


def test_shots_precede_the_question(start):
    shots = [("compute 1 #a + 2", "<think> start 1 #a plus 2 gives 3 </think> <answer> 3 </answer>")]
    text = TASK.tokenizer.decode(few_shot_prompt(TASK, shots, "compute 4 #a + 5"))
    assert text == (
        "<bos> user : compute 1 #a + 2 ? assistant : <think> start 1 #a plus 2 gives 3 </think> <answer> 3 </answer>"
        " <eos> <bos> user : compute 4 #a + 5 ? assistant :"
    )
    shown = start("shown", change(LOOSE, max_prompt_tokens=60), shots=shots)
    assert json.loads((shown / "config.json").read_text())["shots"] == [list(shots[0])]
    assert [r["response"] for r in records(shown, None)] != [r["response"] for r in records(start("plain"), None)]


def test_keeping_nothing_is_an_error_with_the_counts(start):
    with pytest.raises(RunError, match='{"drawn": 48, "kept": 0'):
        start("none", rewards=REWARDS | {"accuracy": Reward(lambda s: 0.0, 1.0)})


def test_a_missing_reward_of_a_filter_is_named(start):
    with pytest.raises(UsageError, match="'accuracy'"):
        start("a", rewards={"language": REWARDS["language"]})
    with pytest.raises(UsageError, match=r"'language'.*RejectionConfig.language"):
        start("b", rewards={"accuracy": REWARDS["accuracy"]})
    with pytest.raises(UsageError, match="99.*num_prompts"):
        start("c", change(LOOSE, num_prompts=99))


def test_a_question_is_asked_once(tmp_path):
    rows = [{"id": i, "question": q, "answer": "1", "language": "en", "source": "x"} for i, q in enumerate("abac")]
    write_array_record(epath.Path(tmp_path) / "p", rows)
    assert [p.id for p in distinct_problems(epath.Path(tmp_path) / "p", 4)] == [0, 1, 3]
