"""What happened, in sentences: the paragraph and the few numbers at the top of a report."""

from dataclasses import dataclass

from nanocode.report import agent, words
from nanocode.report.report import Report, StageRecord
from nanocode.run.graph import STAGES


@dataclass(frozen=True)
class Figure:
    label: str
    value: str
    note: str = ""
    style: str = ""


def figures(report: Report) -> tuple[Figure, ...]:
    """The numbers that stand at the top, in the order a reader asks for them."""
    bits, xz = report.bits_per_byte, report.base_eval.xz_bits_per_byte
    tokens = report.pretrain.tokens if report.pretrain.tokens is not None else report.curves.last_tokens
    machine = _machine(report)
    passed = agent.scores(report.agent_eval)
    tasks = tuple(
        Figure("Tasks passed", words.share(one.suite.share), agent.interval(one.suite.interval)) for one in passed[-1:]
    )
    return (
        *tasks,
        Figure("Parameters", words.quantity(report.parameters)),
        Figure("Tokens seen", words.quantity(tokens)),
        Figure("Bits per byte, code", words.number(bits.code, 3), _beside(xz.code), "code"),
        Figure("Bits per byte, English", words.number(bits.english, 3), _beside(xz.english), "english"),
        Figure("Training time", words.duration(_all_training_seconds(report)), machine),
        Figure("Cost", words.dollars(report.cost_dollars), "all stages" if report.cost_dollars is not None else ""),
    )


def verdict(report: Report) -> str:
    """One paragraph: what was trained on what, for how long, and what it reached."""
    sentences = [_trained(report), agent.headline(report.agent_eval), _reached(report), _compared(report)]
    return " ".join(sentence for sentence in sentences if sentence)


def explain(report: Report, stage: StageRecord) -> str:
    """Why a stage has no valid result: a sentence after its name."""
    if stage.state == "stale":
        return "was done with earlier settings and not yet again; its numbers below are the earlier ones"
    if stage.state == "unfinished":
        last = stage.claims[-1]
        times = "once," if stage.attempts == 1 else f"{stage.attempts} times, last"
        when = f"{last.claimed:%Y-%m-%d %H:%M} UTC"
        who = words.clean(last.who)
        return f"was begun {times} on {when} by {who}, and is not complete: it runs or it failed (see nanocode status)"
    waits = [name for name in STAGES[stage.name].reads if report.stage(name).state != "done"]
    return f"is not begun; it waits for {words.listing(waits)}" if waits else "is not begun; all that it reads is there"


def measured(report: Report) -> str:
    """Which measurement the bits per byte at the top are."""
    if report.base_eval.bits_per_byte:
        return "Measured by base-eval on documents that no training row holds."
    if report.pretrain.bits_per_byte:
        return "Pretrain's own last measurement; base-eval is not done."
    return "The newest measurement during training, on a part of the held-out text; base-eval is not done."


def two_measures(report: Report) -> str:
    """Why the curve ends at another figure than the one at the top; empty where only one is shown."""
    if not (report.base_eval.bits_per_byte and report.curves.evaluations):
        return ""
    rows = f"the first {words.count(report.settings.pretrain.eval_rows)} rows" if report.settings else "the first rows"
    return f"During training bits per byte are of {rows} of each kind of held-out text, at the top of all of it."


def _trained(report: Report) -> str:
    facts, curves = report.pretrain, report.curves
    if report.stage("pretrain").marker is None:
        if curves.last_step is None:
            return "Nothing is trained yet."
        steps = f" of {words.count(report.settings.pretrain_steps)}" if report.settings else ""
        tokens = f", {words.quantity(curves.last_tokens)} tokens" if curves.last_tokens is not None else ""
        return f"Training has reached step {words.count(curves.last_step)}{steps}{tokens}."
    subject = f"A model of {words.quantity(report.parameters)} parameters" if report.parameters else "A model"
    if report.settings:
        shape = report.settings.model
        subject += f" ({shape.layers} layers, {shape.width} wide, context {words.count(shape.context)})"
    text = f"{subject} was trained from scratch"
    if facts.tokens is not None:
        text += f" on {words.quantity(facts.tokens)} tokens"
    if names := [source.name or source.location for source in report.corpus.sources]:
        text += f" from {words.listing(names) if len(names) <= 4 else f'{len(names)} sources'}"
    if (seconds := _training_seconds(report)) is not None:
        text += f" in {words.duration(seconds)}"
    if machine := _machine(report):
        text += f" on {machine}"
    return text + "."


def _reached(report: Report) -> str:
    bits = report.bits_per_byte
    parts = [f"{words.number(bits.code, 3)} bits per byte of held-out code"] if bits.code is not None else []
    if bits.english is not None:
        parts.append(f"{words.number(bits.english, 3)} {'' if parts else 'bits per byte '}of held-out English")
    return f"The model needs {words.listing(parts)}." if parts else ""


def _compared(report: Report) -> str:
    bits, xz = report.bits_per_byte, report.base_eval.xz_bits_per_byte
    known = []
    for kind, ours, theirs in (("code", bits.code, xz.code), ("English", bits.english, xz.english)):
        if ours and theirs:
            better = "fewer" if ours <= theirs else "more"
            known.append((kind, words.share(abs(1 - ours / theirs)), better, words.number(theirs, 3)))
    if not known:
        return ""
    needs = words.listing([theirs for *_, theirs in known])
    differences = words.listing([f"{percent} {better} on {kind}" for kind, percent, better, _ in known])
    return f"xz\u00a0-9e, given one document at a time, needs {needs}: the model takes {differences}."


def _training_seconds(report: Report) -> float | None:
    stage = report.stage("pretrain")
    return stage.seconds if stage.seconds is not None else (report.training_seconds.total or None)


def _all_training_seconds(report: Report) -> float | None:
    """Of every stage that trains, as far as they are done."""
    seconds = (_training_seconds(report), report.stage("sft").seconds, report.stage("preference").seconds)
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


def _machine(report: Report) -> str:
    facts = report.pretrain
    if not facts.device:
        return ""
    return f"{words.count(facts.devices)} × {facts.device}" if facts.devices and facts.devices > 1 else facts.device


def _beside(xz: float | None) -> str:
    return f"xz {words.number(xz, 3)}" if xz is not None else ""
