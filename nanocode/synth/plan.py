"""What the synth stage would do, in words: whose rollouts, under which licence, at what estimated cost. Asks nobody."""

from nanocode.agent.soul import Soul, read_soul
from nanocode.agent.spending import Spending, estimate, meter_of, tokens_of
from nanocode.agent.tools import system_prompt
from nanocode.config.settings import Endpoint, Settings
from nanocode.synth.public_shards import name_of, quotas
from nanocode.synth.teacher_shards import missing_keys, teacher_task

# Prompts that are made to estimate the others by.
SAMPLED_TASKS = 100
# A transcript of an episode with six calls, as JSON, and a critique.
TRANSCRIPT_TOKENS, CRITIQUE_TOKENS = 2500, 60


def plan(settings: Settings) -> str:
    """The lines to print."""
    synth = settings.synth
    lines = ["synth would make", f"  {synth.scenarios:>9,} scenarios by the built-in expert (ours, generated; no cost)"]
    for quota in quotas(synth):
        one = quota.public
        licence = f"licence: {one.licence}" if one.licence != "unknown" else "licence not known here: see its page"
        lines.append(f"  {quota.rows:>9,} {one.kind} of {name_of(one)} ({licence})")
    if synth.teacher is not None and synth.teacher_scenarios:
        lines += _teacher(settings, synth.teacher)
    else:
        lines.append("          0 tasks by a teacher: set synth.teacher.url, .teacher.model, .teacher_scenarios")
    return "\n".join(lines)


def _teacher(settings: Settings, teacher: Endpoint) -> list[str]:
    synth = settings.synth
    spent = estimated(settings, teacher, read_soul(settings.soul, settings.soul_text))
    cap = "no cap" if teacher.cap_dollars is None else f"capped at ${teacher.cap_dollars:,.2f}"
    priced = teacher.prompt_dollars + teacher.completion_dollars > 0
    cost = f"about ${spent.dollars:,.2f}, {cap}" if priced else "no prices set: synth.teacher.prompt_dollars"
    judge = synth.critic.model if isinstance(synth.critic, Endpoint) else "itself" if synth.critic else "nobody"
    lines = [
        f"  {synth.teacher_scenarios:>9,} tasks by {teacher.model} at {teacher.url} ({cost}; its terms of use apply)",
        f"            {spent.calls:,} calls, {spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} answer "
        f"tokens if every first attempt is kept, up to 3 times that if none is; judged by {judge}",
    ]
    if missing := missing_keys(synth):
        lines.append(f"            LEFT OUT as things are: {', '.join(f'${name}' for name in missing)} is not set")
    return lines


def estimated(settings: Settings, teacher: Endpoint, soul: Soul) -> Spending:
    """What the teacher's tasks will roughly cost, with one attempt and one critique each."""
    synth, count = settings.synth, settings.synth.teacher_scenarios
    sampled = min(SAMPLED_TASKS, count)
    prompts = [teacher_task(settings.seed, number).prompt for number in range(sampled)]
    system = system_prompt(soul.text)
    one = estimate(meter_of(teacher), prompts, system)
    calls, prompt, completion = (round(value / sampled * count) for value in one[:3])
    spent = Spending(calls, prompt, completion, one.dollars / sampled * count)
    if not synth.critic:
        return spent
    judge = synth.critic if isinstance(synth.critic, Endpoint) else teacher
    asked, answered = count * (TRANSCRIPT_TOKENS + tokens_of(soul.text)), count * CRITIQUE_TOKENS
    return Spending(
        spent.calls + count,
        spent.prompt_tokens + asked,
        spent.completion_tokens + answered,
        spent.dollars + meter_of(judge).dollars(asked, answered),
    )
