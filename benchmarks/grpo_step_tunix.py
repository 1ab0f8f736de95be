"""Times GRPO steps of google-tunix for grpo_step.py, in its environment: a job on stdin, the result on the last line.

Its Llama 3 doesn't read the config's rope_theta, and so computes another model than the checkpoint's; it is told here.
"""

import functools
import json
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

ROLES = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)


class Numbers:
    """A tokenizer whose words are ids. The end token's id is none of the model's; 0 is a token that pads too."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # tunix takes it that there is none

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return 0


class TimedCluster(rl_cluster.RLCluster):
    """An RLCluster that keeps the seconds of generation and of the reference."""

    def __init__(self, **kwargs):
        self.phases: defaultdict[str, float] = defaultdict(float)
        super().__init__(**kwargs)

    def generate(self, *args, **kwargs):
        start = time.perf_counter()
        output = super().generate(*args, **kwargs)
        self.phases["generation"] += time.perf_counter() - start
        self.phases["tokens"] += sum(map(len, output.tokens))
        return output

    def get_ref_per_token_logps(self, *args, **kwargs):
        start = time.perf_counter()
        logprobs = jax.block_until_ready(super().get_ref_per_token_logps(*args, **kwargs))
        self.phases["reference"] += time.perf_counter() - start
        return logprobs


class TimedLearner(GRPOLearner):
    """A GRPOLearner that keeps each step's phases. Training starts when generation is done, and the rest is it."""

    def __init__(self, *args, **kwargs):
        self.steps: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def _run_global_step(self, *args):
        self.rl_cluster.phases.clear()
        start, cpu = time.perf_counter(), time.process_time()
        super()._run_global_step(*args)
        jax.block_until_ready(nnx.state(self.rl_cluster.actor_trainer.model))
        seconds, phases = time.perf_counter() - start, dict(self.rl_cluster.phases)
        update = seconds - phases["generation"] - phases["reference"]
        cpu = time.process_time() - cpu
        self.steps.append(phases | {"seconds": seconds, "cpu": cpu, "update": update})


def parity(prompts: list[str], completions: list[str], **_) -> list[float]:
    """Whether the sum of a response's ids is odd: cheap, and different within most groups."""
    return [float(sum(map(int, text.split())) % 2) for text in completions]


def read_config(directory: str) -> llama.ModelConfig:
    """The config of a Hugging Face directory."""
    given = json.loads((Path(directory) / "config.json").read_text())
    theta = given.get("rope_theta") or given["rope_parameters"]["rope_theta"]
    llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=theta)
    return llama.ModelConfig(
        num_layers=given["num_hidden_layers"],
        vocab_size=given["vocab_size"],
        embed_dim=given["hidden_size"],
        hidden_dim=given["intermediate_size"],
        num_heads=given["num_attention_heads"],
        head_dim=given["hidden_size"] // given["num_attention_heads"],
        num_kv_heads=given["num_key_value_heads"],
        rope_theta=theta,
        norm_eps=given["rms_norm_eps"],
        weight_tying=given["tie_word_embeddings"],
    )


def make_learner(job: dict) -> TimedLearner:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = read_config(job["model"])
    actor, reference = (
        params.create_model_from_safe_tensors(job["model"], config, mesh, dtype=jnp.float32) for _ in range(2)
    )
    prompts, longest = len(job["prompts"]), max(map(len, job["prompts"]))
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-6, b2=0.95)),
        eval_every_n_steps=10**9,
        max_steps=1 + job["steps"],
        mini_batch_size=prompts,
        # In prompts. Larger ones take tens of GB, since logits are kept for each token of a prompt.
        train_micro_batch_size=max(1, job["microbatch"] // job["group_size"]),
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=job["new_tokens"],
        max_prompt_length=longest,
        kv_cache_size=longest + job["new_tokens"] + 1,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[-1],
    )
    cluster = TimedCluster(
        actor=actor,
        reference=reference,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(ROLES, mesh), training_config=training, rollout_config=rollout
        ),
    )
    algorithm = GRPOConfig(num_generations=job["group_size"], beta=0.001, loss_agg_mode="token-mean")
    return TimedLearner(cluster, algorithm, parity)


def main() -> None:
    job = json.load(sys.stdin)
    texts = np.array([" ".join(map(str, ids)) for ids in job["prompts"]])
    learner = make_learner(job)
    learner.train([{"prompts": texts} for _ in range(1 + job["steps"])])
    print(json.dumps({"version": f"google-tunix {version('google-tunix')}", "steps": learner.steps}))


if __name__ == "__main__":
    main()
