"""Write explain.html: how a run's model computes its answer to one input."""

from html import escape
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.explain.explained import Explained
from bigmodel_jax.explain.texts import TextExplanation
from bigmodel_jax.report import elements, explain_arrays, explain_texts
from bigmodel_jax.report.shell import shell

METHODS = {
    "Integrated gradients": "Sundararajan et al., arXiv:1703.01365",
    "Saliency": "Simonyan et al., arXiv:1312.6034",
    "SmoothGrad": "Smilkov et al., arXiv:1706.03825",
    "Grad-CAM": "Selvaraju et al., arXiv:1610.02391",
    "Attention rollout": "Abnar & Zuidema, arXiv:2005.00928",
    "Logit lens": 'nostalgebraist, "interpreting GPT: the logit lens", 2020',
    "Activation patching": "Meng et al., arXiv:2202.05262",
}
CAUTION = (
    "An attribution says how an answer was computed from an input, not whether it is right. Attention says where "
    "values were read, not whether they mattered."
)


def build_explain_page(run_dir: Path, found: Explained, output: Path) -> Path:
    """Write the page of an explanation. Returns `output`."""
    of_text = isinstance(found.result, TextExplanation)
    body = _header(run_dir, found) + _answer(found)
    body += explain_texts.sections(found) if of_text else explain_arrays.sections(found)
    # Which methods apply depends on the model, so the page itself says which were drawn.
    used = {name: source for name, source in METHODS.items() if f">{name}" in body}
    body += elements.section("How it was made", elements.panel(elements.definitions(used)), CAUTION)
    files.replace(output, shell(f"{found.title} · {run_dir.name}", body))
    return output


def _header(run_dir: Path, found: Explained) -> str:
    facts = {"Run": run_dir.absolute().name, "Step": f"{found.step:,}", "Model": found.kind}
    if found.truth:
        facts["True class"] = found.truth
    facts = "".join(f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in facts.items())
    return f'<header><p class="kicker">Explained</p><h1>{escape(found.title)}</h1><p class="facts">{facts}</p></header>'


def _answer(found: Explained) -> str:
    """Cards with the answer and with the check that the attributions are complete."""
    result = found.result
    answer, text = result.answer, isinstance(result, TextExplanation)
    if text:
        baseline = f"that to {result.baseline} alone"
    else:
        baseline = "that to a black picture" if found.shown.ndim == 3 else "that to the mean of every column"
    complete = explain_texts.completeness(result.integrated, baseline, found.unit)
    if answer.top:
        follows = text and result.next_token
        hero = explain_texts.hero(answer, "What comes next" if follows else "Class", _note(found))
        unit = ("log p", "in nats") if follows else ("logit", "before the softmax")
        return f'<div class="cards">{hero}{complete}{elements.card("Measured by its", *unit)}</div>'
    value = f"{answer.value * found.unit + found.mean:,.4g}"
    return f'<div class="cards">{elements.card(answer.name, value, "predicted")}{complete}</div>'


def _note(found: Explained) -> str:
    answer = found.result.answer
    likeliest = max(answer.top, key=lambda one: one[1])[0] == answer.name
    # A share below 0.05 % would be written as 0.0 %, which reads as impossible.
    share = f"{answer.probability:.1%}" if answer.probability >= 0.0005 else "less than 0.1%"
    note = share + ("" if likeliest else ", not the likeliest")
    if found.truth:
        note += ", as it is labelled" if found.truth == answer.name else f", but it is labelled {found.truth}"
    return note
