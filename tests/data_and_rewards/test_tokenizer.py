"""Published tokenizers: DeepSeek's own, and small ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
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


@pytest.mark.slow
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


MESSAGES = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "déjà vu?"},
    {"role": "assistant", "content": "no", "reasoning": "hm", "tool_calls": None},
    {"role": "user", "content": "2 + 2?"},
]
TEMPLATES = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "scope of generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "date": "{{ strftime_now('%Y') }} {% if strftime_now is defined %}{{ strftime_now('%B') }}{% endif %}",
    "json": "{{ messages | tojson }} {{ messages[1] | tojson(ensure_ascii=True, indent=2) }}",
    "json options": "{{ {'b': 1, 'a': [2]} | tojson(separators=(',', ':'), sort_keys=true) }} {{ 'é' | tojson(true) }}",
    "absent": "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {% if tools %}t{% endif %}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}|{{ sep_token }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{% set a = namespace(n=0) %}{% for m in messages %}{% set a.n = a.n + 1 %}{% endfor %}{{ a.n }}",
    "an attribute named self": "{% set a = namespace(self=3, **{'b': 4}) %}{{ a.self }}{{ a.b }}",
    "dict": "{{ dict(a=1) }} {{ dict.fromkeys(['a'], 2) }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ 'tool_calls' in m }}{% endfor %}",
    "white space": "  {%- for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_templates_render_as_in_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers", reason="prompts are compared with transformers'")
    directory = word_tokenizer(tmp_path, chat_template=template, pad_token="<pad>", sep_token=None)
    expected = reference(transformers, directory).apply_chat_template(MESSAGES, tokenize=False)
    assert load(directory).chat(MESSAGES, add_generation_prompt=False) == expected != ""


def reference(transformers, directory):
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize(
    "template",
    ["{% set n = namespace() %}{% set n.__call__ = raise_exception %}", "{% set n = namespace(**{'_a': 1}) %}"],
)
def test_a_namespace_keeps_nothing_private(tmp_path, template):
    tokenizer = load(word_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(UsageError, match="SecurityError"):
        tokenizer.chat(MESSAGES)


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{% for x in y %}", "{{ x | nofilter }}", 5, {"a": 1}, [{"name": "tool_use", "template": "x"}]],
    ids=str,
)
def test_a_template_that_cannot_be_read_fails_when_it_is_used(tmp_path, template):
    fails_when_used(word_tokenizer(tmp_path, chat_template=template))


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"\xff\xfe\x00"), lambda file: file.mkdir()])
def test_a_template_file_that_cannot_be_read_fails_when_it_is_used(tmp_path, damage):
    directory = word_tokenizer(tmp_path, chat_template="never used: the file precedes it")
    damage(tmp_path / "chat_template.jinja")
    fails_when_used(directory)


def fails_when_used(directory: epath.Path) -> None:
    tokenizer = load(directory)
    assert tokenizer.encode("compute 3") == TOKENIZER.encode("compute 3")
    for ask in (lambda: tokenizer.prompt("compute 3"), lambda: tokenizer.chat(MESSAGES)):
        with pytest.raises(UsageError, match="chat_template") as raised:
            ask()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", [{"eos_token": 5}, {"eos_token": ["a"]}, {"bos_token": {"content": 1}}])
def test_invalid_tokenizer_configs(tmp_path, config):
    with pytest.raises(UsageError, match="eos_token|bos_token"):
        load_tokenizer(word_tokenizer(tmp_path, **config))


# ---- end tokens

EOS = TOKENIZER.eos_id


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, (EOS,)),
        (EOS, EOS, (EOS,)),
        ([9, EOS, 7], 8, (EOS, 9, 7, 8)),  # the tokenizer's own precedes
        ([], [5, 5], (EOS, 5)),
        (-1, 10**12, (EOS,)),  # ids that are never drawn
    ],
)
def test_the_configs_add_end_tokens(tmp_path, generation, config, expected):
    directory = with_end_tokens(word_tokenizer(tmp_path), generation, config)
    tokenizer = load(directory)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (EOS, expected)
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(epath.Path(copy))
    assert load(copy).eos_ids == expected


def test_a_tokenizer_without_an_end_token_has_that_of_the_configs(tmp_path):
    directory = word_tokenizer(tmp_path, eos_token=None)
    with pytest.raises(UsageError, match="eos_token"):
        load_tokenizer(directory)
    tokenizer = load(with_end_tokens(directory, None, [7, 9]))
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (7, (7, 9))


@pytest.mark.parametrize("ids", ["2", [1, "2"], 2.0, True, {"id": 2}, [[1]]])
def test_end_tokens_that_are_no_ids(tmp_path, ids):
    with pytest.raises(UsageError, match="eos_token_id"):
        load_tokenizer(with_end_tokens(word_tokenizer(tmp_path), ids, None))


def with_end_tokens(directory: epath.Path, generation, config) -> epath.Path:
    """`directory` with configs that name these end tokens."""
    for name, ids in (("generation_config.json", generation), ("config.json", config)):
        (directory / name).write_text(json.dumps({"eos_token_id": ids}))
    return directory


@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {}}])
def test_an_older_tokenizers_special_tokens(tmp_path, decoder):
    transformers = pytest.importorskip("transformers", reason="tokens are compared with transformers'")
    directory = word_tokenizer(tmp_path, **decoder)
    older = {"eos_token": TOKENIZER.words[9], "pad_token": {"content": "<pad>"}, "additional_special_tokens": []}
    (directory / "special_tokens_map.json").write_text(json.dumps(older))
    expected, tokenizer = reference(transformers, directory), load(directory)
    assert tokenizer.eos_id == expected.eos_token_id
    assert tokenizer.special_tokens == expected.special_tokens_map


# ---- begin tokens


@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_eos_token": False}], ids=str)
@pytest.mark.parametrize("form", [None, "<bos> $A", "$A", "<bos> $A <eos>", "$A <eos>", "<pad> <bos> $A"])
def test_a_text_begins_as_in_transformers(tmp_path, form, config):
    """As tokenizer.json says; the end tokens that some append are not part of a prompt."""
    transformers = pytest.importorskip("transformers", reason="ids are compared with transformers'")
    directory = word_tokenizer(tmp_path, **config)
    process(tmp_path / "tokenizer.json", form)
    expected = reference(transformers, directory)("compute 3")["input_ids"]
    tokenizer = load(directory)
    assert tokenizer.prompt("compute 3") == expected[: -1 if expected[-1] == EOS else None]
    assert tokenizer.encode("compute 3") == TOKENIZER.encode("compute 3")


def process(path: Path, form: str | None) -> None:
    """Gives a tokenizer.json a post-processor, and settings of a training run that make no difference."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(2)
    if form:
        special = [(word, TOKENIZER.ids[word]) for word in ("<pad>", "<bos>", "<eos>")]
        template = tokenizers.processors.TemplateProcessing(single=form, special_tokens=special)
        steps = [tokenizers.processors.ByteLevel(trim_offsets=False), template]  # as Llama 3's
        tokenizer.post_processor = tokenizers.processors.Sequence(steps)
    tokenizer.save(str(path))


def test_a_chat_template_that_writes_the_begin_token_writes_the_only_one(tmp_path):
    transformers = pytest.importorskip("transformers", reason="ids are compared with transformers'")
    template = "{{ bos_token }} user : {{ messages[0].content }} {{ eos_token }} "
    directory = word_tokenizer(tmp_path, chat_template=template)
    process(tmp_path / "tokenizer.json", "<bos> $A")
    messages = [{"role": "user", "content": "compute 3"}]
    expected = reference(transformers, directory).apply_chat_template(messages, return_dict=False)
    assert load(directory).prompt("compute 3") == expected
    assert expected.count(TOKENIZER.bos_id) == 1


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


@pytest.mark.slow
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
