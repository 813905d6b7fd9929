"""What the store asks of a bucket, request by request."""

import threading
from contextlib import suppress

from nanocode.storage.gcs import GcsStore
from nanocode.storage.objects import NotFound


def test_each_question_is_one_request_whatever_the_answer(gcs_url: str) -> None:
    store = GcsStore(gcs_url)
    asked: list[str] = []
    store._bucket.client._http.hooks["response"].append(lambda reply, **_: asked.append(reply.request.url))
    before = set(threading.enumerate())
    store.create("a/there", b"x")
    questions = (store.read, store.exists, store.generation, store.list, store.children)
    for name in ("a/there", "a/absent"):
        for ask in questions:
            with suppress(NotFound):
                ask(name)
            for thread in set(threading.enumerate()) - before:
                thread.join(5)  # whatever the client library does behind our back
    assert len(asked) == 1 + 2 * len(questions), asked
