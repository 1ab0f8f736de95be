"""The demo's task, its seqio tasks, and the Grain feeds of their records."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from r1jax.data.feeds import Records, ensure_records, packed_batches, problem_batches, records, token_batch
from r1jax.data.toy import running_sum
from r1jax.errors import RunError, UsageError

DOCUMENTS = 3000


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("data"))
    wanted = [Records("running_sum_corpus", "train", DOCUMENTS), Records("running_sum_problems", "test", 64)]
    return ensure_records(wanted, 3, folder)


def test_running_totals_stay_small_and_answers_are_right():
    rng = running_sum.random.Random(0)
    for _ in range(2000):
        drawn = running_sum.draw_sum(rng, 2, 8, held_out=False)
        totals = list(itertools.accumulate(drawn.operands))
        assert all(0 <= t <= 20 for t in totals)
        assert drawn.answer == totals[-1]


def test_a_worked_sum_by_hand():
    drawn = running_sum.Sum((3, -1, 7))
    assert drawn.expression() == "3 #a - 1 #b + 7"
    lines, total = running_sum.write_reasoning(running_sum.random.Random(0), drawn, 1, ["en"], 0.0)
    assert " ".join(lines) == "start 3 #a minus 1 gives 2 #b plus 7 gives 9"
    assert total == 9


def test_no_held_out_sum_is_trained_on():
    test = {p.question.split(" ", 1)[1] for p in itertools.islice(running_sum.problems("test", 0), 500)}
    train = {p.question.split(" ", 1)[1] for p in itertools.islice(running_sum.problems("train", 0), 5000)}
    assert not test & train
    for document in itertools.islice(running_sum.documents(0), 5000):
        words = document.split()
        for end in range(len(words)):
            if words[end] in ("?", "."):
                expression = " ".join(words[:end]).rpartition("compute ")[2].rpartition("calcula ")[2]
                assert expression.removeprefix("<bos> ") not in test
                break


def test_corpus_has_the_stated_mixture():
    documents = list(itertools.islice(running_sum.documents(0), 20000))
    pages = sum("user" not in d for d in documents) / len(documents)
    chats = sum("how do i" in d for d in documents) / len(documents)
    tagged = sum("<think>" in d for d in documents) / len(documents)
    assert pages == pytest.approx(0.35, abs=0.01)
    assert chats == pytest.approx(0.10, abs=0.01)
    assert tagged == pytest.approx(0.2 * 0.55, abs=0.01)


def test_tokenizer_round_trip_and_unknown_words():
    tokenizer = running_sum.TOKENIZER
    for document in itertools.islice(running_sum.documents(1), 500):
        assert tokenizer.decode(tokenizer.encode(document)) == document
    with pytest.raises(UsageError, match="'rhubarb'"):
        tokenizer.encode("how do i make rhubarb")


def test_seqio_gives_the_generators_documents_with_an_end_token(data):
    made = [r["inputs"] for r in records(data[0], None)]
    tokenizer = running_sum.TOKENIZER
    expected = [[*tokenizer.encode(d), tokenizer.eos_id] for d in itertools.islice(running_sum.documents(3), DOCUMENTS)]
    assert made == expected


def test_seqio_gives_the_generators_problems(data):
    for record, problem in zip(records(data[1], None), running_sum.problems("test", 3), strict=False):
        assert record == vars(problem)


def test_every_task_is_registered():
    """In a subprocess, so that TensorFlow isn't imported here."""
    code = "import json, seqio, r1jax.data.seqio_tasks; print(json.dumps(sorted(seqio.TaskRegistry.names())))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == [
        "arithmetic_problems",
        "chat_demonstrations",
        "chat_helpful_pairs",
        "chat_preferences",
        "chat_problems",
        "chat_safety",
        "countdown_problems",
        "higher_lower_corpus",
        "higher_lower_problems",
        "r1_corpus",
        "running_sum_corpus",
        "running_sum_problems",
        "tool_sums_corpus",
        "tool_sums_problems",
    ]


def test_documents_are_packed_whole(data):
    feed = packed_batches(data[0], 8, 80, 0)
    batch = token_batch(next(feed))
    documents = {tuple(r["inputs"]) for r in records(data[0], None)}
    for tokens, segments, positions in zip(batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert tuple(tokens[inside].tolist()) in documents
            assert positions[inside].tolist() == list(range(inside.sum()))


def test_feeds_resume_from_a_saved_position(data):
    feed = packed_batches(data[0], 8, 80, 0)
    for _ in range(5):
        next(feed)
    state = json.loads(json.dumps(feed.get_state()))
    expected = [next(feed)["tokens"] for _ in range(3)]
    again = packed_batches(data[0], 8, 80, 0)
    again.set_state(state)
    np.testing.assert_array_equal([next(again)["tokens"] for _ in range(3)], expected)


def test_problem_feed_shuffles_repeats_and_resumes(data):
    feed = problem_batches(data[1], 16, 0)
    first_epoch = [p.id for _ in range(4) for p in next(feed)]
    assert sorted(first_epoch) == list(range(64))
    assert first_epoch != list(range(64))
    state = json.loads(json.dumps(feed.get_state()))
    expected = next(feed)
    again = problem_batches(data[1], 16, 0)
    again.set_state(state)
    assert next(again) == expected
    assert [p.id for p in next(problem_batches(data[1], 16, 0))] == first_epoch[:16]
    assert [p.id for p in next(problem_batches(data[1], 16, 1))] != first_epoch[:16]


def test_an_unknown_task(tmp_path):
    with pytest.raises(RunError, match="nonsense"):
        ensure_records([Records("nonsense", "train", 3)], 0, epath.Path(tmp_path))
    assert not list(tmp_path.glob("*.array_record"))
