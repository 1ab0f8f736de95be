"""Published tokenizers: DeepSeek's own, and small ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from r1jax.data.published_tokenizer import PublishedTokenizer, load_tokenizer
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from tests.conftest import ROOT
from tests.shared.deepseek_tokens import TOKENIZER as DEEPSEEK
from tests.shared.deepseek_tokens import gsm8k_rows, write_tokenizer


@pytest.fixture(scope="module")
def deepseek_files(tmp_path_factory) -> Path:
    if not DEEPSEEK.exists():
        pytest.skip("DeepSeek's tokenizer is not beside the project (../shared/data)")
    directory = tmp_path_factory.mktemp("deepseek")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def deepseek(deepseek_files) -> PublishedTokenizer:
    return load(deepseek_files)


@pytest.fixture(scope="module")
def gsm8k() -> list[str]:
    return [row[field] for row in gsm8k_rows() for field in ("question", "answer")]


def test_every_text_of_gsm8k_comes_back(deepseek, gsm8k):
    for text in gsm8k:
        assert deepseek.decode(deepseek.encode(text)) == text


def test_ids_equal_those_of_transformers(deepseek, deepseek_files, gsm8k):
    transformers = pytest.importorskip("transformers", reason="ids are compared with transformers'")
    transformers.logging.set_verbosity_error()
    reference = transformers.AutoTokenizer.from_pretrained(deepseek_files)
    texts = [*gsm8k, "  spaces\n\n\ttabs ", "你好，世界 déjà vu 🙂", "<｜User｜>2+2?<｜Assistant｜>", ""]
    assert [deepseek.encode(text) for text in texts] == reference(texts, add_special_tokens=False)["input_ids"]
    assert (deepseek.bos_id, deepseek.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert deepseek.size == len(reference)


def test_chat_template_equals_that_of_transformers(deepseek, deepseek_files):
    transformers = pytest.importorskip("transformers", reason="prompts are compared with transformers'")
    transformers.logging.set_verbosity_error()
    reference = transformers.AutoTokenizer.from_pretrained(deepseek_files)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>Hello"},
        {"role": "user", "content": "2 + 2 {{ 1 }}?"},
    ]
    for again in (True, False):
        expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=again)
        assert deepseek.chat(messages, add_generation_prompt=again) == expected
    ids = reference.apply_chat_template(messages[1:2], add_generation_prompt=True, return_dict=False)
    assert deepseek.prompt("Hi") == ids
    assert ids[0] == deepseek.bos_id


def load(directory) -> PublishedTokenizer:
    tokenizer = load_tokenizer(epath.Path(directory))
    assert tokenizer is not None
    return tokenizer


def word_tokenizer(directory: Path, **config) -> epath.Path:
    TOKENIZER.save(epath.Path(directory))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return epath.Path(directory)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
        ("{{ messages[0].content + 1 }}", "chat_template"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "chat_template"),
    ],
)
def test_templates_run_in_a_sandbox(tmp_path, template, named):
    tokenizer = load(word_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(UsageError, match=named):
        tokenizer.chat([{"role": "user", "content": "hi"}])


def test_a_template_that_does_not_parse(tmp_path):
    with pytest.raises(UsageError, match="chat_template"):
        load_tokenizer(word_tokenizer(tmp_path, chat_template="{% if %}"))


@pytest.mark.parametrize(
    "config",
    [{"eos_token": 5}, {"eos_token": ["a"]}, {"eos_token": {}}, {"chat_template": 5}, {"chat_template": {"a": 1}}],
)
def test_invalid_tokenizer_configs(tmp_path, config):
    with pytest.raises(UsageError, match="eos_token|chat_template"):
        load_tokenizer(word_tokenizer(tmp_path, **config))


def test_templates_by_name_and_in_a_file(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "A{{ messages[0].content }}"}]
    directory = word_tokenizer(tmp_path, chat_template=named)
    messages = [{"role": "user", "content": "x"}]
    assert load(directory).chat(messages) == "Ax"
    (directory / "chat_template.jinja").write_text("B{{ eos_token }}")
    assert load(directory).chat(messages) == "B<eos>"


def test_a_prompt_without_a_template_begins_as_the_config_says(tmp_path):
    plain = load(word_tokenizer(tmp_path, add_bos_token=True))
    assert plain.prompt("compute 3") == [TOKENIZER.bos_id, *TOKENIZER.encode("compute 3")]
    assert load(word_tokenizer(tmp_path)).prompt("compute 3") == TOKENIZER.encode("compute 3")


def test_the_demos_tokenizer_is_saved_and_loaded(tmp_path):
    back = load(word_tokenizer(tmp_path))
    text = "<bos> user : compute 3 #a - 1 ? assistant :"
    assert back.encode(text) == TOKENIZER.encode(text)
    assert back.decode(back.encode(text)) == text
    assert (back.size, back.bos_id, back.eos_id) == (TOKENIZER.size, TOKENIZER.bos_id, TOKENIZER.eos_id)


SENTENCEPIECE = """
import json, sys
from etils import epath
from r1jax.data.published_tokenizer import load_tokenizer
t = load_tokenizer(epath.Path(sys.argv[1]))
texts = json.loads(sys.argv[2])
config = epath.Path(sys.argv[1]) / "tokenizer_config.json"
config.write_text(json.dumps({"add_bos_token": False, "chat_template": "{{ messages[0].content }}"}))
without = load_tokenizer(epath.Path(sys.argv[1])).prompt(texts[0])
print(json.dumps([t.size, t.bos_id, t.eos_id, [t.encode(x) for x in texts], [t.decode(t.encode(x)) for x in texts],
                  t.prompt(texts[0]), without]))
"""


def test_sentencepiece_through_seqio(tmp_path):
    """In a subprocess, since seqio imports TensorFlow."""
    import sentencepiece

    texts = [" ".join(TOKENIZER.words[i : i + 9]) for i in range(0, 200, 3)]
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=150, minloglevel=2
        )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    command = [sys.executable, "-c", SENTENCEPIECE, str(tmp_path), json.dumps(texts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, bos, eos, ids, decoded, prompt, without = json.loads(done.stdout.splitlines()[-1])
    assert (size, bos, eos) == (reference.get_piece_size(), reference.bos_id(), reference.eos_id())
    assert ids == [reference.encode(text) for text in texts]
    assert decoded == texts
    assert prompt == [bos, *ids[0]]
    assert without == ids[0]  # tokenizer_config.json and its template also apply to SentencePiece
