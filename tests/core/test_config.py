"""gin and the dataclasses: what is bound is known, of the right type, and read."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from r1jax import config as configs
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.data.jsonl import read_problems
from r1jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [c for c in vars(configs).values() if dataclasses.is_dataclass(c)]


def read(*bindings: str, files=None):
    module = load_experiment("r1_zero")
    return read_config(module.Config, [gin_path(f) for f in files or module.GIN_FILES], bindings)


def attributes_read() -> set[str]:
    found: set[str] = set()
    for path in [*ROOT.glob("r1jax/**/*.py"), *ROOT.glob("experiments/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            in_a_check = path.parent.name == "config"  # a field that only its own class checks is still dead
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not in_a_check:
                found.add(node.attr)
    return found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_field_is_read(cls):
    dead = {field.name for field in dataclasses.fields(cls)} - attributes_read()
    assert not dead, f"{cls.__name__} has fields that nothing reads: {dead}"


def test_bindings_reach_their_scope():
    config = read("OptimizerConfig.b1 = 0.8", "rl/OptimizerConfig.b1 = 0.7")
    assert config.pretrain.optimizer.b1 == 0.8
    assert config.rl.optimizer.b1 == 0.7


def test_a_scoped_binding_overrides_one_of_all_stages():
    assert read("rl/RLConfig.steps = 3").rl.steps == 3


def test_direct_construction_is_untouched_by_gin():
    read("OptimizerConfig.b1 = 0.8")
    assert configs.OptimizerConfig(learning_rate=1.0).b1 == 0.9


@pytest.mark.parametrize(
    ("binding", "named"),
    [
        ("RLConfig.stepz = 3", "stepz"),
        ("Nonsense.steps = 3", "Nonsense"),
        ("RLConfig.steps = 'many'", "rl/RLConfig.steps"),
        ("RLConfig.steps = 2.5", "rl/RLConfig.steps"),
        ("RLConfig.steps = True", "rl/RLConfig.steps"),
        ("LossConfig.kl_coef = '0.1'", "rl/LossConfig.kl_coef"),
        ("LossConfig.kl_coef = -0.1", "rl/LossConfig: kl_coef"),
        ("ModelConfig.norm_topk_prob = 1", "ModelConfig.norm_topk_prob"),
        ("ModelConfig.q_lora_rank = 'none'", "ModelConfig.q_lora_rank"),
        ("sft/OptimizerConfig.learning_rate = 1.0", "sft/OptimizerConfig.learning_rate"),
        ("evaluate/RLConfig.steps = 3", "evaluate/RLConfig.steps"),
        ("evaluate/LossConfig.kl_coef = 0.0", "evaluate/LossConfig.kl_coef"),
        ("LossConfig.aggregation = 'tokens'", "aggregation"),
        ("LossConfig.aggregation = tokens", "'tokens'"),
        ("LossConfig.aggregation = [tokens]", "'tokens'"),
        ("RLConfig.minibatches_per_rollout = 700", "minibatches_per_rollout"),
        ("RLConfig.num_prompts = 3", "num_prompts"),
        ("RLConfig.group_size = 1", "rl/RLConfig: group_size"),
        ("RLConfig.row_tokens = 0", "row_tokens"),
        ("RLConfig.max_staleness = 1", "LossConfig.importance"),
        ("RLConfig.max_staleness = 2", "max_staleness"),
        ("rl/OptimizerConfig.mtp = 'yes'", "mtp"),
        ("EvaluateConfig.k = 99", "evaluate/EvaluateConfig: k "),
        ("SamplingConfig.temperature = -1.0", "temperature"),
        ("rl/SamplingConfig.temperature = 0.0", "rl/RLConfig: temperature"),
        ("SamplingConfig.top_p = 0.0", "top_p"),
        ("SamplingConfig.top_p = 1.5", "top_p"),
        ("SamplingConfig.min_p = 2.0", "min_p"),
        ("SamplingConfig.top_k = -1", "top_k"),
        ("SamplingConfig.sampling_mask_ids = 0", "sampling_mask_ids"),
        ("SamplingConfig.stop = ('',)", "stop"),
        ("SamplingConfig.temperature = 'hot'", "SamplingConfig.temperature"),
        ("EngineConfig.weight_dtype = 'int4'", "weight_dtype"),
        ("EngineConfig.mesh = 3", "EngineConfig.mesh"),
        ("RLConfig.minibatches_per_rollout = 0", "minibatches_per_rollout"),
        ("RLConfig.reference_refresh_updates = 0", "reference_refresh_updates"),
        ("RLConfig.prompts_per_step = 'x'", "RLConfig.prompts_per_step"),
        ("RLConfig.group_size = None", "RLConfig.group_size"),
        ("RLConfig.questions = 3", "questions"),
        ("ModelConfig.n_group = 0", "n_group"),
        ("RLConfig.steps = %NOPE", "NOPE"),
        ("RLConfig.steps = (3", "gin"),
        ("RunConfig.loggers = 'wandb'", "expected a tuple such as ('wandb',): set run/RunConfig.loggers"),
        ("SamplingConfig.stop = ['a', 'b']", "a tuple such as ('a', 'b')"),
        ("SamplingConfig.stop_ids = 5", "a tuple such as (5,)"),
        ("SamplingConfig.stop_ids = 'five'", "a tuple such as (1, 2)"),
        ("RLConfig.offload = 3", "a tuple such as ('a', 'b')"),
        ("import nonsense", "nonsense"),
        ("seed = 1", "seed"),
        ("rl/steps = 3", "rl/steps"),
        ("RLConfig.steps 3", "gin"),
    ],
)
def test_a_bad_binding_is_named_in_one_line(binding, named):
    with pytest.raises(UsageError, match="gin") as error:
        read(binding)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert " object at 0x" not in str(error.value)


DENSE = ["model/tiny_dense.gin", "algorithm/grpo.gin", "scale/cpu.gin"]


@pytest.mark.parametrize(
    ("binding", "named"),
    [
        ("ModelConfig.q_lora_rank = 64", "q_lora_rank"),
        ("ModelConfig.n_routed_experts = 4", "n_routed_experts"),
        ("ModelConfig.num_key_value_heads = 0", "num_key_value_heads"),
        ("ModelConfig.num_key_value_heads = 3", "num_key_value_heads"),
        ("ModelConfig.head_dim = 7", "head_dim"),
        ("ModelConfig.first_k_dense_replace = 1", "first_k_dense_replace"),
        ("ModelConfig.num_nextn_predict_layers = 1", "num_nextn_predict_layers"),
        ("ModelConfig.kv_lora_rank = 32", "num_key_value_heads"),
        ("RopeScalingConfig.rope_type = 'linear'", "rope_type"),
        ("RopeScalingConfig.high_freq_factor = 1.0", "high_freq_factor"),
        ("RopeScalingConfig.mscale_all_dim = 1.0", "mscale_all_dim"),
    ],
)
def test_what_a_dense_model_cannot_be_is_named_in_one_line(binding, named):
    with pytest.raises(UsageError, match="gin") as error:
        read(binding, files=DENSE)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


LEFT_OUT = ("q_lora_rank", "v_head_dim", "n_routed_experts", "n_group", "norm_topk_prob", "routed_scaling_factor")


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_model_with_experts_leaves_out_is_named(name, tmp_path):
    """Fields that dense models don't have need no value in gin, but these models can't do without."""
    lines = (ROOT / "gin_configs" / "model" / "tiny.gin").read_text().splitlines()
    (tmp_path / "tiny.gin").write_text("\n".join(line for line in lines if f".{name} =" not in line))
    with pytest.raises(UsageError, match=rf"gin: architecture/ModelConfig: {name} ") as error:
        read(files=[str(tmp_path / "tiny.gin"), "scale/cpu.gin", "algorithm/grpo.gin"])
    assert "\n" not in str(error.value)


def test_missing_value_names_the_binding():
    with pytest.raises(UsageError, match=r"PretrainConfig\.steps"):
        read("PretrainConfig.batch_size = 1", "OptimizerConfig.learning_rate = 1.0", files=["model/tiny.gin"])


def test_none_and_int_both_fit_an_optional():
    assert read("ModelConfig.q_lora_rank = None").model.q_lora_rank is None


def test_macros_are_not_mistaken_for_unused_bindings():
    assert read("STEPS = 7", "RLConfig.steps = %STEPS").rl.steps == 7


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/[!_]*.py")), ids=lambda p: p.stem)
def test_every_experiment_reads_its_gin_files(path):
    module = load_experiment(path.stem)
    assert module.__doc__
    assert read_config(module.Config, [gin_path(f) for f in module.GIN_FILES], []).run.seed == 0


def test_every_gin_file_is_used_by_an_experiment():
    used = {f for p in ROOT.glob("experiments/[!_]*.py") for f in load_experiment(p.stem).GIN_FILES}
    files = {str(p.relative_to(ROOT / "gin_configs")) for p in ROOT.glob("gin_configs/**/*.gin")}
    choices = ("model/", "algorithm/", "data/")  # one of each; the others are tested one by one
    # In test_dry_run and test_scales.
    larger = re.compile(r"scale/((r1_|r1_zero_)?(paper|16b|671b)|gpu_1|pretrain_v3|\w*v[56][ep]_\w+).gin")
    assert {file for file in files if not file.startswith(choices) and not larger.fullmatch(file)} <= used <= files


def test_a_file_may_include_others(capsys):
    """From wherever a run is started; what it binds in vain is said."""
    config = read(files=["model/deepseek_v2_lite.gin", "scale/r1_zero_16b.gin", "algorithm/grpo.gin"])
    assert (config.rl.prompts_per_step, config.rl.engine.slots) == (512, 64)
    assert not capsys.readouterr().err
    read(files=["model/deepseek_v2_lite.gin", "scale/r1_16b.gin", "algorithm/grpo.gin"])
    assert "cold_start" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(ROOT.glob("gin_configs/model/*.gin")), ids=lambda p: p.stem)
def test_every_model_preset_builds(path):
    model = read(files=[f"model/{path.name}", "scale/cpu.gin", "algorithm/grpo.gin"]).model
    bound = path.read_text()
    # A preset says what the architecture is; only how it is run may be left to the defaults.
    for field in dataclasses.fields(configs.ModelConfig):
        if field.default is dataclasses.MISSING:
            assert f"ModelConfig.{field.name} = " in bound
    assert model.vocab_size > 0


PUBLISHED = {  # a line of each, and its answer; and of one's own files
    "plain": ({"question": "2 * 3?", "answer": 6}, "6"),
    "gsm8k": ({"question": "2 * 600?", "answer": "2 * 600 = <<2*600=1200>>1,200\n#### 1,200"}, "1200"),
    "math": ({"problem": "?", "level": 1, "solution": r"$\boxed{1}$, so $\boxed{\frac{1}{2}}$."}, r"\frac{1}{2}"),
    "math_500": ({"problem": "?", "solution": r"$\boxed{3}$", "answer": "3", "level": 2}, "3"),
    "aime": ({"ID": "2024-I-4", "Problem": "?", "Solution": "…", "Answer": 116}, "116"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WithFile:
    train: configs.JsonlConfig


def test_there_is_a_line_of_every_published_file():
    assert {path.stem for path in ROOT.glob("gin_configs/data/*.gin")} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_data_preset_reads_its_file(tmp_path, name):
    line, answer = PUBLISHED[name]
    (tmp_path / "problems.jsonl").write_text(json.dumps(line) + "\n")
    bindings = [f"train/JsonlConfig.path = '{tmp_path / 'problems.jsonl'}'"]
    config = read_config(WithFile, [gin_path(f"data/{name}.gin")], bindings).train
    (problem,) = read_problems(config, name)
    assert (problem.answer, problem.source) == (answer, name)


def test_the_worked_fork_is_short():
    assert len((ROOT / "experiments" / "r1_zero_one_language.py").read_text().splitlines()) < 30


def test_a_config_named_in_a_comment_is_not_read(tmp_path, capsys):
    file = tmp_path / "mine.gin"
    file.write_text(
        "# GeneratedConfig.datasets = (@sums/ReasoningGymConfig(),)\nsums/ReasoningGymConfig.dataset = 'gcd'\n"
    )
    read(files=["model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", str(file)])
    assert "sums/ReasoningGymConfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    "binding, named",
    [
        ("OptimiserConfig.learning_rate=1e-3", "did you mean OptimizerConfig"),
        ("RLConfig.stepz=3", "did you mean steps"),
        ("RLConfig.steps=1O", "expected int"),
        ("rl/OptimizerConfig.learning_rate=-1e-3", "learning_rate is -0.001"),
    ],
)
def test_slips_are_named(binding, named):
    with pytest.raises(UsageError) as error:
        read(binding)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_text_needs_no_quotes():
    assert read("LossConfig.advantage=centred").rl.loss.advantage == "centred"
    assert read("LossConfig.advantage = 'centred'").rl.loss.advantage == "centred"
    assert read("RLConfig.row_tokens=None", "RLConfig.offload=('optimizer',)").rl.offload == ("optimizer",)


def test_a_misspelt_experiment_gets_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean r1_zero"):
        load_experiment("r1_zreo")
