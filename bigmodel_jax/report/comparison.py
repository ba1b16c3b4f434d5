"""Several runs side by side: curves on top of each other, final figures with the best marked, configs diffed."""

from html import escape

from bigmodel_jax.report import elements, plots
from bigmodel_jax.report.history import Run, config_diff, headline
from bigmodel_jax.report.plot_style import DARK, LIGHT


def comparison_body(runs: list[Run]) -> str:
    light, dark = (plots.draw_together(runs, theme) for theme in (LIGHT, DARK))
    header = f'<header><p class="kicker">Comparison</p><h1>{len(runs)} runs side by side</h1></header>'
    pictures = f'<div class="figures">{elements.pictures(light, dark)}</div>' if light else ""
    note = "Fields that are the same in all runs are left out."
    return "".join(
        (
            header,
            elements.section("Final figures", _figure_table(runs), "The best of each row is marked."),
            elements.section("Curves", pictures, "With points: held-out loss. Thin: training loss, smoothed."),
            elements.section("Configurations", _diff_table(runs), note),
        )
    )


def _figure_table(runs: list[Run]) -> str:
    figures = [headline(run) for run in runs]
    rows = ""
    for key in elements.FIGURE_NAMES:
        values = [figure.get(key) for figure in figures]
        if any(value is not None for value in values):
            winner = elements.best(key, values)
            cells = "".join(_cell(key, value, winner) for value in values)
            rows += f"<tr><th>{escape(elements.figure_name(key))}</th>{cells}</tr>"
    return elements.panel(f'<table class="compare">{_head(runs)}<tbody>{rows}</tbody></table>')


def _cell(key: str, value: float | None, winner: str | None) -> str:
    text = "–" if value is None else elements.figure_text(key, value)
    return f'<td class="marked{" best" if text == winner else ""}">{text}</td>'


def _diff_table(runs: list[Run]) -> str:
    rows = ""
    for name, values in config_diff(runs).items():
        cells = "".join(f"<td>{'–' if v is None else escape(elements.plain(v))}</td>" for v in values)
        rows += f"<tr><th>{elements.breakable(name)}</th>{cells}</tr>"
    if not rows:
        return elements.panel("<dl><dt>No field differs.</dt></dl>")
    return elements.panel(f'<table class="compare diff">{_head(runs)}<tbody>{rows}</tbody></table>')


def _head(runs: list[Run]) -> str:
    """Each run's letter in its curve's colour, and its name, with the folder above it where names repeat."""
    names = [run.name for run in runs]
    names = [f"{run.path.parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in runs]
    heads = "".join(f"<th>{_letter(index)}{elements.breakable(name)}</th>" for index, name in enumerate(names))
    return f"<thead><tr><th></th>{heads}</tr></thead>"


def _letter(index: int) -> str:
    light, dark = (theme.series[index % len(theme.series)] for theme in (LIGHT, DARK))
    return f'<span class="dot" style="color:light-dark({light},{dark})">{plots.letter(index)}</span>'
