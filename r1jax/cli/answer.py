"""One answer of a policy, or a conversation with it, in the terminal."""

from collections.abc import Iterable

from rich.console import Console

from r1jax.cli.stream import BEGIN, AnswerStream
from r1jax.config import RolloutConfig
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import random_key
from r1jax.rollout.engine import Output, RolloutEngine
from r1jax.runs.policy import Policy


def answer(
    engine: RolloutEngine,
    policy: Policy,
    ids: list[int],
    console: Console | None,
    *,
    temperature: float,
    seed: int,
    number: int = 0,
    ignore_eos: bool = False,
) -> Output:
    """What the policy says to a prompt, shown on `console` while it grows; `number` keys the draws, with the seed."""
    stream = None
    if console and policy.tokenizer:
        has_begun = policy.tokenizer.decode(ids).rstrip().endswith(BEGIN)
        hold = max((len(stop) - 1 for stop in engine.config.stop), default=0)
        stream = AnswerStream(console, thinking=has_begun, hold=hold)
    output = engine.generate(
        policy.params,
        policy.router_bias,
        [(number, ids)],
        random_key(seed),
        temperature,
        ignore_eos=ignore_eos,
        watch=(lambda output: stream(output.text)) if stream else None,
    )[0][0]
    if stream:
        stream.end(output.text)
    elif console:
        console.print(",".join(str(token) for token in output.tokens), soft_wrap=True, highlight=False)
    return output


def chat(
    layout: Layout,
    policy: Policy,
    config: RolloutConfig,
    questions: Iterable[str],
    console: Console,
    *,
    context: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Answers one question after another; those before are part of the prompt where there is a template for it."""
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, 1, context - max_tokens, max_tokens)
    messages: list[dict[str, str]] = []
    for number, question in enumerate(questions):
        if question.strip() == "/clear":
            messages.clear()
            continue
        if not question.strip():
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            output = answer(
                engine, policy, policy.converse(asked), console, temperature=temperature, seed=seed, number=number
            )
        except UsageError as error:
            hint = " (/clear begins anew)" if messages else ""
            console.print(f"{error}{hint}", style="red", highlight=False, soft_wrap=True)
            continue
        except KeyboardInterrupt:
            console.print("\n(interrupted)", style="red")
            continue
        messages = [*asked, {"role": "assistant", "content": output.text}]
