"""Finds the source of an import: a local path, or a model of the Hugging Face Hub, which is downloaded.

Cache, progress, resumption and access tokens are those of the huggingface_hub library.
"""

import re

from etils import epath

from r1jax.checkpoint.published_config import from_published
from r1jax.checkpoint.safetensors_files import INDEX, SINGLE
from r1jax.data.published_tokenizer import FILES, read_json
from r1jax.errors import UsageError
from r1jax.paths import absolute

HUB_ID = re.compile(r"(?!runs/|checkpoints/)\w[\w.-]*/\w[\w.-]*")  # those two are directories of this project
DESCRIPTION = ["config.json", *FILES]
WEIGHTS = [INDEX, SINGLE, "model-*.safetensors"]  # not the second copies that some models have under other names


def find_source(source: epath.Path | str, revision: str | None, *, mtp: bool) -> epath.Path:
    """The local path of an import's source. A path that exists has precedence over a Hub id.

    Raises UsageError when the source is neither, or can't be downloaded.
    """
    path = absolute(source)
    if not path.exists() and HUB_ID.fullmatch(str(source)):
        return download(str(source), revision, mtp=mtp)
    if revision is not None:
        raise UsageError(f"--revision {revision} is for a Hub id, got the path {source}: leave it out")
    if not path.exists():
        raise UsageError(f"{source} does not exist, expected a directory, a .gguf file or a Hub id (OWNER/NAME)")
    return path


def download(name: str, revision: str | None, *, mtp: bool) -> epath.Path:
    """The directory of a model from the Hub, whose config.json is checked before its weights are downloaded."""
    described = snapshot(name, revision, DESCRIPTION)
    if not (described / "config.json").exists():
        raise UsageError(f"{name} on the Hub has no config.json, expected a model in safetensors with config.json")
    from_published(read_json(described / "config.json"), mtp=mtp)
    return snapshot(name, described.name, DESCRIPTION + WEIGHTS)  # its name is the commit


def snapshot(name: str, revision: str | None, files: list[str]) -> epath.Path:
    """The directory of some files of a model. Raises UsageError, without the traceback of the Hub's client."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download  # imports a web client: many commands never need it

    try:
        return epath.Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except hub.GatedRepoError:
        say = f"is gated: accept its terms at https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN"
        raise UsageError(f"{name} {say}") from None
    except hub.RevisionNotFoundError:
        raise UsageError(f"{name} has no revision {revision!r}: set --revision to a branch, tag or commit") from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        say = f"there is no {absolute(name)}, and no model of this name on the Hugging Face Hub"
        raise UsageError(f"{name}: {say}: check its name; private models need `hf auth login`") from None
    except (hub.HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        say = f"there is no {absolute(name)}, and the Hugging Face Hub can't be asked for a model of this name"
        raise UsageError(f"{name}: {say}: {reason}; repeat the command to resume a download") from None
