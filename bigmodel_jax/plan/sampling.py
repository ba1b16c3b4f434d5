"""Predict how long a run samples the answers that it trains on, from the engine's two programs.

The programs are compiled for the run's mesh. Their times are roofline times, as in a server's plan.
"""

import math
from collections.abc import Callable

from bigmodel_jax.config import Config
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.plan.roofline import line_of
from bigmodel_jax.plan.serving import Serving
from bigmodel_jax.plan.serving_compile import PROGRAMS, compile_program
from bigmodel_jax.plan.topology import Topology


def serving_of(config: Config) -> Serving | None:
    """The slots in which a run samples its answers; None where the engine samples none for it."""
    size, data = config.objective.rollout_cache(config.data, config.train.batch_size), config.data
    if size is None or data.rollouts:
        return None
    slots, length = size
    return Serving(slots=slots, length=length + -length % PROMPT_MULTIPLE, prompt=data.max_prompt)


def predict(config: Config, topology: Topology, say: Callable[[str], None]) -> dict:
    """{"sampling": ...}: seconds of a rollout and of its share of a step; {} without rollouts.

    Every prompt has data.max_prompt tokens, and every answer data.max_tokens: the longest that a
    rollout can take. Rewards, log-probabilities before the step and replaced groups are left out.
    "refused" is the compiler's message where a program does not fit.
    """
    serving = serving_of(config)
    if serving is None:
        return {}
    seconds = {}
    for name in PROGRAMS:
        say(f"Compiling {name} of {serving.slots} slots")
        program = compile_program(config, topology, serving, name)
        if program.refused:
            return {"sampling": {"refused": " ".join(program.refused.split())[:400]}}
        seconds[name] = line_of(program, topology).step
    data = config.data
    answers = math.ceil(config.train.batch_size * (1 - data.recorded))
    prompts = answers * seconds["prefill"]  # prefills run one after the other, and each makes an answer's first token
    # All answers have equal length here, so the slots finish together and begin together.
    tokens = math.ceil(answers / serving.slots) * (data.max_tokens - 1) * seconds["decode"]
    return {
        "sampling": {
            "answers": answers,
            "slots": serving.slots,
            "prompt": data.max_prompt,
            "answer": data.max_tokens,
            "prefill_seconds": seconds["prefill"],
            "decode_seconds": seconds["decode"],
            "prompts_seconds": prompts,
            "tokens_seconds": tokens,
            "rollout_seconds": prompts + tokens,
            "step_seconds": (prompts + tokens) / data.updates_per_rollout,
        }
    }


def of_step(plan: dict) -> float:
    """Seconds of sampling for one step of a plan; 0 without a prediction."""
    return plan.get("sampling", {}).get("step_seconds", 0.0)


def with_sampling(plan: dict, found: dict) -> dict:
    """The plan with the time of sampling added to its run; found: what `predict` returned."""
    run, more = plan["run"], of_step(found)
    seconds = run["seconds"] + run["steps"] * more
    longer = {name: run[name] * seconds / run["seconds"] for name in ("chip_hours", "dollars")}
    return plan | found | ({"run": run | {"seconds": seconds} | longer} if more else {})
