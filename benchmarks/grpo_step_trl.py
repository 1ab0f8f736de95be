"""Times GRPO steps of trl for grpo_step.py, in trl's environment: a job on stdin, the result on stdout's last line.

Prompts are given as ids, by a tokenizer whose words are numbers. What a user on a CPU would set is set: float32, no
gradient checkpointing. The reference is a second copy of the model, as trl makes it.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager

import datasets
import tokenizers
import torch
import transformers
import trl


class TimedTrainer(trl.GRPOTrainer):
    """A GRPOTrainer that keeps the seconds of each phase of a step."""

    def __init__(self, *args, **kwargs):
        self.phases: defaultdict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    @contextmanager
    def clock(self, phase: str):
        start = time.perf_counter()
        yield
        self.phases[phase] += time.perf_counter() - start

    def _generate_single_turn(self, *args, **kwargs):
        with self.clock("generation"):
            ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        self.phases["tokens"] = sum(map(len, ids))
        return ids, logprobs

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        with self.clock("reference" if model is self.ref_model else "policy"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


class StepTimes(transformers.TrainerCallback):
    """Appends the phases of each step to the trainer's, with the step's time; the rest of it is the update."""

    def __init__(self, trainer: TimedTrainer):
        self.trainer, self.before = trainer, (time.perf_counter(), time.process_time())

    def on_step_end(self, args, state, control, **_):
        now, phases = (time.perf_counter(), time.process_time()), dict(self.trainer.phases)
        phases.pop("policy")
        seconds, cpu = (after - before for after, before in zip(now, self.before, strict=True))
        update = seconds - phases["generation"] - phases["reference"]
        self.trainer.steps.append(phases | {"seconds": seconds, "cpu": cpu, "update": update})
        self.trainer.phases.clear()
        self.before = now


def number_tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
    """Words are the ids below `size`. Its end token is none of them, so that no response ends before the limit."""
    words = {str(i): i for i in range(size)} | {"<end>": size}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="<end>")


def parity(completions: list[str], **_) -> list[float]:
    """Whether the sum of a response's ids is odd: cheap, and different within most groups."""
    return [float(sum(map(int, text.split())) % 2) for text in completions]


def make_trainer(job: dict, home: str) -> TimedTrainer:
    rows, samples = job["microbatch"], len(job["prompts"]) * job["group_size"]
    config = trl.GRPOConfig(
        home,
        num_generations=job["group_size"],
        max_completion_length=job["new_tokens"],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        max_steps=1 + job["steps"],
        beta=0.001,
        loss_type="dapo",  # the mean over the batch's tokens
        temperature=1.0,
        top_k=0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.generation_config.eos_token_id = None
    texts = [" ".join(map(str, ids)) for ids in job["prompts"]]
    data = datasets.Dataset.from_dict({"prompt": texts * (1 + job["steps"])})
    tokenizer = number_tokenizer(model.config.vocab_size)
    return TimedTrainer(model, parity, config, train_dataset=data, processing_class=tokenizer)


def main() -> None:
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as home:
        trainer = make_trainer(job, home)
        trainer.add_callback(StepTimes(trainer))
        trainer.train()
    print(json.dumps({"version": f"trl {trl.__version__}", "steps": trainer.steps}))


if __name__ == "__main__":
    main()
