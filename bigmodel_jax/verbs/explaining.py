"""The verb `explain`, which writes a page about what a model does with one input."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from bigmodel_jax import runtime
from bigmodel_jax.core import mirror
from bigmodel_jax.core.options import asks_for_help, parse
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import ADAPTER, RUN, STEP, Verb, local, one_target, run_dir_of


@dataclasses.dataclass(frozen=True)
class Explain:
    """Options of `explain`."""

    text: str | None = None  # the text to explain
    against: str | None = None  # a second text with as many tokens, for activation patching
    image: str = ""  # an image file to explain
    row: CountOrZero | None = None  # the number of a row of the validation split
    target: str = ""  # the token or the class that is explained; empty: the likeliest
    step: str = ""  # the checkpoint: a step, or best; empty: the newest
    adapter: str = ""  # the names of adapters, with commas between; empty: all of the run's
    output: str = ""  # the page to write; empty: explain.html in the run's folder


def explain(args: Sequence[str]) -> None:
    """Runs the verb `explain`: writes explain.html and prints its path."""
    target, options = one_target("explain", args, "RUN")
    given = parse(Explain(), options, prog=f"launch.py explain {target}")
    check_local("explain: --output", given.output)
    with make_console(stderr=True, quiet=asks_for_help(args)).status("Explaining ...") as status:
        print(mirror.address(_page(target, given, lambda text: status.update(f"{text} ..."))))


def _page(target: Path, given: Explain, say: Callable[[str], None]) -> Path:
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(target), run_dir_of(target)
    runtime.keep_programs()
    from bigmodel_jax.explain.of_run import Asked, explain_run
    from bigmodel_jax.report.explain_page import build_explain_page

    asked = {field.name: getattr(given, field.name) for field in dataclasses.fields(Asked)}
    found = explain_run(config, run_dir, Asked(**asked), say)
    output = local("explain: --output", given.output) if given.output else run_dir / "explain.html"
    page = build_explain_page(run_dir, found, output)
    if not given.output:
        mirror.push(run_dir, only=("explain.html",))
    return page


VERBS = {
    "explain": Verb(
        explain,
        "explain RUN --text TEXT | --image FILE | --row N",
        "write a page on what a model does with one input",
        f"RUN           {RUN}\n"
        "--text        a text; the next token or the class is explained\n"
        "--against     a second text with as many tokens: activations of the first are\n"
        "              patched into it, layer by layer and token by token\n"
        "--image       an image file\n"
        "--row         the number of a row of the validation split: an image, or a row\n"
        "              of a table\n"
        "--target      the token or class to explain; without it: the likeliest\n"
        f"{STEP}\n"
        f"{ADAPTER}\n"
        "--output      the page; without it: RUN/explain.html",
        (
            'explain runs/lm_tiny --text "My fellow"',
            'explain runs/smollm2 --text "The capital of France is" --against "The capital of Italy is"',
            "explain runs/mnist_cnn --row 7",
        ),
    ),
}
