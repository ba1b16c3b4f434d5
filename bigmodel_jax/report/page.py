"""Write report.html, an offline page on one run, or on several side by side."""

import logging
import os
import shlex
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from bigmodel_jax.core import files, mirror
from bigmodel_jax.core.metrics import Metric, precision_recall_f1
from bigmodel_jax.report import (
    answers,
    card_page,
    class_tables,
    declared,
    elements,
    harness_results,
    plots,
    profile_page,
    sheet,
    spike_marks,
    watch_plots,
)
from bigmodel_jax.report.comparison import comparison_body
from bigmodel_jax.report.fold_page import build_fold_page
from bigmodel_jax.report.fold_record import is_cross_validation
from bigmodel_jax.report.goodput import PARTS
from bigmodel_jax.report.history import Run, confusion, flatten, headline, levels, load_run, loss_unit, unit
from bigmodel_jax.report.plot_style import DARK, LIGHT
from bigmodel_jax.report.progress import duration, short
from bigmodel_jax.report.scaling import RECORDS_FILE
from bigmodel_jax.report.scaling_page import build_scaling_page
from bigmodel_jax.report.shell import shell
from bigmodel_jax.report.sweep import is_sweep
from bigmodel_jax.report.sweep_page import build_sweep_page

log = logging.getLogger(__name__)

SHOWN_SAMPLES = 2  # how many of the newest are open; older ones are folded
SAMPLE_CHARACTERS = 4000


def build_report(run_dirs: list[Path], output: Path, differences: Sequence[str] = ()) -> Path:
    """Write the page of one run, or of several side by side, to `output`, and return `output`.

    For one run it also writes plots/*.png into its folder. The folder of a scaling benchmark, a
    sweep or a cross-validation gets the page of its kind. differences: sentences on where two runs
    diverge. Raises ValueError for a folder without a run.
    """
    if all((Path(run_dir) / RECORDS_FILE).is_file() for run_dir in run_dirs):
        return build_scaling_page(run_dirs, Path(output))
    if len(run_dirs) == 1 and is_sweep(run_dirs[0]):
        return build_sweep_page(Path(run_dirs[0]), Path(output))
    if len(run_dirs) == 1 and is_cross_validation(run_dirs[0]):
        return build_fold_page(Path(run_dirs[0]), Path(output))
    runs = [load_run(run_dir) for run_dir in run_dirs]
    if len(runs) == 1:
        title, body = runs[0].name, _run_body(runs[0])
    else:
        title, body = f"{len(runs)} runs", comparison_body(runs, differences)
    output = Path(output)
    files.replace(output, shell(title, body))
    return output


def _run_body(run: Run) -> str:
    figures = headline(run)
    dark = plots.draw(run, DARK)
    light = plots.draw(run, LIGHT)
    inside = [watch_plots.draw_watched(run, theme) for theme in (LIGHT, DARK)]
    try:
        plots.write(run.path, light | inside[0])
    except OSError as error:  # the folder of a read-only run may not be writable
        log.warning("%s: %s; only the page has the plots", error.filename, error.strerror)
    return "".join(
        (
            _header(run, figures),
            f'<div class="cards">{"".join(_cards(run, figures))}</div>',
            elements.section("Curves", _grid(elements.pictures(light, dark))),
            elements.section(
                "Spikes",
                spike_marks.table(run.spikes),
                "Steps of unusually high loss, newest first. After a rollback, training skips the spike's batches.",
            ),
            elements.section(
                "Inside the network", _grid(elements.pictures(*inside)), "Statistics that report.watch recorded."
            ),
            elements.section("Wall time", _wall_time(run), _restarts(run)),
            profile_page.section(run.path),
            elements.section(
                "Per class",
                class_tables.every(run),
                "From the newest evaluation.",
            ),
            elements.section(
                "By group", class_tables.by_group(run), "From the newest evaluation, with 95 % intervals."
            ),
            elements.section(
                "Benchmarks", harness_results.table(run.path), "Results of lm-eval, the newest of each task."
            ),
            elements.section("Data", "".join(map(card_page.folded_card, run.cards)), "As the verb prepare counted it."),
            elements.section(
                "Training images", elements.panel(sheet.grid(run.path)), "The first batch, as the model receives it."
            ),
            elements.section("Samples", answers.tables(run.answers) + _samples(run)),
            elements.section("Run it again", _command(run)) if run.config else "",
            elements.section("Configuration", elements.panel(_config(run))),
            elements.section("Environment", elements.panel(_environment(run))),
        )
    )


def _header(run: Run, figures: dict[str, float]) -> str:
    done, total = int(figures["step"]), run.config.get("train", {}).get("steps")
    progress = _count(done, "step") if total in (None, done) else f"stopped at step {done:,} of {total:,}"
    kinds = [_class_name(run.config.get(key, {}).get("type", "")) for key in ("model", "objective")]
    facts = [escape(" · ".join(filter(None, kinds))), f"<b>{progress}</b>"]
    if "parameters" in run.environment:
        facts.insert(1, f"<b>{short(run.environment['parameters'])}</b> parameters")
    facts += [escape(_devices(run.environment)), escape(run.environment.get("date", "")[:10])]
    items = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    return f'<header><p class="kicker">Run</p><h1>{escape(run.name)}</h1><p class="facts">{items}</p></header>'


def _devices(environment: dict) -> str:
    devices = environment.get("devices", [])
    if all(device.endswith(" cpu") for device in devices):
        devices = [f"{device}, {environment.get('cpu', 'unknown')}" for device in devices]
    return ", ".join(devices)


def _cards(run: Run, figures: dict[str, float]) -> list[str]:
    """Cards of the figures that the run has. The headline metric comes first and large."""
    judged = _hero_key(run, figures)
    notes: dict[str, Callable[[], str]] = {
        "eval/loss": lambda: loss_unit(run) + _training_note(figures),
        "train_loss": lambda: loss_unit(run),
        "tokens_per_second": lambda: f"step {_written(run, 'step_seconds', figures)}, median",
        "mfu": lambda: f"of {run.environment.get('peak_source', 'peak')}",
        "goodput": lambda: f"of {duration(run.split.wall / 1000)} wall time",
        "wall_seconds": lambda: _seen(run, figures),
    }
    # Declared metrics come first. The evaluation's other values follow, and then the loop's own.
    measured = [*run.known, *(key for key in figures if key.startswith("eval/"))]
    own = ("train_loss", "tokens_per_second", "mfu", "goodput", "wall_seconds", "data_wait_share")
    hidden = {judged, *levels(run, judged.removeprefix("eval/"))} | (
        {"train_loss"} if "eval/loss" in figures else set()
    )
    cards = [_hero(run, judged, figures)]
    for key in dict.fromkeys((*measured, *own)):
        if key in figures and key not in hidden:
            metric = run.metric(key)
            name = f"{unit(run).title()}s/s" if key == "tokens_per_second" else _title(run, metric)
            note = notes[key]() if key in notes else metric.unit
            cards.append(elements.card(name, _written(run, key, figures), note))
    return cards


def _title(run: Run, metric: Metric) -> str:
    """A metric's title. Where two metrics share a title, the label follows it."""
    shared = [m for m in run.known.values() if m.beside and not m.title]
    if not metric.title and metric.beside:
        return f"{run.metric(f'eval/{metric.beside}').title}, {metric.label}"
    shares = metric.label and metric.name in {m.beside for m in shared}
    return f"{metric.title}, {metric.label}" if shares else metric.title


def _written(run: Run, key: str, figures: dict[str, float]) -> str:
    return declared.text(run.metric(key), figures[key])


def _hero_key(run: Run, figures: dict[str, float]) -> str:
    headlines = (key for key, metric in run.known.items() if metric.headline)
    return next(key for key in (*headlines, "eval/loss", "train_loss", "step") if key in figures)


def _hero(run: Run, key: str, figures: dict[str, float]) -> str:
    """The large card: the headline metric, above bars of the metrics that are drawn beside it."""
    metric = run.metric(key)
    note = loss_unit(run) if key.endswith("loss") else metric.unit
    if (matrix := confusion(run)) is not None:
        note = f"{np.trace(matrix):,.0f} of {matrix.sum():,.0f} held-out examples right"
        f1 = precision_recall_f1(matrix)["f1"]
        # A stable sort names the class of lower number first where two F1 are equal.
        worst = np.argsort(f1, kind="stable")[:2]
        bars = [("F1, mean", f1.mean(), f"{100 * f1.mean():.1f}")]
        bars += [(f"F1, {_class_title(run, c)}", f1[c], f"{100 * f1[c]:.1f}") for c in worst]
    else:
        bars = _beside(run, key, figures)
    return elements.hero(metric.title, _written(run, key, figures), note, bars)


def _beside(run: Run, key: str, figures: dict[str, float]) -> list[tuple[str, float, str]]:
    """Returns the bars of the run's value at `key` and of what the page compares with it.

    A bar is (title, share of the full length, value as text). The page compares other metrics and
    known levels.
    """
    name = key.removeprefix("eval/")
    others = [k for k in run.known if run.metric(k).beside == name and k in figures]
    if not others or name == "loss":
        return []
    # The full length of a bar is 1 for shares. For other figures it is the largest of them.
    longest = 1.0 if declared.is_share(run.metric(key)) else max(figures[k] for k in (key, *others))
    titles = {k: run.metric(k).label or run.metric(k).title for k in others}
    written = {k: _written(run, k, figures).removesuffix(" %") for k in (key, *others)}
    return [(title, figures[k] / longest, written[k]) for k, title in ({key: "this model"} | titles).items()]


def _class_title(run: Run, number: int) -> str:
    name = run.label(number)
    return name if run.labels else f"class {name}"


def _training_note(figures: dict[str, float]) -> str:
    return f"; training {figures['train_loss']:.3f}" if "train_loss" in figures else ""


def _seen(run: Run, figures: dict[str, float]) -> str:
    seen = float(run.tokens(np.asarray([figures["step"]]))[0])
    steps = _count(figures["step"], "step")
    return f"{steps}, {short(seen)} {unit(run)}s" if np.isfinite(seen) else steps


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _wall_time(run: Run) -> str:
    if run.split is None or not run.split.wall:
        return ""
    parts = run.split.parts.items()
    return elements.stacked([(PARTS[name], ms / run.split.wall, duration(ms / 1000)) for name, ms in parts])


def _restarts(run: Run) -> str:
    if run.split is None:
        return ""
    since = f", recorded from step {run.split.since:,} on" if run.split.since else ""
    return f"{_count(run.split.starts, 'start')}, {duration(run.split.wall / 1000)}{since}."


def _grid(body: str) -> str:
    return f'<div class="figures">{body}</div>' if body else ""


def _samples(run: Run) -> str:
    blocks = [_sample(name, text) for name, text in reversed(run.samples)]
    older = elements.folded("Older samples", str(len(blocks) - SHOWN_SAMPLES), "".join(blocks[SHOWN_SAMPLES:]))
    shown = "".join(_picture(name, png) for name, png in run.pictures[-1:]) + "".join(blocks[:SHOWN_SAMPLES])
    return shown + (elements.panel(older) if len(blocks) > SHOWN_SAMPLES else "")


def _sample(name: str, text: str) -> str:
    cut = text[:SAMPLE_CHARACTERS] + (" ..." if len(text) > SAMPLE_CHARACTERS else "")
    return f'<figure class="sample"><figcaption>{escape(name)}</figcaption><pre>{escape(cut)}</pre></figure>'


def _picture(name: str, png: bytes) -> str:
    return f'<figure class="sample"><figcaption>{escape(name)}</figcaption>{elements.png(png, name)}</figure>'


def _class_name(tag: str) -> str:
    """ "LlamaConfig" from "bigmodel_jax.models.llama:LlamaConfig"."""
    return tag.rpartition(":")[2]


def _config(run: Run) -> str:
    """One folded group for each part of the config."""
    parts = {}
    for key, value in run.config.items():
        if key == "type":
            continue
        fields = flatten(value) if isinstance(value, dict) else {key: value}
        kind = _class_name(fields.pop("type", ""))
        parts[key] = elements.folded(key, kind or _count(len(fields), "field"), elements.definitions(fields))
    return "".join(parts.values())


def _environment(run: Run) -> str:
    if not run.environment:
        return ""
    facts = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in run.environment.items()}
    groups = {k: facts.pop(k) for k in ("packages", "variables") if facts.get(k)}
    folds = "".join(elements.folded(name, f"{len(rows)}", elements.definitions(rows)) for name, rows in groups.items())
    return elements.definitions({k: v for k, v in facts.items() if v}) + folds


def _command(run: Run) -> str:
    relative = os.path.relpath(run.path)
    folder = mirror.address(run.path) if relative.startswith("..") else relative
    command = f"python launch.py train {shlex.quote(f'{folder}/config.json')}"
    return elements.panel(f'<div class="command"><code>{escape(command)}</code><button>Copy</button></div>')
