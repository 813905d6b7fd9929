"""The endpoint policy against a real HTTP server that misbehaves in every way such servers do."""

import json
import logging
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from nanocode.agent.conversation import Conversation, Result, Step, User
from nanocode.agent.endpoint import (
    ANSWER_BYTES,
    ANSWER_TRIES,
    BadAnswer,
    EmptyAnswer,
    EndpointError,
    EndpointMisconfigured,
    EndpointPolicy,
    EndpointUnavailable,
    Refusal,
)
from nanocode.agent.soul import read_soul
from nanocode.agent.spending import CostMeter, SpendingCapReached, estimate
from nanocode.agent.tools import Call
from nanocode.config.settings import Endpoint
from nanocode.run.exits import ConfigurationError
from tests.synth.server import KEY, Answer, Script, Server, call, calling, completion, delta, events, failing, serving

ASKED = (User("what is in a.py?"),)
OK = completion("Done.")


class Asking:
    """A policy, its server, and how long it would have slept."""

    def __init__(self, policy: EndpointPolicy, server: Server, slept: list[float]) -> None:
        self.policy, self.server, self.slept = policy, server, slept


@contextmanager
def asking(script: Script, meter: CostMeter | None = None, **settings: Any) -> Iterator[Asking]:
    slept: list[float] = []
    with serving(script) as server:
        endpoint = Endpoint(url=server.url, model="teacher", **{"timeout_seconds": 5.0, "tries": 4, **settings})
        with EndpointPolicy(endpoint, read_soul(None), meter, slept.append, random.Random(1), KEY) as policy:
            yield Asking(policy, server, slept)


# What a good answer becomes ---------------------------------------------------------------------------------------

GOOD: dict[str, tuple[Answer, Step | None]] = {
    "a text ends the turn": (completion(" Done.\n"), Step("Done.")),
    "a text in parts is one text": (
        completion([{"type": "text", "text": "Do"}, {"type": "text", "text": "ne."}]),
        Step("Done."),
    ),  # type: ignore[arg-type]
    "a call is checked and ordered": (
        calling("Read", '{"end": 9, "start": "2", "path": "a.py"}', content="Looking."),
        Step("Looking.", Call("Read", {"path": "a.py", "start": "2", "end": "9"})),
    ),
    "an argument that is null was not given": (
        calling("Grep", '{"pattern": "x", "path": null}'),
        Step("", Call("Grep", {"pattern": "x"})),
    ),
    "of several calls the first counts": (
        calling("Bash", '{"command": "ls"}', call("Bash", '{"command": "rm x"}', "c2")),
        Step("", Call("Bash", {"command": "ls"})),
    ),
    "an answer cut at its length leaves no room": (completion("Do", "length"), None),
    "a context that is full leaves no room": (failing(400, "too long", "context_length_exceeded"), None),
}


@pytest.mark.parametrize(("answer", "step"), GOOD.values(), ids=GOOD)
def test_good(answer: Answer, step: Step | None) -> None:
    with asking([answer]) as one:
        assert one.policy([ASKED]) == [step]
        assert one.slept == []
        assert one.server.keys == [f"Bearer {KEY}"]


def test_a_request_says_all_that_an_untrained_model_needs() -> None:
    conversation: Conversation = [
        *ASKED,
        Step("", Call("Read", {"path": "a.py", "start": "1"})),
        Result("    1→x"),
        Step("One line."),
        User("thanks"),
    ]
    with asking(
        [OK], options={"temperature": 0.5, "parallel_tool_calls": None}, length_field="max_completion_tokens"
    ) as one:
        one.policy([conversation])
    (request,) = one.server.requests
    messages = request.pop("messages")
    assert {tool["function"]["name"] for tool in request.pop("tools")} == {"Read", "Edit", "Grep", "Bash"}
    assert request == {"model": "teacher", "max_completion_tokens": 2048, "temperature": 0.5}
    assert "## Principles" in messages[0]["content"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert json.loads(messages[2]["tool_calls"][0]["function"]["arguments"]) == {"path": "a.py", "start": 1}
    assert messages[2]["tool_calls"][0]["id"] == messages[3]["tool_call_id"]


# Trouble that passes ----------------------------------------------------------------------------------------------

WHOLE = completion("Done.").body
PASSING: dict[str, Answer] = {
    "429 without Retry-After": failing(429),
    "429 with Retry-After": failing(429, Retry_After="7"),
    "500": failing(500),
    "503 with a web page": Answer(b"<html>busy</html>", 503, {"Content-Type": "text/html"}),
    "a request timeout": failing(408),
    "slow beyond the timeout": Answer(WHOLE, delay=30.0),
    "a byte now and then, beyond the timeout": Answer(WHOLE, drip=0.1),
    "JSON that is cut off": Answer(WHOLE[:40]),
    "a body that ends early": Answer(WHOLE[:40], promise=500),
    "a connection closed without a word": Answer(slam=True),
    "an empty body": Answer(b""),
    "half a surrogate pair": Answer(WHOLE.replace(b"Done.", b"\\ud800")),
    "HTML instead of JSON": Answer(b"<!DOCTYPE html><html></html>"),
    "another schema": Answer(b'{"outputs": ["Done."]}'),
    "a list": Answer(b"[]"),
    "usage that is negative": completion(usage=(-5, 10)),
    "nesting without end": Answer(b'{"choices":' * 5000),
    "a refusal": completion(None, refusal="I cannot."),
    "a content filter": completion("", "content_filter"),
    "no choices": Answer(b'{"choices": []}'),
    "empty content": completion(""),
    "content of white space": completion(" \n"),
    "no content": completion(None),
    "arguments that are no JSON": calling("Read", '{"path": '),
    "arguments that are a list": calling("Read", "[1]"),
    "an unknown tool": calling("Delete", "{}"),
    "an unknown argument": calling("Read", '{"path": "a", "mode": "r"}'),
    "a missing argument": calling("Read", "{}"),
    "half a surrogate pair in an argument": calling("Bash", '{"command": "\\\\ud800"}'.replace("\\\\", "\\")),
}
SLOW = {"slow beyond the timeout", "a byte now and then, beyond the timeout"}


@pytest.mark.parametrize("name", PASSING)
def test_is_tried_again(name: str) -> None:
    with asking([PASSING[name], OK], timeout_seconds=0.3 if name in SLOW else 5.0) as one:
        assert one.policy([ASKED]) == [Step("Done.")]
        assert len(one.slept) == 1
        assert len(one.server.requests) == 2


def test_a_connection_that_nobody_takes_is_tried_again_and_costs_nothing() -> None:
    with serving([OK]) as server:
        url = server.url
    endpoint = Endpoint(url=url, model="m", tries=3, prompt_dollars=1.0)
    slept: list[float] = []
    with EndpointPolicy(endpoint, read_soul(None), None, slept.append, key=KEY) as policy:
        with pytest.raises(EndpointUnavailable, match=r"m at .* failed \(Connection refused\) \(3 tries\)"):
            policy([ASKED])
        assert len(slept) == 2
        assert policy.meter.spent == (0, 0, 0, 0.0)


LASTING: dict[str, tuple[Answer, type[EndpointError], str, int]] = {
    "busy for ever": (failing(429), EndpointUnavailable, r"status 429: no \(4 tries\)", 4),
    "broken for ever": (failing(502), EndpointUnavailable, r"status 502: no \(4 tries\)", 4),
    "a pause longer than we would wait": (failing(429, Retry_After="9000"), EndpointUnavailable, "asks to wait 9000 s", 1),
    "JSON that is always cut off": (Answer(WHOLE[:40]), EndpointUnavailable, r"damaged or cut off .*\(4 tries\)", 4),
    "an error that comes as an answer": (Answer(b'{"error": {"message": "overloaded", "code": 502}}'), EndpointUnavailable, r"the answer is an error: overloaded \(4 tries\)", 4),
    "always a web page": (Answer(b"<html>"), BadAnswer, r"a web page, not JSON: check the url, .*\(3 tries\)", ANSWER_TRIES),
    "always another schema": (Answer(b'{"a": 1}'), BadAnswer, r"another shape .*choices: has to be given", ANSWER_TRIES),
    "refuses every time": (completion(None, refusal="I cannot."), Refusal, r"the model refuses: I cannot\. \(3 tries\)", ANSWER_TRIES),
    "always empty": (completion(""), EmptyAnswer, r"the answer is empty \(3 tries\)", ANSWER_TRIES),
    "never a choice": (Answer(b'{"choices": []}'), EmptyAnswer, "no choices", ANSWER_TRIES),
    "calls an unknown tool every time": (calling("Delete", "{}"), BadAnswer, "no tool is called 'Delete': use Read, Edit", ANSWER_TRIES),
    "never valid arguments": (calling("Read", '{"path'), BadAnswer, "the arguments of 'Read' are not a JSON object", ANSWER_TRIES),
    "more bytes than an answer has": (Answer(b" " * (ANSWER_BYTES + 1)), BadAnswer, "larger than", ANSWER_TRIES),
    "a wrong key": (failing(401, f"Incorrect API key provided: {KEY}"), EndpointMisconfigured, r"401: Incorrect API key provided: \[key\]: set \$OPENAI_API_KEY", 1),
    "a forbidden model": (failing(403), EndpointMisconfigured, "may not use this model", 1),
    "an unknown model": (failing(404, "no model x"), EndpointMisconfigured, "404: no model x: check url", 1),
    "a request that it does not take": (failing(400, "max_tokens is not supported"), EndpointMisconfigured, "not supported: it does not take", 1),
    "a field that it does not know": (failing(422), EndpointMisconfigured, "status 422", 1),
    "an account without money": (failing(429, "quota", "insufficient_quota"), EndpointMisconfigured, "no money left", 1),
    "an error with line breaks and colours": (failing(404, "a\n\x1b[31mb"), EndpointMisconfigured, r"404: a \[31mb:", 1),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "kind", "words", "requests"), LASTING.values(), ids=LASTING)
def test_ends_in_a_typed_error(answer: Answer, kind: type[EndpointError], words: str, requests: int) -> None:
    with asking([answer]) as one:
        with pytest.raises(kind, match=words) as raised:
            one.policy([ASKED])
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert len(one.server.requests) == requests
    assert len(one.slept) == requests - 1
    assert isinstance(raised.value, ConfigurationError) == (kind is EndpointMisconfigured)


def test_waits_grow_and_differ_by_chance() -> None:
    with asking([failing(500)], tries=9) as one:
        with pytest.raises(EndpointUnavailable):
            one.policy([ASKED])
    bounds = [min(60.0, 2.0**place) for place in range(8)]
    assert all(bound / 2 <= seconds <= bound for seconds, bound in zip(one.slept, bounds, strict=True))
    assert len({seconds / bound for seconds, bound in zip(one.slept, bounds, strict=True)}) == 8


RETRY_AFTER: dict[str, tuple[str, float, float]] = {
    "seconds are honoured, and a little chance added": ("7", 7.0, 7.5),
    "a date is honoured": (formatdate(4_000_000_000, usegmt=True), -1.0, -1.0),
    "a date that has passed means now": (formatdate(1_000_000_000, usegmt=True), 0.0, 0.5),
    "a negative number means now": ("-5", 0.0, 0.5),
    "words mean nothing": ("soon", 0.5, 1.0),
    "what is no number means nothing": ("nan", 0.5, 1.0),
}


@pytest.mark.parametrize(("value", "least", "most"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after(value: str, least: float, most: float) -> None:
    with asking([failing(429, Retry_After=value), OK]) as one:
        if least < 0:
            with pytest.raises(EndpointUnavailable, match="asks to wait"):
                one.policy([ASKED])
            return
        one.policy([ASKED])
    assert least <= one.slept[0] <= most


# Several at once --------------------------------------------------------------------------------------------------


def echo(request: dict[str, Any]) -> Answer:
    answer = completion(request["messages"][-1]["content"].upper())
    answer.delay = 0.03
    return answer


def test_conversations_are_answered_side_by_side_within_the_bound() -> None:
    with asking(echo, concurrency=3) as one:
        steps = one.policy([(User(f"say {number}"),) for number in range(12)])
    assert steps == [Step(f"SAY {number}") for number in range(12)]
    assert 2 <= one.server.most_in_flight <= 3


def test_the_first_error_ends_a_batch_without_asking_for_the_rest() -> None:
    def script(request: dict[str, Any]) -> Answer:
        return failing(401) if request["messages"][-1]["content"] == "2" else echo(request)

    with asking(script, concurrency=2) as one:
        with pytest.raises(EndpointMisconfigured):
            one.policy([(User(str(number)),) for number in range(40)])
    assert len(one.server.requests) < 20


# Money ------------------------------------------------------------------------------------------------------------


def test_tokens_and_dollars_are_counted() -> None:
    with asking([completion(usage=(1000, 100))], prompt_dollars=3.0, completion_dollars=15.0) as one:
        one.policy([ASKED])
        one.policy([ASKED])
    calls, prompt, completion_tokens, dollars = one.policy.meter.spent
    assert (calls, prompt, completion_tokens) == (2, 2000, 200)
    assert dollars == pytest.approx((2000 * 3 + 200 * 15) / 1e6)


def test_what_may_have_been_billed_is_counted_at_its_worst() -> None:
    for answer in (Answer(WHOLE[:40]), completion(usage=None), Answer(slam=True)):
        with asking([answer], completion_dollars=1.0, max_tokens=500, tries=1) as one:
            with suppress(EndpointUnavailable):
                one.policy([ASKED])
        assert one.policy.meter.spent.completion_tokens == 500
        assert one.policy.meter.spent.prompt_tokens > 100


def test_the_cap_refuses_the_next_call_and_is_never_passed() -> None:
    with asking(
        [completion(usage=(1000, 64))],
        prompt_dollars=10.0,
        completion_dollars=10.0,
        cap_dollars=0.2,
        max_tokens=64,
        concurrency=8,
    ) as one:
        with pytest.raises(SpendingCapReached, match=r"of \$0.2 are spent and the next call may cost"):
            one.policy([(User(str(number)),) for number in range(50)])
    assert 0.1 < one.policy.meter.spent.dollars <= 0.2
    assert len(one.server.requests) == one.policy.meter.spent.calls


def test_an_endpoint_that_bills_more_than_foreseen_passes_the_cap_by_the_calls_in_flight_only() -> None:
    with asking(
        [completion(usage=(50_000, 64))],
        prompt_dollars=10.0,
        completion_dollars=10.0,
        cap_dollars=0.2,
        max_tokens=64,
        concurrency=3,
    ) as one:
        with pytest.raises(SpendingCapReached):
            one.policy([(User(str(number)),) for number in range(50)])
    assert one.policy.meter.spent.dollars <= 0.2 + 3 * 50_064 * 10 / 1e6


def test_policies_may_share_a_meter() -> None:
    meter = CostMeter(10.0, 10.0, cap=0.05)
    with asking([OK], meter) as teacher, asking([OK], meter) as critic:
        both = [teacher.policy, critic.policy] * 100
        with pytest.raises(SpendingCapReached):
            [policy([ASKED]) for policy in both]
    assert meter.spent.dollars <= 0.05


def test_a_dry_run_says_what_episodes_would_cost() -> None:
    few = estimate(CostMeter(3.0, 15.0), ["fix it"] * 10, "system" * 100)
    assert few.calls == 60
    assert few.dollars == pytest.approx((few.prompt_tokens * 3 + few.completion_tokens * 15) / 1e6)
    assert estimate(CostMeter(3.0, 15.0), ["fix it"] * 20, "system" * 100).dollars == pytest.approx(2 * few.dollars)


# Streaming --------------------------------------------------------------------------------------------------------


def part(index: int = 0, **function: str) -> list[dict[str, Any]]:
    return [{"index": index, "function": function}]


USAGE = {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 5}}
STREAMS: dict[str, tuple[list[Answer], list[str | Step]]] = {
    "text as it comes": ([events(delta(content="Do"), delta(content="ne."), delta("stop"), USAGE)], ["Do", "ne.", Step("Done.")]),
    "a call in pieces": (
        [events(delta(content="Looking."), delta(tool_calls=part(name="Read", arguments="")), delta(tool_calls=part(arguments='{"path": ')), delta(tool_calls=part(arguments='"a.py"}')), delta("tool_calls"))],
        ["Looking.", Step("Looking.", Call("Read", {"path": "a.py"}))],
    ),
    "of several calls the first": (
        [events(delta(tool_calls=part(name="Bash", arguments='{"command": "ls"}')), delta(tool_calls=part(1, name="Bash", arguments="{}")), delta("tool_calls"))],
        [Step("", Call("Bash", {"command": "ls"}))],
    ),
    "busy at first": ([failing(429), events(delta(content="Hi."), delta("stop"))], ["Hi.", Step("Hi.")]),
    "no step when the length is used up": ([events(delta(content="Hi"), delta("length"))], ["Hi"]),
    "nothing when the context is full": ([failing(400, "", "context_length_exceeded")], []),
    "empty at first": ([events(delta("stop")), events(delta(content="Hi."), delta("stop"))], ["Hi.", Step("Hi.")]),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "pieces"), STREAMS.values(), ids=STREAMS)
def test_stream(answers: list[Answer], pieces: list[str | Step]) -> None:
    with asking(answers) as one:
        assert list(one.policy.stream(ASKED)) == pieces
    assert one.server.requests[0]["stream"] is True


BROKEN_STREAMS: dict[str, tuple[Answer, type[EndpointError]]] = {
    "one that ends in the middle": (events(delta(content="Hi"), done=False), EndpointUnavailable),
    "one that is cut off in a chunk": (events(delta(content="Hi"), '{"choices": [', done=False), EndpointUnavailable),
    "one with an error in it": (events(delta(content="Hi"), {"choices": {"error": KEY}}), BadAnswer),
    "one with an error between": (
        events(delta(content="Hi"), {"error": {"message": "overloaded"}}),
        EndpointUnavailable,
    ),
    "one whose connection closes": (Answer(events(delta(content="Hi")).body, promise=99), EndpointUnavailable),
}


@pytest.mark.parametrize(("answer", "kind"), BROKEN_STREAMS.values(), ids=BROKEN_STREAMS)
def test_broken_stream(answer: Answer, kind: type[EndpointError]) -> None:
    with asking([answer]) as one:
        stream = one.policy.stream(ASKED)
        assert next(stream) == "Hi"
        with pytest.raises(kind, match="teacher at"):
            list(stream)
    assert len(one.server.requests) == 1


def test_a_stream_that_is_left_early_frees_its_slot() -> None:
    with asking([events(delta(content="a"), delta(content="b"), delta("stop"))], concurrency=1) as one:
        stream = one.policy.stream(ASKED)
        assert next(stream) == "a"
        stream.close()  # type: ignore[attr-defined]
        assert list(one.policy.stream(ASKED))[-1] == Step("ab")


# The key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        *(failing(status, f"you sent {KEY}", f"code {KEY}") for status in (400, 401, 403, 404, 429, 500)),
        Answer(KEY.encode()),
        Answer(f"<html>{KEY}".encode()),
        Answer(json.dumps({KEY: 1}).encode()),
        Answer(slam=True),
        Answer(WHOLE, delay=30.0),
        calling(KEY, "{}"),
        calling("Read", json.dumps({KEY: 1})),
        completion(None, refusal=f"not with {KEY}"),
    ],
)
def test_the_key_is_in_no_error_log_or_repr(
    answer: Answer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logged, asking([answer], tries=2, timeout_seconds=0.3) as one:
        with pytest.raises(EndpointError) as raised:
            one.policy([ASKED])
    error: BaseException | None = raised.value
    seen = [repr(one.policy), repr(one.policy.endpoint), repr(logged), caplog.text, *capsys.readouterr()]
    seen += traceback.format_exception(raised.value)
    while error is not None:
        seen += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    assert not any(KEY in text for text in seen)


def test_a_key_that_is_no_key_is_refused_without_showing_it() -> None:
    with pytest.raises(EndpointMisconfigured, match=r"the key in \$OPENAI_API_KEY") as raised:
        EndpointPolicy(Endpoint(url="http://localhost/v1", model="m"), read_soul(None), key=f"{KEY}\n{KEY}")
    assert KEY not in str(raised.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an address without a scheme": ({"url": "api.example.com/v1"}, "write http"),
    "a key in the address": ({"url": "https://me:pw@example.com/v1"}, "belongs into the variable"),
    "a key in the query": ({"url": "https://example.com/v1?key=x"}, "belongs into the variable"),
    "a cap without prices": ({"cap_dollars": 5}, "caps nothing without prices"),
    "an unknown key": ({"api_key": "x"}, "Extra inputs"),
}


@pytest.mark.parametrize(("settings", "words"), WRONG.values(), ids=WRONG)
def test_settings_refuse(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Endpoint(**{"url": "https://example.com/v1", "model": "m", **settings})
