"""import-hf and export-hf lose no bit, leave nothing half done, and name what is wrong with an input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from r1jax.checkpoint.arrays import open_array
from r1jax.checkpoint.published import array_specs, published_tensors
from r1jax.checkpoint.published_config import from_published, to_published
from r1jax.checkpoint.safetensors_files import dequantise, open_safetensors
from r1jax.checkpoint.store import policy_item
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import main
from r1jax.config import MeshConfig, RopeScalingConfig
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from r1jax.model.spec import count_active_params, count_params
from r1jax.parallel.layout import make_layout
from r1jax.runs import hugging_face
from r1jax.runs.hugging_face import fingerprint
from r1jax.runs.policy import load_policy
from tests.conftest import ROOT
from tests.shared.checkpoints import export, import_, make_checkpoint, read_tensors

INDEX = "model.safetensors.index.json"


def write_raw(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Writes a safetensors file by hand, so that it can be malformed."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


@pytest.fixture(scope="module")
def bf16_model(model):
    """A model with groups, two MTP modules, YaRN, and widths that are not multiples of 128."""
    return dataclasses.replace(
        model,
        hidden_size=160,
        num_hidden_layers=3,
        n_group=2,
        topk_group=1,
        num_nextn_predict_layers=2,
        rope_scaling=RopeScalingConfig(4.0, 32, 16.0, 2.0, 0.9, 0.7),
        param_dtype="bfloat16",
        dtype="bfloat16",
        initializer_range=0.02,
        experts="grouped",  # what an import sets
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory, bf16_model) -> Path:
    """A published checkpoint in bfloat16, in several shards, with the demo's tokenizer."""
    home = tmp_path_factory.mktemp("published")
    make_checkpoint(home / "ours", bf16_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face, "SHARD_BYTES", 300_000)
        export(home / "ours", home / "hf")
    TOKENIZER.save(epath.Path(home / "hf"))
    assert len(list((home / "hf").glob("*.safetensors"))) > 3
    return home / "hf"


def test_import_export_import_is_bit_identical(published, tmp_path, bf16_model, one_device):
    import_(published, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "hf")
    import_(tmp_path / "hf", tmp_path / "two")
    one, two = (load_policy(epath.Path(tmp_path / name), one_device) for name in ("one", "two"))
    assert one.model == two.model == bf16_model
    for a, b in zip(jax.tree.leaves(policy_tree(one)), jax.tree.leaves(policy_tree(two)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert one.weights.params["moe"]["feed_forward"]["gate_EDF"].dtype == "bfloat16"
    assert one.weights.router_bias["moe"].dtype == "float32"
    assert read_tensors(tmp_path / "hf") == read_tensors(published)


def policy_tree(policy):
    return policy_item(*policy.weights)


def test_what_was_trained_is_what_is_exported(published, tmp_path, one_device):
    """A checkpoint saved by Orbax and one written part by part hold the same arrays."""
    import_(published, tmp_path / "imported")
    ours = load_policy(epath.Path(published.parent / "ours"), one_device)
    back = load_policy(epath.Path(tmp_path / "imported"), one_device)
    for a, b in zip(jax.tree.leaves(policy_tree(ours)), jax.tree.leaves(policy_tree(back)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_import_is_restored_onto_any_mesh(published, tmp_path, one_device):
    import_(published, tmp_path / "ours")
    mesh = make_layout(MeshConfig(data=1, fsdp=2, expert=2, tensor=2), devices=jax.devices())
    sharded = load_policy(epath.Path(tmp_path / "ours"), mesh)
    gate = sharded.weights.params["moe"]["feed_forward"]["gate_EDF"]
    assert gate.addressable_shards[0].data.size == gate.size // 8
    whole = load_policy(epath.Path(tmp_path / "ours"), one_device)
    for a, b in zip(jax.tree.leaves(policy_tree(sharded)), jax.tree.leaves(policy_tree(whole)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_without_mtp(published, tmp_path, one_device):
    import_(published, tmp_path / "ours", mtp=False)
    policy = load_policy(epath.Path(tmp_path / "ours"), one_device)
    assert policy.model.num_nextn_predict_layers == 0
    assert "mtp" not in policy.weights.params
    with_mtp = load_policy(epath.Path(published.parent / "ours"), one_device)
    np.testing.assert_array_equal(
        np.asarray(policy.weights.params["head_DV"]), np.asarray(with_mtp.weights.params["head_DV"])
    )


def to_fp8(tensors: dict) -> dict:
    """Linear weights as published: e4m3, with a float32 scale for each 128 x 128 block."""
    rng, out = np.random.default_rng(0), {}
    for name, (dtype, shape, data) in tensors.items():
        if not name.endswith("proj.weight"):
            out[name] = (dtype, shape, data)
            continue
        values = np.frombuffer(data, ml_dtypes.bfloat16).reshape(shape).astype(np.float32)
        scales = rng.uniform(1e-4, 3e-3, [-(-size // 128) for size in shape]).astype(np.float32)
        spread = np.kron(scales, np.ones((128, 128), np.float32))[: shape[0], : shape[1]]
        weights = np.clip(values / spread, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        out[name] = ("F8_E4M3", shape, weights.tobytes())
        out[name + "_scale_inv"] = ("F32", scales.shape, scales.tobytes())
    return out


def test_fp8_is_dequantised_exactly_as_deepseek_does(published, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference dequantisation is torch's")
    source = tmp_path / "fp8"
    source.mkdir()
    tensors = to_fp8(read_tensors(published))
    write_raw(source / "model.safetensors", tensors)
    shutil.copy(published / "config.json", source)
    import_(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "bf16")

    def tensor(name):
        dtype, shape, data = tensors[name]
        kind = {"F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32}[dtype]
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(kind).reshape(shape)

    found = read_tensors(tmp_path / "bf16")
    fp8 = [name for name, (dtype, _, _) in tensors.items() if dtype == "F8_E4M3"]
    assert len(fp8) > 50
    for name in fp8:
        weights, scales = tensor(name).float(), tensor(name + "_scale_inv")
        for i, j in np.ndindex(*scales.shape):
            weights[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= scales[i, j]
        expected = weights.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        assert found[name] == ("BF16", tuple(weights.shape), expected), name


def test_dequantisation_by_hand():
    weights = np.ones((129, 130), np.float32).astype(ml_dtypes.float8_e4m3fn)
    out = dequantise(weights, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    assert (out[:128, :128] == 1).all()
    assert (out[:128, 128:] == 2).all()
    assert (out[128:, :128] == 3).all()
    assert (out[128:, 128:] == 4).all()


def test_float32_weights_stay_float32(published, tmp_path, one_device):
    source = tmp_path / "f32"
    source.mkdir()
    tensors = {
        name: np.frombuffer(data, {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[dtype])
        .astype(np.float32)
        .reshape(shape)
        for name, (dtype, shape, data) in read_tensors(published).items()
    }
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1e-6)  # no bfloat16
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    shutil.copy(published / "config.json", source)
    import_(source, tmp_path / "ours")
    policy = load_policy(epath.Path(tmp_path / "ours"), one_device)
    assert policy.model.param_dtype == policy.model.dtype == "float32"
    np.testing.assert_array_equal(np.asarray(policy.weights.params["norm_D"]), tensors["model.norm.weight"])


# (damage to a good source, what the one-line error must name)
NORM, EXPERT = "model.layers.1.self_attn.kv_a_layernorm.weight", "model.layers.2.mlp.experts.3.up_proj.weight"
MTP = "model.layers.3.eh_proj.weight"


def change_tensors(change):
    def apply(source: Path):
        tensors = read_tensors(source)
        change(tensors)
        for file in source.glob("*.safetensors*"):
            file.unlink()
        write_raw(source / "model.safetensors", tensors)

    return apply


def change_config(**changes):
    def apply(source: Path):
        config = json.loads((source / "config.json").read_text())
        config |= changes
        kept = {key: value for key, value in config.items() if value != "remove"}
        (source / "config.json").write_text(json.dumps(kept))

    return apply


def truncate(source: Path):
    last = sorted(source.glob("*.safetensors"))[-1]
    os.truncate(last, last.stat().st_size - 10)


def remove_shard(source: Path):
    (source / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    sorted(source.glob("*.safetensors"))[1].unlink()


def misplace_in_index(source: Path):
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][NORM] = next(f for f in index["weight_map"].values() if f != index["weight_map"][NORM])
    (source / INDEX).write_text(json.dumps(index))


def grow_tokenizer(source: Path):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one_more"] = 208
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))


def drop_scale(source: Path):
    change_tensors(lambda t: t.update(to_fp8(t)) or t.pop(EXPERT + "_scale_inv"))(source)


BF16 = ("BF16", (32,), bytes(64))
BAD = {
    "missing": (change_tensors(lambda t: t.pop(NORM)), [NORM]),
    "missing expert": (change_tensors(lambda t: t.pop(EXPERT)), [EXPERT]),
    "missing mtp": (change_tensors(lambda t: t.pop(MTP)), [MTP, "--no-mtp"]),
    "extra": (
        change_tensors(lambda t: t.update({"model.layers.1.extra.weight": BF16})),
        ["model.layers.1.extra.weight"],
    ),
    "extra layer": (change_config(num_hidden_layers=2, num_nextn_predict_layers=2), ["model.layers.2"]),
    "misshapen": (
        change_tensors(lambda t: t.update({NORM: ("BF16", (16,), bytes(32))})),
        [NORM, "(16,)", "(32,)"],
    ),
    "transposed": (change_config(intermediate_size=64), ["model.layers.0.mlp", "(160, 64)"]),
    "truncated": (truncate, ["truncated", "model.layers."]),
    "wrong size": (
        change_tensors(lambda t: t.update({NORM: ("BF16", (32,), bytes(62))})),
        [NORM, "62 bytes"],
    ),
    "integer": (change_tensors(lambda t: t.update({NORM: ("I8", (32,), bytes(32))})), [NORM, "I8"]),
    "missing shard": (remove_shard, [INDEX, "-of-"]),
    "index of another shard": (misplace_in_index, [INDEX, NORM]),
    "no index": (
        lambda s: [f.unlink() for f in s.glob("*.safetensors*")],
        [INDEX, "model.safetensors"],
    ),
    "broken index": (lambda s: (s / INDEX).write_text("{"), [INDEX]),
    "broken header": (
        lambda s: sorted(s.glob("*.safetensors"))[0].write_bytes(b"\xff" * 64),
        ["-of-"],
    ),
    "scale": (drop_scale, [EXPERT, "FP8", "_scale_inv"]),
    "another embedding": (
        change_tensors(lambda t: t.update({"model.layers.3.embed_tokens.weight": ("BF16", (208, 160), bytes(66560))})),
        ["model.layers.3.embed_tokens.weight", " model.embed_tokens", "--no-mtp"],
    ),
    "nothing there": (shutil.rmtree, ["hf does not exist"]),
    "nothing in it": (lambda s: shutil.rmtree(s) or s.mkdir(), [INDEX]),
    "no config": (lambda s: (s / "config.json").unlink(), ["config.json"]),
    "broken config": (lambda s: (s / "config.json").write_text("{"), ["config.json"]),
    "rope": (change_config(rope_scaling={"type": "linear", "factor": 2.0}), ["rope_scaling", "'linear'", "'yarn'"]),
    "rope without a type": (change_config(rope_scaling={"factor": 2.0}), ["rope_scaling", "'default'", "factor"]),
    "rope of two types": (
        change_config(rope_scaling={"type": "yarn", "rope_type": "default", "factor": 2.0}),
        ["rope_scaling", "'default'", "'yarn'"],
    ),
    "rope key": (
        change_config(
            rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "attention_factor": 1}
        ),
        ["rope_scaling", "'attention_factor'"],
    ),
    "rope text": (change_config(rope_scaling="yarn"), ["rope_scaling is 'yarn'"]),
    "rope factor nan": (
        change_config(rope_scaling={"type": "yarn", "factor": float("nan"), "original_max_position_embeddings": 8}),
        ["factor is nan"],
    ),
    "v3 with softmax": (change_config(scoring_func="softmax"), ["deepseek_v3", "scoring_func 'softmax'"]),
    "eps nan": (change_config(rms_norm_eps=float("nan")), ["rms_norm_eps is nan"]),
    "eps text": (change_config(rms_norm_eps="1e-6"), ["rms_norm_eps is '1e-6' (str)"]),
    "infinite scale": (change_config(routed_scaling_factor=float("inf")), ["routed_scaling_factor is inf"]),
    "rope base": (change_config(rope_theta=1), ["rope_theta is 1"]),
    "fraction": (change_config(max_position_embeddings=4096.5), ["max_position_embeddings is 4096.5"]),
    "whole float": (change_config(hidden_size=160.0), ["hidden_size is 160.0 (float)"]),
    "boolean": (change_config(num_nextn_predict_layers=True), ["num_nextn_predict_layers is True"]),
    "text boolean": (change_config(norm_topk_prob="False"), ["norm_topk_prob is 'False' (str)"]),
    "negative": (change_config(kv_lora_rank=-32), ["kv_lora_rank is -32"]),
    "list as type": (change_config(model_type=[]), ["model_type is []"]),
    "no shared experts": (change_config(n_shared_experts=0), ["n_shared_experts 0"]),
    "fewer than no shared experts": (change_config(n_shared_experts=-1), ["n_shared_experts is -1"]),
    "a hundred million layers": (change_config(num_hidden_layers=10**8), ["model.layers."]),
    "index of a number": (lambda s: (s / INDEX).write_text('{"weight_map": {"a": 5}}'), [INDEX, " 5"]),
    "index above": (lambda s: (s / INDEX).write_text('{"weight_map": {"a": "../b"}}'), [INDEX, "'../b'"]),
    "empty index": (lambda s: (s / INDEX).write_text('{"weight_map": {}}'), [INDEX, "weight_map"]),
    "shard that is a directory": (
        lambda s: (s / INDEX).write_text('{"weight_map": {"a": "b"}}') and (s / "b").mkdir(),
        [INDEX, " b,"],
    ),
    "scale of bf16": (
        change_tensors(lambda t: t.update({EXPERT + "_scale_inv": ("F32", (1, 2), bytes(8))})),
        [EXPERT, EXPERT + "_scale_inv"],
    ),
    "fp8 norm": (
        change_tensors(
            lambda t: t.update({NORM: ("F8_E4M3", (32,), bytes(32)), NORM + "_scale_inv": ("F32", (1,), bytes(4))})
        ),
        [NORM, "FP8", "(32,)"],
    ),
    "rope factor": (
        change_config(rope_scaling={"type": "yarn", "original_max_position_embeddings": 32}),
        ["rope_scaling", "'factor'"],
    ),
    "scoring_func": (change_config(scoring_func="tanh"), ["scoring_func is 'tanh'", "sigmoid"]),
    "topk_method": (change_config(topk_method="best"), ["topk_method is 'best'", "noaux_tc"]),
    "model_type": (change_config(model_type="gpt2"), ["model_type is 'gpt2'", "deepseek_v3"]),
    "another family with experts": (
        change_config(model_type="qwen2_moe"),
        ["model_type is 'qwen2_moe'", "shared expert"],
    ),
    "missing key": (change_config(kv_lora_rank="remove"), ["'kv_lora_rank'"]),
    "text for a number": (change_config(hidden_size="160"), ["config.json"]),
    "activation": (change_config(hidden_act="gelu"), ["hidden_act", "silu"]),
    "bias": (change_config(attention_bias=True), ["attention_bias"]),
    "groups": (change_config(n_group=3), ["n_group 3"]),
    "vocabulary": (grow_tokenizer, ["tokenizer", "vocab_size is 208"]),
    "tokenizer": (lambda s: (s / "tokenizer.json").write_text("{"), ["tokenizer.json"]),
    "end token": (
        lambda s: (s / "tokenizer_config.json").write_text('{"eos_token": "<nope>"}'),
        ["eos_token '<nope>'"],
    ),
    "no end token": (lambda s: (s / "tokenizer_config.json").write_text("{}"), ["eos_token", "eos_token_id"]),
    "end tokens": (change_config(eos_token_id=[1, "2"]), ["eos_token_id", "[1, '2']"]),
    "end tokens without tokenizer": (
        lambda s: change_config(eos_token_id="2")(s) or (s / "tokenizer.json").unlink(),
        ["eos_token_id is '2'"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_dest_untouched(case, published, tmp_path, capsys):
    shutil.copytree(published, tmp_path / "hf")
    damage, says = BAD[case]
    damage(tmp_path / "hf")
    assert main(["import-hf", str(tmp_path / "hf"), str(tmp_path / "dest")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for part in says:
        assert part in error
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_dest_that_exists_is_left_alone(published, tmp_path, capsys):
    (tmp_path / "dest").mkdir()
    assert main(["import-hf", str(published), str(tmp_path / "dest")]) == 2
    assert f"{tmp_path / 'dest'} " in capsys.readouterr().err
    assert not list((tmp_path / "dest").iterdir())
    assert main(["export-hf", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err


KILLED = """
import os, signal, sys
from r1jax.checkpoint.safetensors_files import SafetensorsFiles
read, count = SafetensorsFiles.read, [0]
def dying(self, name, dtype):
    count[0] += 1
    if count[0] == 90:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, name, dtype)
SafetensorsFiles.read = dying
from r1jax.cli.main import main
main(["import-hf", *sys.argv[1:]])
"""


def test_a_part_that_is_missing_is_not_exported_as_zeros(published, tmp_path, capsys):
    import_(published, tmp_path / "ours")
    chunk = tmp_path / "ours" / "checkpoints" / "0" / "policy" / "params.moe.feed_forward.gate_EDF" / "0.0.0.0"
    chunk.unlink()
    assert main(["export-hf", str(tmp_path / "ours"), str(tmp_path / "out")]) == 1
    assert "params.moe.feed_forward.gate_EDF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_directory_called_partial_is_left_alone(published, tmp_path, capsys):
    thesis = tmp_path / "dest.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    assert main(["import-hf", str(published), str(tmp_path / "dest")]) == 2
    assert "dest.partial" in capsys.readouterr().err
    assert main(["export-hf", str(published.parent / "ours"), str(tmp_path / "dest")]) == 2
    assert thesis.read_text() == "years of work"
    (tmp_path / "file").write_text("")
    assert main(["import-hf", str(published), str(tmp_path / "file" / "dest")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_changed_source_does_not_resume(published, tmp_path):
    """Other weights of the same shapes, or another config, are another import."""
    source = tmp_path / "hf"
    shutil.copytree(published, source)
    model = load_config(source)
    files = open_safetensors(epath.Path(source))
    before = fingerprint(model, files)
    assert fingerprint(model, open_safetensors(epath.Path(source))) == before
    assert fingerprint(dataclasses.replace(model, rope_theta=77.0), files) != before
    shard = sorted(source.glob("*.safetensors"))[0]
    os.utime(shard, ns=(1, 1))
    assert fingerprint(model, files) != before


def load_config(source: Path):
    return from_published(json.loads((source / "config.json").read_text()), mtp=True)


def test_an_interrupted_import_is_refused_as_a_checkpoint_and_resumes(published, tmp_path, one_device, capsys):
    dest = tmp_path / "dest"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(published), str(dest)]
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not dest.exists()
    assert main(["generate", str(dest), "--prompt_ids", "1"]) == 2
    assert main(["generate", f"{dest}.partial", "--prompt_ids", "1"]) == 2
    assert main(["export-hf", f"{dest}.partial", str(tmp_path / "out")]) == 2
    capsys.readouterr()
    chunks = [p for p in (tmp_path / "dest.partial").rglob("*") if p.is_file() and p.parent.name.startswith("params.")]
    before = {p.relative_to(tmp_path / "dest.partial"): p.stat().st_mtime_ns for p in chunks}
    assert len(before) > 60

    assert main(["import-hf", str(published), str(dest), "--no-mtp"]) == 2  # not the import that was begun
    assert "dest.partial" in capsys.readouterr().err
    import_(published, dest)
    assert {p: (dest / p).stat().st_mtime_ns for p in before} == before  # nothing was written twice
    assert not (tmp_path / "dest.partial").exists()
    import_(published, tmp_path / "whole")
    for name in array_specs(load_policy(epath.Path(dest), one_device).model):
        a, b = (open_array(epath.Path(d) / "checkpoints" / "0" / "policy", name) for d in (dest, tmp_path / "whole"))
        np.testing.assert_array_equal(a.read().result(), b.read().result())


def test_generate_from_an_import(published, tmp_path, capsys):
    import_(published, tmp_path / "ours")
    ids = ",".join(str(i) for i in TOKENIZER.encode("compute 3 #a - 1 ?"))
    arguments = [str(tmp_path / "ours"), "--max_tokens", "4", "--json", "--ignore_eos"]
    capsys.readouterr()
    assert main(["generate", *arguments, "--prompt", "compute 3 #a - 1 ?"]) == 0
    text = json.loads(capsys.readouterr().out)
    assert main(["generate", *arguments, "--prompt_ids", ids]) == 0
    assert json.loads(capsys.readouterr().out) == text
    assert text["text"] == TOKENIZER.decode(text["ids"])
    assert main(["eval", str(tmp_path / "ours"), "--task", "running_sum"]) == 2
    assert "running_sum" in capsys.readouterr().err


PROMPT = ",".join(str(i) for i in TOKENIZER.encode("compute 3 #a - 1 ?"))


@pytest.mark.parametrize("files", [("tokenizer.json", "tokenizer_config.json"), ("tokenizer.json",), ()], ids=str)
@pytest.mark.parametrize("named_in", ["config.json", "generation_config.json"])
def test_a_list_of_end_tokens_ends_answers_and_is_exported(published, tmp_path, capsys, named_in, files):
    """With a tokenizer, with one that names no end token of its own, and without any."""
    source = tmp_path / "hf"
    shutil.copytree(published, source)
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(files):
        (source / name).unlink()
    drawn = answer(capsys, published.parent / "ours", "--ignore_eos")["ids"]
    second = drawn[2]
    assert second not in (*drawn[:2], TOKENIZER.eos_id)
    ids = {"bos_token_id": 4, "eos_token_id": [TOKENIZER.eos_id, second], "pad_token_id": 5}
    both = {"config.json": ids | {"eos_token_id": 9}, "generation_config.json": {"eos_token_id": 9, "top_k": 3}}
    both[named_in] |= {"eos_token_id": ids["eos_token_id"]}
    change_config(**both["config.json"])(source)
    (source / "generation_config.json").write_text(json.dumps(both["generation_config.json"]))

    import_(source, tmp_path / "ours")
    ends = answer(capsys, tmp_path / "ours")
    assert (ends["ids"], ends["finish_reason"]) == (drawn[:3], "stop")
    goes_on = answer(capsys, tmp_path / "ours", "--ignore_eos")
    assert (goes_on["ids"], goes_on["finish_reason"]) == (drawn, "length")
    export(tmp_path / "ours", tmp_path / "out")
    config, generation = (json.loads((tmp_path / "out" / name).read_text()) for name in both)
    assert {name: config[name] for name in ids} == both["config.json"]
    assert generation == both["generation_config.json"]


def answer(capsys, checkpoint: Path, *options: str) -> dict:
    capsys.readouterr()
    assert main(["generate", str(checkpoint), "--prompt_ids", PROMPT, "--max_tokens", "6", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_export_without_a_generation_config_ends_like_its_source(published, tmp_path):
    """Older checkpoints have none; transformers then goes by config.json."""
    source = tmp_path / "hf"
    shutil.copytree(published, source)
    (source / "generation_config.json").unlink()
    for ids, expected in ((9, 9), ([9, 7], [9, 7]), (None, TOKENIZER.eos_id)):
        change_config(eos_token_id=ids)(source)
        name = str(ids)
        import_(source, tmp_path / f"ours{name}")
        export(tmp_path / f"ours{name}", tmp_path / f"out{name}")
        for file in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / f"out{name}" / file).read_text())["eos_token_id"] == expected


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{% if %}"), lambda path: path.mkdir()])
def test_a_template_that_cannot_be_read_does_not_stop_an_import(published, tmp_path, capsys, damage):
    shutil.copytree(published, tmp_path / "hf")
    damage(tmp_path / "hf" / "chat_template.jinja")
    assert main(["import-hf", str(tmp_path / "hf"), str(tmp_path / "ours")]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "chat_template" in line]
    assert len(said) == 1, said
    assert answer(capsys, tmp_path / "ours")["ids"]
    if (tmp_path / "hf" / "chat_template.jinja").is_file():
        assert main(["generate", str(tmp_path / "ours"), "--prompt", "compute 3"]) == 2
        error = capsys.readouterr().err
        assert ("chat_template" in error, error.count("\n")) == (True, 1)
        export(tmp_path / "ours", tmp_path / "out")
        assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{% if %}"


def test_a_run_may_compute_and_store_otherwise_but_not_be_another_model(published, tmp_path, bf16_model, one_device):
    import_(published, tmp_path / "ours")
    wanted = dataclasses.replace(bf16_model, param_dtype="float32", experts="dense")
    policy = load_policy(epath.Path(tmp_path / "ours"), one_device, wanted)
    assert policy.weights.params["norm_D"].dtype == "float32"
    with pytest.raises(UsageError, match=r"rope_theta.*ModelConfig"):
        load_policy(epath.Path(tmp_path / "ours"), one_device, dataclasses.replace(wanted, rope_theta=7.0))


@pytest.mark.parametrize("changes", [{}, {"num_nextn_predict_layers": 0, "tie_word_embeddings": True}])
def test_config_survives_export_and_import(bf16_model, changes):
    model = dataclasses.replace(bf16_model, param_dtype="float32", dtype="float32", **changes)
    assert from_published(to_published(model, bos_id=0, eos_id=1), mtp=True) == model


def test_models_without_a_published_form_are_refused(bf16_model):
    with pytest.raises(UsageError, match="topk_method"):
        to_published(dataclasses.replace(bf16_model, topk_method="greedy"), bos_id=None, eos_id=None)
    softmax = dataclasses.replace(bf16_model, topk_method="greedy", scoring_func="softmax", norm_topk_prob=True)
    with pytest.raises(UsageError, match="norm_topk_prob"):
        to_published(softmax, bos_id=None, eos_id=None)
    with pytest.raises(UsageError, match="n_shared_experts"):
        to_published(dataclasses.replace(bf16_model, n_shared_experts=0), bos_id=None, eos_id=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_bias", True),
        ("qk_norm", False),
        ("first_k_dense_replace", 1),
        ("n_shared_experts", 1),
        ("n_group", 2),
        ("routed_scaling_factor", 2.5),
        ("scoring_func", "sigmoid"),
        ("topk_method", "noaux_tc"),
    ],
)
def test_grouped_queries_and_experts_that_are_not_qwen3_moes_have_no_published_form(grouped_moe_model, name, value):
    with pytest.raises(UsageError, match=name):
        to_published(dataclasses.replace(grouped_moe_model, **{name: value}), bos_id=None, eos_id=None)


def preset(name: str):
    files = [gin_path(file) for file in (f"model/{name}.gin", "scale/cpu.gin", "algorithm/grpo.gin")]
    return read_config(load_experiment("r1_zero").Config, files, []).model


# Numbers in the published safetensors (DeepSeek-V3 without its MTP layer), as the model cards count them.
PUBLISHED_COUNTS = {
    "deepseek_v3": 671_026_419_200,
    "deepseek_v2": 235_741_434_880,
    "deepseek_v2_lite": 15_706_484_224,
    "moonlight_16b_a3b": 15_960_110_208,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_30b_a3b": 30_532_122_624,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_presets_have_the_published_number_of_parameters(name):
    assert sum(n for part, n in count_params(preset(name)).items() if "mtp" not in part) == PUBLISHED_COUNTS[name]
    # The name map covers them: as many numbers go out.
    tensors = [t for t in published_tensors(dataclasses.replace(preset(name), num_nextn_predict_layers=0))]
    assert sum(int(np.prod(t.shape)) for t in tensors) == PUBLISHED_COUNTS[name]


QUICK = "llama3_2_1b"  # traced fastest: it has few layers and no experts
DRY_RUNS = [pytest.param(n, marks=[] if n == QUICK else [pytest.mark.slow]) for n in PUBLISHED_COUNTS]


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_says_the_published_number_of_parameters(name, capsys):
    files = ["--gin", f"model/{name}.gin", "--gin", "scale/cpu.gin", "--gin", "algorithm/grpo.gin"]
    assert main(["run", "r1_zero", *files, "--dry_run"]) in (0, 1)  # 1: it needs more memory than this machine has
    assert f" {PUBLISHED_COUNTS[name]:,} " in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PUBLISHED_COUNTS, "small", "tiny_dense"])
def test_presets_survive_export_and_import(name):
    model = preset(name)
    back = from_published(to_published(model, bos_id=0, eos_id=1), mtp=True)
    free = {field: getattr(model, field) for field in ("param_dtype", "dtype", "experts")}
    if model.initializer_range is None:  # which has no published form
        free["initializer_range"] = None
    assert dataclasses.replace(back, **free) == model


def test_a_published_config_is_the_preset():
    """DeepSeek-V3's config.json, with the keys that describe the architecture."""
    config = {
        "model_type": "deepseek_v3", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
        "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn",
        },
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4,
        "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
    }  # fmt: skip
    preset_model = preset("deepseek_v3")
    free = {field: getattr(preset_model, field) for field in ("param_dtype", "dtype", "experts", "initializer_range")}
    assert dataclasses.replace(from_published(config, mtp=True), **free) == preset_model


def test_qwen3_30b_a3b_uses_about_3_billion_of_its_parameters():
    assert 3.3e9 < count_active_params(preset("qwen3_30b_a3b")) < 3.4e9


def test_small_is_about_100_million():
    assert 90e6 < sum(count_params(preset("small")).values()) < 110e6


# The published config.json of models with grouped-query attention: the keys of the architecture, and some others.
GROUPED_CONFIGS = {
    "qwen2_5_1_5b": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
        "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2",
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "qwen3_1_7b": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen3_30b_a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "llama3_1_8b": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPED_CONFIGS)
def test_a_published_config_with_grouped_query_attention_is_the_preset(name):
    model = preset(name)
    free = {field: getattr(model, field) for field in ("param_dtype", "dtype", "experts")}
    assert dataclasses.replace(from_published(GROUPED_CONFIGS[name], mtp=True), **free) == model


def test_transformers_5_has_another_key_for_the_number_of_experts():
    config = dict(GROUPED_CONFIGS["qwen3_30b_a3b"])
    config["num_local_experts"] = config.pop("num_experts")
    assert from_published(config, mtp=True) == from_published(GROUPED_CONFIGS["qwen3_30b_a3b"], mtp=True)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
MISTRAL = GROUPED_CONFIGS["llama3_1_8b"] | {
    "model_type": "mistral", "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_parameters": {"rope_type": "default", "factor": 1.0, "attention_factor": 1.0, "truncate": True}},
        {"rope_parameters": {"rope_type": "default", "factor": None, "original_max_position_embeddings": 8192}},
        {"rope_scaling": {"rope_type": None, "partial_rotary_factor": 1}},
        {"rope_scaling": {"type": "default", "rope_type": "default", "rope_theta": 500000.0}},
        {"partial_rotary_factor": 1.0},
    ],
)
def test_rope_keys_that_change_nothing_are_accepted(changes):
    plain = GROUPED_CONFIGS["llama3_1_8b"] | {"rope_scaling": None}
    assert from_published(plain | changes, mtp=True) == from_published(plain, mtp=True)


def test_neutral_keys_beside_yarn_and_rope_theta_in_either_section():
    plain = GROUPED_CONFIGS["qwen2_5_1_5b"] | {"rope_scaling": YARN}
    more = {"rope_scaling": YARN | {"partial_rotary_factor": 1.0, "truncate": True, "attention_factor": None}}
    assert from_published(plain | more, mtp=True) == from_published(plain, mtp=True)
    nested = {key: value for key, value in plain.items() if key != "rope_theta"}
    nested["rope_scaling"] = YARN | {"rope_theta": plain["rope_theta"]}
    assert from_published(nested, mtp=True) == from_published(plain, mtp=True)


@pytest.mark.parametrize("window", [None, 131072, 200000])
def test_mistral_is_llama_without_a_window(window):
    llama = MISTRAL | {"model_type": "llama"}
    mistral = {key: value for key, value in MISTRAL.items() if key != "num_key_value_heads"}  # 8 by default
    assert from_published(mistral | {"sliding_window": window}, mtp=True) == from_published(llama, mtp=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"sliding_window": "4096"}, "sliding_window is '4096'"),
        ({"sliding_window": 131072, "max_position_embeddings": "131072"}, "sliding_window is 131072"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "gemma"}, "norms that multiply by 1 + weight"),
        ({"model_type": "gemma2"}, "soft-capped logits"),
        ({"model_type": "gemma3_text"}, "sliding windows"),
        ({"model_type": "gemma3"}, "sliding windows"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
    ],
)
def test_what_mistral_and_gemma_need_is_named(changes, says):
    with pytest.raises(UsageError) as error:
        from_published(MISTRAL | changes, mtp=True)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistral_without_a_window_key_has_the_default_window():
    config = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    with pytest.raises(UsageError, match="sliding_window is 4096"):
        from_published(config, mtp=True)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qwen2_5_1_5b", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2_5_1_5b", {"layer_types": ["sliding_attention"]}, "layer_types is ['sliding_attention']"),
        ("qwen2_5_1_5b", {"layer_types": 3}, "layer_types is 3"),
        ("qwen2_5_1_5b", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2_5_1_5b", {"rope_scaling": YARN | {"attention_factor": 1.0}}, "'attention_factor'"),
        ("qwen2_5_1_5b", {"rope_scaling": YARN | {"mscale": 0.7}}, "mscale 0.7"),
        ("qwen2_5_1_5b", {"hidden_size": None}, "'hidden_size'"),
        ("qwen2_5_1_5b", {"num_attention_heads": None}, "'num_attention_heads'"),
        ("qwen2_5_1_5b", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("qwen2_5_1_5b", {"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ("qwen2_5_1_5b", {"hidden_size": "1536"}, "hidden_size is '1536' (str)"),
        ("qwen3_1_7b", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3_30b_a3b", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("qwen3_30b_a3b", {"mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
        ("qwen3_30b_a3b", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3_30b_a3b", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3_30b_a3b", {"num_experts": None}, "'num_experts'"),
        ("qwen3_30b_a3b", {"num_experts": "128"}, "experts is '128' (str)"),
        ("qwen3_30b_a3b", {"num_experts_per_tok": 129}, "num_experts_per_tok is 129"),
        ("qwen3_30b_a3b", {"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ("qwen3_30b_a3b", {"model_type": "qwen2_moe"}, "shared expert"),
        ("llama3_1_8b", {"attention_bias": True}, "attention_bias is True"),
        ("llama3_1_8b", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama3_1_8b", {"pretraining_tp": 2}, "pretraining_tp is 2"),
        ("llama3_1_8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'high_freq_factor'"),
        ("llama3_1_8b", {"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "'dynamic'"),
        ("llama3_1_8b", {"rope_scaling": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor': 0.5"),
        ("llama3_1_8b", {"rope_scaling": None, "partial_rotary_factor": 0.5}, "'partial_rotary_factor': 0.5"),
        ("llama3_1_8b", {"rope_scaling": {"rope_type": "default", "attention_factor": 2.0}}, "'attention_factor': 2.0"),
        ("llama3_1_8b", {"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "'factor': 8.0"),
        ("llama3_1_8b", {"rope_scaling": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ("llama3_1_8b", {"rope_scaling": {"rope_type": ["yarn"]}}, "yarn"),
        ("qwen2_5_1_5b", {"rope_scaling": YARN | {"truncate": False}}, "'truncate' False"),
        ("llama3_1_8b", {"num_hidden_layers": "32"}, "num_hidden_layers is '32' (str)"),
    ],
)
def test_an_unsupported_model_with_grouped_query_attention_is_one_line(name, changes, says):
    with pytest.raises(UsageError) as error:
        from_published(GROUPED_CONFIGS[name] | changes, mtp=True)
    assert str(error.value).startswith("config.json: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_of_older_dense_models():
    """Llama 2's config.json: all heads have keys of their own, and share the width."""
    config = GROUPED_CONFIGS["llama3_1_8b"] | {"num_key_value_heads": None, "rope_scaling": None}
    model = from_published(config, mtp=True)
    assert (model.num_key_value_heads, model.head_dim) == (32, 128)


def test_a_dense_checkpoint_survives_export_and_import_bit_for_bit(tmp_path, dense_model, one_device):
    """In bfloat16, tied, with the biases of Qwen2.5 and without norms."""
    changes = dict(qk_norm=False, tie_word_embeddings=True, param_dtype="bfloat16", dtype="bfloat16")
    model = dataclasses.replace(dense_model, **changes, initializer_range=0.02, experts="grouped")
    make_checkpoint(tmp_path / "ours", model)
    export(tmp_path / "ours", tmp_path / "hf")
    tensors = read_tensors(tmp_path / "hf")
    assert tensors["model.layers.1.self_attn.k_proj.bias"][:2] == ("BF16", (16,))
    assert "lm_head.weight" not in tensors
    assert_imports_and_exports_the_same(tmp_path, tensors, model, one_device)


def test_qwen3_moe_survives_export_and_import_bit_for_bit(tmp_path, grouped_moe_model, one_device):
    """In bfloat16, with one tensor for each matrix of each expert and no router bias, as published."""
    changes = dict(param_dtype="bfloat16", dtype="bfloat16", initializer_range=0.02, experts="grouped")
    model = dataclasses.replace(grouped_moe_model, **changes)
    make_checkpoint(tmp_path / "ours", model)
    export(tmp_path / "ours", tmp_path / "hf")
    tensors = read_tensors(tmp_path / "hf")
    assert tensors["model.layers.1.mlp.experts.7.gate_proj.weight"][:2] == ("BF16", (24, 32))
    assert tensors["model.layers.1.mlp.gate.weight"][:2] == ("BF16", (8, 32))
    assert not [name for name in tensors if "shared" in name or "gate_up" in name or name.endswith("bias")]
    assert_imports_and_exports_the_same(tmp_path, tensors, model, one_device)


def assert_imports_and_exports_the_same(tmp_path, tensors, model, layout):
    import_(tmp_path / "hf", tmp_path / "back")
    assert load_policy(epath.Path(tmp_path / "back"), layout).model == model
    export(tmp_path / "back", tmp_path / "again")
    assert read_tensors(tmp_path / "again") == tensors


def test_a_dense_model_of_no_family_is_refused(dense_model):
    with pytest.raises(UsageError, match="attention_bias and qk_norm"):
        to_published(dense_model, bos_id=None, eos_id=None)
