"""A report as one HTML page or as Markdown, from the templates beside this module.

Samples, source names and settings are untrusted: in HTML jinja2 escapes every value, the page forbids scripts and
fetches, and in Markdown every value that is no code block passes `words.cell`.
"""

from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from nanocode.report import agent, agent_charts, charts, time_spent, transcripts, words
from nanocode.report.curves import Samples
from nanocode.report.report import Report
from nanocode.report.verdict import explain, figures, measured, two_measures, verdict

# A sample is there for a look, not as an archive: the run directory keeps all of it.
SAMPLE_CHARACTERS = 1200
SAMPLE_PROMPTS = 6
# Successes, and failures, of each family: of the last model, and of each model before it.
TRANSCRIPTS, EARLIER_TRANSCRIPTS = 2, 1
# Rows of the Markdown table that stands in for the curves.
TABLE_ROWS = 10
FILTERS = (
    words.number, words.count, words.quantity, words.size, words.rate, words.share, words.duration, words.dollars,
    words.listing, agent.interval,
)  # fmt: skip


@dataclass(frozen=True)
class SamplePair:
    """One prompt, continued early in training and late; `early` is None where there is only one time."""

    prompt: str
    early: str | None
    late: str


@dataclass(frozen=True)
class Milestone:
    step: float
    x: float
    loss: float | None
    code: float | None
    english: float | None


def render_html(report: Report) -> str:
    """One page that needs nothing else: no script, no font, no image from elsewhere."""
    environment = _environment(autoescape=True)
    return environment.get_template("report.html.jinja").render(**_context(report))


def render_markdown(report: Report) -> str:
    """The same report as GitHub-flavoured Markdown; the curves are a table of milestones."""
    environment = _environment(autoescape=False)
    environment.finalize = _plain
    environment.filters["fenced"] = lambda text, language="text": Markup(words.fenced(text, language))
    return environment.get_template("report.md.jinja").render(**_context(report))


def milestones(report: Report) -> list[Milestone]:
    """At most ten moments of training, evenly spread, the last one included."""
    curves = report.curves
    losses = dict(zip(curves.loss.x, curves.loss.y, strict=True))
    found = [
        Milestone(one.step, one.x, losses.get(one.x), one.bits_per_byte.code, one.bits_per_byte.english)
        for one in curves.evaluations
    ]
    if len(found) <= TABLE_ROWS:
        return found
    return [found[round(i * (len(found) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]


def sample_pairs(moments: list[Samples]) -> list[SamplePair]:
    """The prompts of the last moment, each beside the first moment's continuation."""
    if not moments:
        return []
    first = {sample.prompt: sample.continuation for sample in moments[0].samples} if len(moments) > 1 else {}
    return [
        SamplePair(_cut(one.prompt), _cut(first[one.prompt]) if one.prompt in first else None, _cut(one.continuation))
        for one in moments[-1].samples[:SAMPLE_PROMPTS]
    ]


def _context(report: Report) -> dict[str, Any]:
    xz = report.base_eval.xz_bits_per_byte
    spent = time_spent.rows(report)
    moments = [one for one in report.curves.samples if one.samples]
    return {
        "report": report,
        "verdict": verdict(report),
        "figures": figures(report),
        "measured": measured(report),
        "two_measures": two_measures(report),
        "unfinished": [(stage, explain(report, stage)) for stage in report.unfinished],
        "comparisons": charts.comparisons(report.bits_per_byte, xz),
        "large_charts": charts.large(report.curves, xz),
        "small_charts": charts.small(report.curves),
        "time_bar": charts.time_bar(report.training_seconds),
        "time_spent": spent,
        "kinds_of_time": time_spent.legend(spent),
        "milestones": milestones(report),
        "moments": moments,
        "pairs": sample_pairs(moments),
        "shares": report.corpus.shares(),
        **_agent_context(report),
    }


def _agent_context(report: Report) -> dict[str, Any]:
    facts = report.agent_eval
    scores = agent.scores(facts)
    adherence = agent.adherence(report)
    trained = report.sft_curves.evaluations
    before = trained[0].bits_per_byte if trained else report.pretrain.bits_per_byte
    return {
        "scores": scores,
        "baselines": agent.baselines(facts),
        "score_rows": agent_charts.rows(scores),
        "effects": agent.effects(facts),
        "suites": agent.suite_scores(facts),
        "transfer": agent.transfer(facts),
        "adherence": adherence,
        "adherence_verdict": agent.adherence_verdict(adherence),
        "speed": _ratio(report.sft.tokens_per_second, report.pretrain.tokens_per_second),
        "sft_charts": charts.fine_tuning(report.sft_curves),
        "sft_drift": agent.drift(before, report.sft.bits_per_byte),
        "preference_charts": charts.preference(report.preference_curves),
        "preference_drift": agent.drift(report.preference.bits_per_byte_before, report.preference.bits_per_byte),
        "transcripts": _transcripts(report),
    }


def _transcripts(report: Report) -> list[tuple[str, tuple[transcripts.Family, ...]]]:
    """By model and suite: the last model on what compares models and on what it never trained on, then the others."""
    facts, last = report.agent_eval, agent.last_model(report.agent_eval)
    found: list[tuple[str, tuple[transcripts.Family, ...]]] = []
    for stage in reversed(agent.MODELS):
        for suite in (agent.FRESH, agent.TRANSFER) if stage == last else (agent.FRESH,):
            each = TRANSCRIPTS if stage == last else EARLIER_TRANSCRIPTS
            title = f"The model {agent.MODELS[stage]}" if stage == "preference" else f"The {agent.MODELS[stage]} model"
            title += ", on families it was never trained on" if suite == agent.TRANSFER else ""
            if families := transcripts.families(facts.suite(stage, suite), each):
                found.append((title, families))
    return found


def _ratio(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: resources.files("nanocode.report").joinpath(name).read_text("utf-8")),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {one.__name__: one for one in FILTERS}
    return environment


def _plain(value: Any) -> Any:
    return value if isinstance(value, Markup) else words.cell(value)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"
