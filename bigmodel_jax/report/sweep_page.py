"""Write sweep.html: a sweep's trials, the importance of its fields, its best config, and seeds."""

import shlex
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, render
from bigmodel_jax.report.progress import duration
from bigmodel_jax.report.shell import shell
from bigmodel_jax.report.sweep import SweepRecord, Trial, number, read_sweep
from bigmodel_jax.report.sweep_plots import FIGURES, label_of, seeds_figure


def build_sweep_page(folder: Path, output: Path) -> Path:
    """Write the page of the sweep in `folder`, and its plots. Returns `output`."""
    sweep, seeds = read_sweep(folder)
    light, dark = ({}, {}) if sweep is None else (render(FIGURES, sweep, theme) for theme in (LIGHT, DARK))
    (folder / "plots").mkdir(exist_ok=True)
    for name, png in light.items():
        files.replace(folder / "plots" / f"{name}.png", png)
    parts = [] if sweep is None else [_header(sweep), _best(sweep, folder), _figures(light, dark)]
    parts += [_seeds(seeds)] if seeds else []
    parts += [] if sweep is None else [_trials(sweep), _space(sweep)]
    if sweep is None:
        parts.insert(0, f'<header><p class="kicker">Seeds</p><h1>{escape(folder.name)}</h1></header>')
    files.replace(output, shell(folder.name, "".join(parts)))
    return output


def _header(sweep: SweepRecord) -> str:
    states = [trial.state for trial in sweep.trials]
    counts = [f"<b>{states.count('complete')}</b> of {sweep.facts['wanted']} trials complete"]
    names = {"pruned": "pruned", "fail": "failed", "running": "not finished"}
    counts += [f"<b>{states.count(s)}</b> {text}" for s, text in names.items() if s in states]
    how = f"{sweep.facts['sampler']}, pruner {sweep.facts['pruner']}, seed {sweep.facts['seed']}"
    spans = "".join(f"<span>{text}</span>" for text in [*counts, escape(how)])
    return f'<header><p class="kicker">Sweep</p><h1>{escape(sweep.name)}</h1><p class="facts">{spans}</p></header>'


def _best(sweep: SweepRecord, folder: Path) -> str:
    if (best := sweep.best) is None:
        return elements.section("Best", elements.panel("<dl><dt>No trial has completed.</dt></dl>"))
    cards = [elements.card(sweep.metric, f"{best.value:.5g}", f"trial {best.number}, {_seconds(best)}")]
    cards += [elements.card(name, label_of(best, name), sweep.space[name]["text"]) for name in sweep.space]
    place = shlex.quote(str(folder / "best.json"))
    command = f"python launch.py train {place} --run_dir {shlex.quote(f'runs/{folder.name}-best')}"
    again = elements.panel(f'<div class="command"><code>{escape(command)}</code><button>Copy</button></div>')
    return f'<div class="cards">{"".join(cards)}</div>' + elements.section("Train the best config", again)


def _figures(light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    body = f'<div class="figures">{elements.pictures(light, dark)}</div>' if light else ""
    return elements.section("Trials together", body, NOTE)


NOTE = (
    "Blue or orange: the best trial. Dashed with a cross at the end: pruned. Far worse values lie beyond the scales or at "
    "their ends. Importance: each field's share in what separates good trials from bad ones (PED-ANOVA, arXiv:2304.10255)."
)


def _trials(sweep: SweepRecord) -> str:
    names = list(sweep.space)
    head = "".join(f"<th>{elements.breakable(text)}</th>" for text in ("trial", sweep.metric, *names, "time"))
    sign = 1 if sweep.better == "less" else -1
    # Trials without a value come last, whichever direction is better.
    order = sorted(sweep.trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))
    rows = "".join(_row(sweep, trial, names) for trial in order)
    table = f'<table class="compare"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    reasons = {f"{trial.number:04d}": trial.reason for trial in order if trial.reason}
    failed = elements.section("Why trials failed", elements.panel(elements.definitions(reasons))) if reasons else ""
    note = "The best trial comes first. Each trial is a run in trials/."
    return elements.section("All trials", elements.panel(table), note) + failed


def _row(sweep: SweepRecord, trial: Trial, names: list[str]) -> str:
    value = f"{trial.value:.5g}" if trial.value is not None else _ended(trial)
    cells = "".join(f"<td>{escape(label_of(trial, name))}</td>" for name in names)
    mark = "marked best" if trial is sweep.best else "marked"
    return f'<tr><th>{trial.number:04d}</th><td class="{mark}">{value}</td>{cells}<td>{_seconds(trial)}</td></tr>'


def _ended(trial: Trial) -> str:
    if trial.state == "pruned" and trial.reports:
        step, value = trial.reports[-1]
        return f"pruned at step {step:,}, {value:.4g}"
    return {"fail": "failed", "running": "not finished"}.get(trial.state, trial.state)


def _seconds(trial: Trial) -> str:
    return "–" if trial.seconds is None else duration(trial.seconds)


def _space(sweep: SweepRecord) -> str:
    rows = {name: dimension["text"] for name, dimension in sweep.space.items()}
    return elements.section("Space", elements.panel(elements.definitions(rows)))


# ------------------------------------------------------------ seeds


def _seeds(seeds: dict[str, Any]) -> str:
    light, dark = (render({"seeds": seeds_figure}, seeds, theme) for theme in (LIGHT, DARK))
    rows = (
        (one["name"], number(one["mean"]), number(one["std"]), str(sum(v is not None for v in one["values"])))
        for one in seeds["configs"]
    )
    table = elements.table(("config", "mean", "spread", "seeds"), rows)
    facts = elements.panel(elements.definitions(_test(seeds)))
    failed = elements.panel(elements.definitions(seeds["reasons"])) if seeds["reasons"] else ""
    body = f'<div class="figures">{elements.pictures(light, dark)}<div>{table}<br>{facts}{failed}</div></div>'
    note = f"{seeds['metric']}, {seeds['better']} is better. Spread: the standard deviation over seeds, drawn as bars."
    return elements.section("Over seeds", body, note)


def _test(seeds: dict[str, Any]) -> dict[str, str]:
    test, (first, second) = seeds["paired"], (one["name"] for one in seeds["configs"])
    if not test:
        return {"Paired test": "fewer than two seeds completed with both configs"}
    interval = test["interval"] and f"{test['interval'][0]:.4g} to {test['interval'][1]:.4g}"
    return {
        f"{second} - {first}": f"{test['difference']:.4g}",
        "95 % interval": interval or "–",
        "Paired t-test, p": number(test["p_t"]),
        "Permutation test, p": f"{test['p_permutation']:.4g}; {test['count']} seeds cannot give less than {test['least']:.4g}",
    }
