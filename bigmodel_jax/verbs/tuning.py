"""The verb `find-rate`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from rich.console import Console

from bigmodel_jax import runtime
from bigmodel_jax.core import mirror
from bigmodel_jax.core.ranges import Positive, Range
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, local, one_target, parse_config, run_dir_of

Steps = Annotated[int, Range("20 or more", 20)]


@dataclasses.dataclass(frozen=True)
class FindRate(OfConfig):
    lowest: Positive = 1e-7
    highest: Positive = 10.0
    steps: Steps = 100


def find_rate(args: Sequence[str]) -> None:
    target, options = one_target("find-rate", args)
    given, run_dir = parse_config(FindRate(), target, options, "find-rate")
    if not given.run_dir:
        name = run_dir_of(target)
        run_dir = local("find-rate: --run_dir", str(name.with_name(f"{name.name}-rate")))
    runtime.keep_programs()
    from bigmodel_jax.sweep import rate_finder

    span = rate_finder.Span(given.lowest, given.highest, given.steps)
    console = Console(highlight=False, soft_wrap=True)
    found = rate_finder.find_rate(given.config, span, run_dir, console, str(target))
    for text in rate_finder.lines(found):
        console.print(text, markup=False)
    console.print(f"Page: {mirror.address(run_dir / rate_finder.PAGE)}", markup=False)


VERBS = {
    "find-rate": Verb(
        find_rate,
        "find-rate CONFIG [--lowest RATE --highest RATE]",
        "suggest a learning rate, by a short range test",
        f"CONFIG        {CONFIG}\n"
        "--lowest      the rate of the first step; 1e-7\n"
        "--highest     the rate of the last step; 10\n"
        "--steps       how many, each on another batch; 20 or more; 100\n"
        "--run_dir     where rate.html and rate.json go; runs/<name>-rate\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "The rates of groups rise with optim.lr, at the ratios of the config. The test\n"
        "ends early where the smoothed loss is four times its least value.",
        (
            "find-rate configs/mnist_mlp.py",
            "find-rate configs/lm_tiny.py --lowest 1e-5 --steps 200 --train.batch_size 16",
        ),
    ),
}
