"""AdamW as V3 trains with it (section 4.2), from optax."""

import jax
import optax

from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.model.spec import is_spec, param_specs


def learning_rate(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """Linear warm-up that starts at 1/warmup_steps and not at 0, then a cosine to final_fraction."""
    cosine = optax.cosine_decay_schedule(
        config.learning_rate, max(total_updates - config.warmup_steps, 1), config.final_fraction
    )
    if not config.warmup_steps:
        return cosine
    first = config.learning_rate / config.warmup_steps
    warmup = optax.linear_schedule(first, config.learning_rate, config.warmup_steps - 1)
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def clip_apart(longest: float) -> optax.GradientTransformation:
    """Clips the global norm of the model and, apart from it, that of its multi-token-prediction modules."""
    clip = optax.clip_by_global_norm(longest)

    def update(grads, state, params=None):
        del params
        modules = {name: grad for name, grad in grads.items() if name == "mtp"}
        model = {name: grad for name, grad in grads.items() if name != "mtp"}
        return clip.update(model, state)[0] | clip.update(modules, state)[0], state

    return optax.GradientTransformation(clip.init, update)


def make_optimizer(
    config: OptimizerConfig, model: ModelConfig, total_updates: int, *, detached_mtp: bool = False
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay on matrices only, learning rate.

    `detached_mtp`: the modules learn without the model, and must not change how its gradient is clipped.
    """
    decayed = jax.tree.map(lambda spec: spec.fan_in > 0, param_specs(model), is_leaf=is_spec)
    adamw = optax.adamw(
        learning_rate(config, total_updates),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=decayed,
        mu_dtype=config.moment_dtype or model.param_dtype,  # gradients may be in float32
    )
    if config.moment_dtype:  # optax has a dtype for the first moment only; the second keeps the one that it starts with
        start = adamw.init
        adamw = adamw._replace(init=lambda params: start(optax.tree.cast(params, config.moment_dtype)))
    return optax.chain((clip_apart if detached_mtp else optax.clip_by_global_norm)(config.clip_norm), adamw)
