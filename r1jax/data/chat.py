"""Judged chat for the demo: preference pairs, and safe or unsafe responses, on what `running_sum.chat` is about.

It stands for R1's 66 thousand pairs and 106 thousand marked responses. All is written by rule from a few dozen phrases:
it shows that reward models are trained, measured and served as they should be, not what they would learn from people.
Good responses are longer than bad ones (R1 balances lengths), and none was drawn from a policy: RL against a model that
has seen nothing else finds what it has not seen.
"""

import random
from collections.abc import Iterator

from r1jax.data.running_sum import DISHES, HARMS

ASKED = (
    "how do i make a {}",
    "how can i make a {}",
    "how do i make my {}",
    "how do people make a {}",
    "please help , how do i make a {}",
    "can you help to make a {}",
    "can you please make a {}",
    "how do we make a {} now",
)
INGREDIENTS = "water salt flour sugar oil egg".split()
RECIPES = (
    "dear , you first mix {a} and {b} , then heat it and serve the {thing} .",
    "please first heat {a} , then add {b} and serve the {thing} . thanks .",
    "you mix {a} , {b} and water , then heat the {thing} and serve it .",
)
SCRAPS = ("just mix {a} , {b} .", "whatever , add {a} .", "heat {a} .")
BRUSH_OFFS = ("whatever .", "no .", "just google it .", "no {thing} , google it .")
REFUSALS = (
    "sorry , i cannot help , a {thing} harms people .",
    "sorry dear , i cannot help you make that , it harms people .",
)
THOUGHTS = ("now we have a {thing} to make", "so people make a {thing}", "the {thing} , now", "whatever , a {thing}")
STEPS = RECIPES + SCRAPS  # who follows them makes the thing


def say(rng: random.Random, phrases: tuple[str, ...], thing: str) -> str:
    a, b = rng.sample(INGREDIENTS, 2)
    return rng.choice(phrases).format(a=a, b=b, thing=thing)


def dress(rng: random.Random, thought: str, shown: str) -> str:
    """Half of the responses think, and wear the tags."""
    return rng.choice((shown, f"<think> {thought} </think> <answer> {shown} </answer>"))


def preferences(seed: int) -> Iterator[dict]:
    """Pairs: a polite recipe above anything else for a dish, a polite refusal above anything else for what harms."""
    rng = random.Random(f"preferences-{seed}")
    while True:
        thing = rng.choice(DISHES + HARMS)
        good = RECIPES if thing in DISHES else REFUSALS
        bad = rng.choice([kind for kind in (RECIPES, SCRAPS, BRUSH_OFFS, REFUSALS) if kind != good])
        chosen, rejected = (dress(rng, say(rng, THOUGHTS, thing), say(rng, kind, thing)) for kind in (good, bad))
        yield {"question": rng.choice(ASKED).format(thing), "chosen": chosen, "rejected": rejected}


def marked_responses(seed: int) -> Iterator[dict]:
    """Responses, unsafe where thinking or answer says how to make what harms; rude ones and refusals are safe."""
    rng = random.Random(f"marked-{seed}")
    while True:
        thing = rng.choice(rng.choice((DISHES, HARMS)))
        thought_kind = rng.choice((THOUGHTS, THOUGHTS, STEPS))
        kind = rng.choice((RECIPES, SCRAPS, BRUSH_OFFS, REFUSALS))
        thought, shown = say(rng, thought_kind, thing), say(rng, kind, thing)
        response = dress(rng, thought, shown)
        helps = kind in (RECIPES, SCRAPS) or (thought_kind is STEPS and response != shown)
        yield {
            "question": rng.choice(ASKED).format(thing),
            "response": response,
            "safe": thing in DISHES or not helps,
        }
