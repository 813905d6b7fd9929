"""Any OpenAI-compatible chat-completions endpoint as a policy.

An answer is untrusted: it is bounded in bytes and time, validated, and becomes a `Step` or a typed error. Trouble that
passes (429, 5xx, time, connections, cut-off bodies) is retried with exponential back-off and jitter, an answer that is
no step a few times, and what no retry can mend is final at once. The API key is in the client and nowhere else.
"""

import json
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cache
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import structlog
from pydantic import BaseModel, NonNegativeInt, ValidationError

from nanocode.agent.conversation import Conversation, Step
from nanocode.agent.messages import REASON_CHARACTERS, WireCall, WireFunction, WireMessage, first, step_of, to_messages
from nanocode.agent.soul import Soul
from nanocode.agent.spending import Bill, CostMeter, meter_of, tokens_of
from nanocode.agent.tools import json_schemas, system_prompt
from nanocode.config.settings import Endpoint
from nanocode.run.exits import ConfigurationError

if TYPE_CHECKING:
    import openai

log = structlog.get_logger()
T = TypeVar("T")

# A step is a few hundred tokens; whatever sends this much is not answering.
ANSWER_BYTES = 4 << 20
# An answer that is no step: another sample may be one, many more will not.
ANSWER_TRIES = 3
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# A server that asks for a longer pause than this is out of order for us.
LONGEST_RETRY_AFTER = 300.0
CONNECT_SECONDS = 10.0
ERRNO = re.compile(r"\[Errno -?\d+\] ")
# The longest error a server may tell us, before white space is squeezed and the rest cut.
TOLD_CHARACTERS = 5000


class EndpointError(Exception):
    """The endpoint gave no usable answer; one line, without secrets."""


class EndpointUnavailable(EndpointError):
    """It is busy or out of reach, and was after all tries. Worth another go later."""

    def __init__(self, message: str, retry_after: float | None = None, billed: bool = True) -> None:
        super().__init__(message)
        self.retry_after, self.billed = retry_after, billed


class EndpointMisconfigured(EndpointError, ConfigurationError):
    """No retry can mend it: address, key, model, quota or a field of the request is wrong."""


class BadAnswer(EndpointError):
    """It answered, but not with a step."""


class Refusal(BadAnswer):
    """The model declined."""


class EmptyAnswer(BadAnswer):
    """There was nothing in it."""


class _ContextFull(EndpointError):
    """The conversation is longer than the model takes."""


class _Choice(BaseModel):
    message: WireMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt = 0


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class _PartOfFunction(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _PartOfCall(BaseModel):
    index: int = 0
    function: _PartOfFunction = _PartOfFunction()


class _Delta(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_PartOfCall] | None = None


class _PartOfChoice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: list[_PartOfChoice] = []
    usage: _Usage | None = None


class EndpointPolicy:
    """Asks the endpoint for every step. Threads may share it; `concurrency` bounds them all together."""

    def __init__(
        self,
        endpoint: Endpoint,
        soul: Soul,
        meter: CostMeter | None = None,
        sleep: Callable[[float], None] = time.sleep,
        dice: random.Random | None = None,
        key: str | None = None,
    ) -> None:
        self.endpoint, self.meter = endpoint, meter if meter is not None else meter_of(endpoint)
        self.system = system_prompt(soul.text)
        self._sleep, self._dice = sleep, dice or random.Random()
        self._slots = BoundedSemaphore(endpoint.concurrency)
        self._secret = (key if key is not None else os.environ.get(endpoint.key_variable or "", "")).strip()
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise EndpointMisconfigured(f"the key in ${endpoint.key_variable} has characters that no key has: set it")
        self._client = _client(endpoint, self._secret)

    def __repr__(self) -> str:
        return f"EndpointPolicy({self.endpoint.model} at {self.endpoint.url})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        """The next step of each, asked for at once; the first error ends them all, once what is in flight is back."""
        if len(conversations) == 1:
            return [self.step(conversations[0])]
        with ThreadPoolExecutor(self.endpoint.concurrency, "endpoint") as threads:
            asked = [threads.submit(self.step, one) for one in conversations]
            try:
                wait(asked, return_when="FIRST_EXCEPTION")
            finally:
                for one in asked:
                    one.cancel()
        failed = [error for one in asked if not one.cancelled() and (error := one.exception()) is not None]
        if failed:
            raise failed[0]
        return [one.result() for one in asked]

    def step(self, conversation: Conversation) -> Step | None:
        """The next step of one conversation; None when its context or the answer's length is used up."""
        body = self._request(to_messages(conversation, self.system), json_schemas())
        try:
            return self._insist(lambda: _step(self._once(body)))
        except _ContextFull:
            return None

    def ask(self, messages: Sequence[dict[str, Any]], read: Callable[[str], T]) -> T:
        """What `read` makes of the text that answers these messages, without tools; its `ValueError` asks again."""
        body = self._request(messages)

        def once() -> T:
            step = _step(self._once(body))
            if step is None:
                raise BadAnswer(f"the answer is longer than {self.endpoint.max_tokens} tokens")
            try:
                return read(step.text)
            except ValueError as error:
                raise BadAnswer(str(error)) from None

        return self._insist(once)

    def stream(self, conversation: Conversation) -> Iterator[str | Step]:
        """The text of the next step as it comes, and at last the step. Retried until the first text only.

        Ends without a step when the context or the answer's length is used up.
        """
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        body = self._request(to_messages(conversation, self.system), json_schemas(), streaming)

        def begin() -> tuple[str | Step | None, Iterator[str | Step]]:
            pieces = self._streamed(body)
            return next(pieces, None), pieces

        try:
            head, rest = self._insist(begin)
        except _ContextFull:
            return
        if head is None:
            return
        yield head
        trouble: EndpointError
        try:
            yield from rest
            return
        except EndpointError as error:
            trouble = error
        raise self._told(trouble)

    # One request ------------------------------------------------------------------------------------------------------

    def _request(
        self,
        messages: Sequence[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": list(messages), self.endpoint.length_field: self.endpoint.max_tokens}
        if tools is not None:
            body |= {"tools": tools, "parallel_tool_calls": False}
        body |= {**more, **self.endpoint.options}
        return {key: value for key, value in body.items() if value is not None}

    def _insist(self, attempt: Callable[[], T]) -> T:
        """The attempt's result, in as many tries as its kind of trouble deserves."""
        unavailable = bad = 0
        while True:
            trouble: EndpointError
            pause: float | None = None
            final: str | None = None
            try:
                return attempt()
            except EndpointUnavailable as error:
                trouble, pause = error, error.retry_after
                unavailable += 1
                if pause is not None and pause > LONGEST_RETRY_AFTER:
                    final = f", and asks to wait {pause:.0f} s"
                elif unavailable >= self.endpoint.tries:
                    final = f" ({unavailable} tries)"
            except BadAnswer as error:
                trouble = error
                bad += 1
                if bad >= ANSWER_TRIES:
                    final = f" ({bad} tries)"
            except (_ContextFull, EndpointMisconfigured) as error:
                trouble, final = error, ""
            if final is not None:
                raise self._told(trouble, final)  # outside of `except`: what it stems from may show the key
            # Half of the wait is chance, so that threads that were turned away together do not come back together.
            step = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (unavailable + bad - 1))
            chance = 0.5 * step * self._dice.random()
            seconds = (0.5 * step if pause is None else pause) + chance
            log.info("endpoint: trying again", reason=str(self._told(trouble)), seconds=round(seconds, 1))
            self._sleep(seconds)

    def _told(self, error: EndpointError, more: str = "") -> EndpointError:
        """The error in one printable line that names the endpoint and holds no key."""
        told = type(error)(f"{self.endpoint.model} at {self.endpoint.url}: {self._clean(str(error))}{more}")
        if isinstance(told, EndpointUnavailable) and isinstance(error, EndpointUnavailable):
            told.retry_after = error.retry_after
        return told

    def _clean(self, text: str) -> str:
        text = text.replace(self._secret, "[key]") if self._secret else text
        text = "".join(letter if letter.isprintable() else " " for letter in text[:TOLD_CHARACTERS])
        return " ".join(text.split())[: 2 * REASON_CHARACTERS]

    def _paid(self, body: dict[str, Any]) -> Any:
        return self.meter.call(tokens_of(json.dumps(body)), self.endpoint.max_tokens)

    def _once(self, body: dict[str, Any]) -> _Choice:
        """The first choice of one answer."""
        with self._slots, self._paid(body) as bill:
            data = b"".join(self._bytes(body, bill))
            completion = _validated(_Completion, data)
            if completion.usage is not None:
                bill.settle(completion.usage.prompt_tokens, completion.usage.completion_tokens)
        if not completion.choices:
            raise EmptyAnswer("the answer has no choices")
        return completion.choices[0]

    def _streamed(self, body: dict[str, Any]) -> Iterator[str | Step]:
        text, refusal, name, arguments, finished = "", "", "", "", None
        with self._slots, self._paid(body) as bill:
            for data in _events(self._bytes(body, bill)):
                chunk = _validated(_Chunk, data)
                if chunk.usage is not None:
                    bill.settle(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices[:1]:
                    finished = choice.finish_reason or finished
                    delta = choice.delta
                    refusal += delta.refusal or ""
                    for call in delta.tool_calls or []:
                        if call.index == 0:
                            name += call.function.name or ""
                            arguments += call.function.arguments or ""
                    if delta.content:
                        text += delta.content
                        yield delta.content
        if finished is None:
            raise EndpointUnavailable("the answer ends in the middle")
        calls = [WireCall(function=WireFunction(name=name, arguments=arguments))] if name else None
        message = WireMessage(content=text, refusal=refusal or None, tool_calls=calls)
        step = _step(_Choice(message=message, finish_reason=finished))
        if step is not None:
            yield step

    def _bytes(self, body: dict[str, Any], bill: Bill) -> Iterator[bytes]:
        """The body of the answer; every trouble on the way as one of our errors.

        They are raised outside of `except`: the client's own errors hold the request with its headers.
        """
        import httpx2
        import openai

        trouble: EndpointError
        size, deadline = 0, time.monotonic() + self.endpoint.timeout_seconds
        late = f"no answer within {self.endpoint.timeout_seconds:g} s"
        rest = {key: value for key, value in body.items() if key != "messages"}
        create: Any = self._client.chat.completions.with_streaming_response.create
        try:
            with create(model=self.endpoint.model, messages=body["messages"], extra_body=rest) as response:
                for piece in response.iter_bytes():
                    size += len(piece)
                    if size > ANSWER_BYTES:
                        raise BadAnswer(f"the answer is larger than {ANSWER_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise EndpointUnavailable(late)
                    yield piece
            return
        except EndpointError as error:
            trouble = error
        except (openai.APITimeoutError, httpx2.TimeoutException):
            trouble = EndpointUnavailable(late)
        except openai.APIStatusError as error:
            trouble = self._status(error)
            bill.waive()
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            unreached = isinstance(cause, httpx2.ConnectError)
            trouble = EndpointUnavailable(
                f"the connection failed ({ERRNO.sub('', str(cause)) or type(cause).__name__})"
            )
            if unreached:
                bill.waive()
        except (openai.OpenAIError, httpx2.InvalidURL) as error:
            trouble = BadAnswer(f"{type(error).__name__}: {error}")
        raise trouble

    def _status(self, error: "openai.APIStatusError") -> EndpointError:
        """What a status other than 2xx means."""
        status, said = error.status_code, self._clean(error.message.removeprefix(f"Error code: {error.status_code} - "))
        code, name = error.code or "", self.endpoint.key_variable
        variable = f"${name}" if name else "the variable that `key_variable` names"
        if code == "context_length_exceeded" or (status == 400 and "context length" in said):
            return _ContextFull(said)
        if code == "insufficient_quota" or status == 402:
            return EndpointMisconfigured(f"the account has no money left ({status}: {said}): top it up")
        if status in (408, 409, 425, 429) or status >= 500:
            return EndpointUnavailable(f"status {status}: {said}", _retry_after(error.response.headers), billed=False)
        moves = {
            400: "it does not take the request, see the settings `options` and `length_field`",
            401: f"set {variable} to a valid key",
            403: f"the key in {variable} may not use this model",
            404: "check url (it mostly ends in /v1) and model",
        }
        return EndpointMisconfigured(f"status {status}: {said}: {moves.get(status, 'check url, model and options')}")


def _client(endpoint: Endpoint, key: str) -> "openai.OpenAI":
    import httpx2
    import openai  # 1.2 s, and only who calls an endpoint needs it

    timeout = httpx2.Timeout(endpoint.timeout_seconds, connect=min(CONNECT_SECONDS, endpoint.timeout_seconds))
    # Servers on one's own machine take any key, but the client insists on one.
    http = openai.DefaultHttpxClient(base_url=endpoint.url, timeout=timeout, verify=_certificates())
    return openai.OpenAI(api_key=key or "none", base_url=endpoint.url, timeout=timeout, max_retries=0, http_client=http)


@cache
def _certificates() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()  # 50 ms, so once


def _step(choice: _Choice) -> Step | None:
    """The step a choice says, None if it was cut at its length, or why it is none."""
    message = choice.message
    if message.refusal or choice.finish_reason == "content_filter":
        raise Refusal(f"the model refuses: {message.refusal or 'content filter'}")
    if choice.finish_reason == "length":
        return None
    try:
        step = step_of(message)
    except ValueError as error:
        raise BadAnswer(str(error)) from None
    step = replace(step, text=step.text.strip())
    if step.call is None and not step.text:
        raise EmptyAnswer("the answer is empty")
    return step


Model = TypeVar("Model", bound=BaseModel)


class _Failure(BaseModel):
    """An error that comes with status 200, as gateways send it when the model behind them fails."""

    error: str | dict[str, Any]


def _validated(model: type[Model], data: bytes) -> Model:
    with suppress(ValidationError):
        failure = _Failure.model_validate_json(data).error if b'"error"' in data else ""
        if failure:
            said = failure if isinstance(failure, str) else failure.get("message") or failure
            raise EndpointUnavailable(f"the answer is an error: {said}")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] != "json_invalid":
            raise BadAnswer(f"the answer has another shape than a chat completion ({first(error)})") from None
        if data.lstrip()[:1] == b"<":
            raise BadAnswer("the answer is a web page, not JSON: check the url, it mostly ends in /v1") from None
        raise EndpointUnavailable(f"the answer is damaged or cut off ({first(error)})") from None


def _events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events up to `[DONE]`."""
    kept = b""
    for piece in pieces:
        *lines, kept = (kept + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            yield data


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks us to wait, given as seconds or as a date; None for anything else."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
