"""`import-hf` of a model on the Hub: faked where the library would use the network, and really offline."""

import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

import r1jax
from r1jax.cli.main import main
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from tests.conftest import ROOT
from tests.shared.checkpoints import export, make_checkpoint, read_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def repository(tmp_path_factory, model) -> Path:
    """Files of a published model, and some that an import doesn't read."""
    home = tmp_path_factory.mktemp("hub")
    make_checkpoint(home / "ours", model)
    export(home / "ours", home / "hf")
    TOKENIZER.save(home / "hf")
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (home / "hf" / name).parent.mkdir(exist_ok=True)
        (home / "hf" / name).write_text("not needed")
    return home / "hf"


@pytest.fixture
def hub(repository, tmp_path, monkeypatch) -> list[dict]:
    """The calls of a snapshot_download that links files as the library's cache does."""
    calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append({"repo_id": repo_id, "revision": revision})
        snapshot = tmp_path / "cache" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True, exist_ok=True)
        names = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            if not (snapshot / name).exists():
                (snapshot / name).parent.mkdir(exist_ok=True)
                (snapshot / name).symlink_to(repository / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_downloaded_and_imported(hub, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import-hf", "owner/a-model.v2", "dest", "--revision", "v1"]) == 0
    # What describes the model first, then the weights of the same commit.
    assert [call["revision"] for call in hub] == ["v1", COMMIT]
    assert {call["repo_id"] for call in hub} == {"owner/a-model.v2"}
    found = {path.name for path in (tmp_path / "cache" / "snapshots" / COMMIT).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= found
    assert not found & {"README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx"}
    export(tmp_path / "dest", tmp_path / "back")
    assert read_tensors(tmp_path / "back") == read_tensors(repository, "model")
    tokenizer = tmp_path / "dest" / "tokenizer" / "tokenizer.json"
    assert not tokenizer.is_symlink()
    assert tokenizer.read_text() == (repository / "tokenizer.json").read_text()


def test_a_local_path_is_not_looked_up(hub, repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repository, tmp_path / "owner" / "model")
    for name in ("consolidated.safetensors", "pytorch_model.bin"):
        (tmp_path / "owner" / "model" / name).unlink()
    assert main(["import-hf", "owner/model", "dest"]) == 0
    assert not hub
    capsys.readouterr()
    assert main(["import-hf", "owner/model", "other", "--revision", "v1"]) == 2
    assert_one_line(capsys, "--revision v1")
    for missing in ("/no/such", "./owner/other", "model", "a/b/c", "../b", "no.gguf"):
        assert main(["import-hf", missing, "other"]) == 2
        assert_one_line(capsys, missing)
    assert not hub
    assert not (tmp_path / "other").exists()


def assert_one_line(capsys, *says: str) -> None:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert all(part in error for part in says), error


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/owner/model/revision/main")
    return kind(f"{status} Client Error.\n\nfor url: {request.url}", response=httpx2.Response(status, request=request))


FAILURES = {
    "gated": (lambda: http_error(errors.GatedRepoError, 403), ["gated", "https://huggingface.co/owner/model"]),
    "not found": (lambda: http_error(errors.RepositoryNotFoundError, 404), ["owner/model", "check its name"]),
    "revision": (lambda: http_error(errors.RevisionNotFoundError, 404), ["no revision 'v1'", "--revision"]),
    "name": (lambda: errors.HFValidationError("Repo id must\nuse …"), ["owner/model", "check its name"]),
    "server": (lambda: http_error(errors.HfHubHTTPError, 503), ["503", "Hub can't be asked"]),
    "no network": (lambda: errors.LocalEntryNotFoundError("No\nconnection"), ["No connection"]),
    "connection": (lambda: httpx2.ConnectError("[Errno -2] Name not known"), ["Name not known"]),
    "read": (lambda: httpx2.ReadTimeout("slow"), ["slow"]),
    "offline": (lambda: errors.OfflineModeIsEnabled("offline mode"), ["offline mode"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_download_is_one_line_and_dest_untouched(case, tmp_path, monkeypatch, capsys):
    make, says = FAILURES[case]

    def fail(*_, **__):
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert main(["import-hf", "owner/model", str(tmp_path / "dest"), "--revision", "v1"]) == 2
    assert_one_line(capsys, "owner/model", *says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["not found", "no network"])
def test_a_mistyped_path_of_two_parts_is_one_error_with_both_readings(case, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise FAILURES[case][0]()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError) as raised:
        r1jax.load("models/qwem")
    assert f"there is no {tmp_path / 'models' / 'qwem'}" in str(raised.value)
    assert "Hugging Face Hub" in str(raised.value) and "\n" not in str(raised.value)
    assert "httpx" not in "".join(traceback.format_exception(raised.value))  # what a notebook shows
    for path in ("runs/r1_zer0", "runs/r1_zero/rl", "checkpoints/qwem"):  # the Hub is not asked
        with pytest.raises(UsageError, match=f"no checkpoint at {tmp_path / path}: expected a stage's directory"):
            r1jax.load(path)


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import-hf", "owner/model", "dest"]) == 0
    config = tmp_path / "cache" / "snapshots" / COMMIT / "config.json"
    hub.clear()
    settings = json.loads(config.read_text()) | {"model_type": "gemma2"}
    config.unlink()
    config.write_text(json.dumps(settings))
    capsys.readouterr()
    assert main(["import-hf", "owner/model", "dest2"]) == 2
    assert_one_line(capsys, "gemma2")
    assert len(hub) == 1
    (tmp_path / "dest3").mkdir()
    assert main(["import-hf", "owner/model", "dest3"]) == 2  # a DEST that exists, before any download
    assert len(hub) == 1


def test_a_repository_without_config(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "empty"))
    assert main(["import-hf", "owner/model-GGUF", str(tmp_path / "dest")]) == 2
    assert_one_line(capsys, "owner/model-GGUF", "config.json")


def test_the_library_itself_offline(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "r1jax", "import-hf", "HuggingFaceTB/SmolLM2-135M", str(tmp_path / "dest")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "HuggingFaceTB/SmolLM2-135M" in done.stderr
    assert not (tmp_path / "dest").exists()


GIVEN = ["owner/model", "published", "model.gguf"]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("command", ["generate", "eval", "chat", "run"])
def test_a_published_model_given_as_a_checkpoint(command, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_text("GGUF")
    arguments = {
        "generate": ["generate", given, "--prompt", "a"],
        "eval": ["eval", given, "--task", "running_sum"],
        "chat": ["chat", given],
        "run": ["run", "r1_zero_math", "--workdir", "run", "--set", f"BaseConfig.path='{given}'"],
    }
    assert main(arguments[command]) == 2
    absolute = given if given == "owner/model" else str(tmp_path / given)
    assert_one_line(capsys, f"`r1jax import-hf {absolute} DEST`")
    assert not (tmp_path / "run").exists()
