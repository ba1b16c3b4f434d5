"""`scale --law`: fits a scaling law to finished runs."""

import dataclasses
from collections.abc import Sequence

from bigmodel_jax.core import options
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.verbs.base import local_page, place, run_dir_of, split

LAW = "--law"


@dataclasses.dataclass(frozen=True)
class Law:
    """Options of `scale --law`."""

    expect: tuple[str, ...] = ()  # N,D: parameters and tokens of runs whose loss is predicted
    samples: Count = 200  # samples of the bootstrap
    output: str = "law.html"  # the page to write; its numbers go to a .json file beside it


def law(args: Sequence[str]) -> None:
    """Runs `scale --law`: fits the law, prints it with its predictions, and writes a page."""
    targets, given = split(args)
    parsed = options.parse(Law(), given, prog="launch.py scale --law RUN ...")
    if not targets:
        raise ValueError("scale --law: give the folders of the runs; launch.py scale --help shows how")
    asked = [_sizes(text) for text in parsed.expect]
    output = local_page("scale: --output", parsed.output)
    from bigmodel_jax.report.progress import short
    from bigmodel_jax.scaling.law_of_runs import fit_runs

    folders = [run_dir_of(place("scale", target)) for target in targets]
    for i, (target, folder) in enumerate(zip(targets, folders, strict=True)):
        if not folder.is_dir():
            raise ValueError(f"scale --law: {target} is no run: {folder} is not a folder")
        if folder.resolve() in [other.resolve() for other in folders[:i]]:
            raise ValueError(f"scale --law: {target} is named twice; each run counts once")
    found, expected, page = fit_runs(folders, output, samples=parsed.samples, asked=asked)
    print(f"loss = {found.E:.4g} + {found.A:.4g} / N^{found.alpha:.4g} + {found.B:.4g} / D^{found.beta:.4g}")
    for one in expected:
        low, high = one.interval
        print(f"{short(one.N)} parameters, {short(one.D)} tokens: {one.loss:.4f} ({low:.4f} to {high:.4f})")
    print(page)


def _sizes(text: str) -> tuple[float, float]:
    """(parameters, tokens) of the text "N,D".

    Raises ValueError unless both are finite and above 0.
    """
    try:
        N, D = (float(part) for part in text.split(","))
    except ValueError:
        N = D = 0.0
    if not (0 < N < float("inf") and 0 < D < float("inf")):
        raise ValueError(f"--expect {text!r}; it must be parameters,tokens, such as 1e9,2e10")
    return N, D
