"""Compare several runs: curves in one plot, final figures with the best marked, config diffs."""

from collections.abc import Sequence
from html import escape

from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.report import declared, elements, plots_together
from bigmodel_jax.report.comparable import difference
from bigmodel_jax.report.history import Run, config_diff, headline, metric_of
from bigmodel_jax.report.plot_style import DARK, LIGHT


def comparison_body(runs: list[Run], differences: Sequence[str] = ()) -> str:
    """The HTML body of the comparison. differences: sentences of difference.first_differences."""
    light, dark = (plots_together.draw_together(runs, theme) for theme in (LIGHT, DARK))
    header = f'<header><p class="kicker">Comparison</p><h1>{len(runs)} runs side by side</h1></header>'
    pictures = f'<div class="figures">{elements.pictures(light, dark)}</div>' if light else ""
    note = "Fields that are the same in all runs are left out."
    best = "The best value of each row is marked. If a figure cannot be compared, its row says what differs."
    curves = "Lines with points: held-out data. Thin lines: training, smoothed."
    if why := difference("eval/loss", runs):
        curves += f" Losses do not compare here: the {why} differs."
    return "".join(
        (
            header,
            elements.section("Final figures", _figure_table(runs), best),
            elements.section("First difference", _differences(differences), "Runs A and B, compared step by step."),
            elements.section("Curves", pictures, curves),
            elements.section("Configurations", _diff_table(runs), note),
        )
    )


def _differences(sentences: Sequence[str]) -> str:
    rows = {name: text for name, _, text in (sentence.partition(": ") for sentence in sentences)}
    return elements.panel(elements.definitions(rows)) if rows else ""


def _figure_table(runs: list[Run]) -> str:
    figures = [headline(run) for run in runs]
    rows = ""
    found = dict.fromkeys(key for figure in figures for key in figure)
    # Declared metrics come first, then the loop's own metrics, then all others.
    order = (*(key for run in runs for key in run.known), *(metric.name for metric in declared.OWN))
    for key in dict.fromkeys((*(key for key in order if key in found), *found)):
        values, metric = [figure.get(key) for figure in figures], metric_of(runs, key)
        # `best` is a text, so all values that print alike are marked.
        winner = declared.best(metric, values)
        why = winner and difference(key, [run for run, value in zip(runs, values, strict=True) if value is not None])
        # If a figure does not compare between the runs, no value is marked as the best.
        cells = "".join(_cell(metric, value, None if why else winner) for value in values)
        note = f'<div class="note">{escape(why)} differs</div>' if why else ""
        rows += f"<tr><th>{escape(metric.title)}{note}</th>{cells}</tr>"
    return elements.panel(f'<table class="compare">{_head(runs)}<tbody>{rows}</tbody></table>')


def _cell(metric: Metric, value: float | None, winner: str | None) -> str:
    text = "–" if value is None else declared.text(metric, value)
    return f'<td class="marked{" best" if text == winner else ""}">{text}</td>'


def _diff_table(runs: list[Run]) -> str:
    rows = ""
    for name, values in config_diff(runs).items():
        texts = ("–" if v is None else elements.plain(v) for v in values)
        if name.rpartition(".")[2] == "type":  # "LlamaConfig" of "bigmodel_jax.models.llama:LlamaConfig"
            texts = (text.rpartition(":")[2] for text in texts)
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        rows += f"<tr><th>{elements.breakable(name)}</th>{cells}</tr>"
    if not rows:
        return elements.panel("<dl><dt>No field differs.</dt></dl>")
    return elements.panel(f'<table class="compare diff">{_head(runs)}<tbody>{rows}</tbody></table>')


def _head(runs: list[Run]) -> str:
    """Each run's letter in the colour of its curve, and its name.

    Where names repeat, the parent folder is added.
    """
    names = [run.name for run in runs]
    names = [f"{run.path.parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in runs]
    heads = "".join(f"<th>{_letter(index)}{elements.breakable(name)}</th>" for index, name in enumerate(names))
    return f"<thead><tr><th></th>{heads}</tr></thead>"


def _letter(index: int) -> str:
    light, dark = (theme.series[index % len(theme.series)] for theme in (LIGHT, DARK))
    return f'<span class="dot" style="color:light-dark({light},{dark})">{plots_together.letter(index)}</span>'
