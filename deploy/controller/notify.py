"""Tells a webhook, `{"text": ...}` as Slack takes it: in a thread, tried again for a while, never in the way.

The URL is a secret: what is logged names its host only.
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog

log = structlog.get_logger()

SECONDS_PER_TRY = 10.0
SECONDS_OF_TRIES = 120.0
SECONDS_AT_THE_END = 5.0
"""How long a command that is done waits for its last words to be delivered."""


class Webhook:
    """Sends text to where `url()` says at that moment; without one, nothing is sent."""

    def __init__(
        self,
        url: Callable[[], str | None],
        seconds_per_try: float = SECONDS_PER_TRY,
        seconds_of_tries: float = SECONDS_OF_TRIES,
        seconds_at_the_end: float = SECONDS_AT_THE_END,
    ) -> None:
        self._url = url
        self._per_try, self._of_tries, self._at_the_end = seconds_per_try, seconds_of_tries, seconds_at_the_end
        self._waiting: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def send(self, text: str) -> None:
        """Returns at once, whatever becomes of it."""
        url = self._url()
        if url is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="webhook", daemon=True)
            self._thread.start()
        self._waiting.put((url, text))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(self._at_the_end)
            if self._thread.is_alive():
                log.warning("the last words did not reach the webhook", seconds=self._at_the_end)

    def _deliver(self) -> None:
        while (one := self._waiting.get()) is not None:
            try:
                self._post(*one)
            except Exception as error:
                # Not its text: that holds the URL.
                log.warning("webhook gave no good answer", host=urlsplit(one[0]).hostname, error=type(error).__name__)

    def _post(self, url: str, text: str) -> None:
        import httpx2  # late: most runs have no webhook
        from google.api_core.retry import Retry

        def worth_another_try(error: Exception) -> bool:
            refused = isinstance(error, httpx2.HTTPStatusError) and error.response.status_code < 500
            return isinstance(error, httpx2.HTTPError) and (not refused or _is_busy(error))

        def _is_busy(error: Exception) -> bool:
            return isinstance(error, httpx2.HTTPStatusError) and error.response.status_code == 429

        def post() -> None:
            httpx2.post(url, json={"text": text}, timeout=self._per_try).raise_for_status()

        Retry(predicate=worth_another_try, initial=1.0, maximum=30.0, timeout=self._of_tries)(post)()
