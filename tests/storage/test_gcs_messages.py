"""What a user is told to do about a bucket that cannot be used."""

import pytest
from google.api_core.exceptions import Forbidden
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError

from nanocode.storage.gcs import translated_gcs
from nanocode.storage.objects import StorageError


@pytest.mark.parametrize(
    ("error", "move"),
    [
        (TransportError("the metadata server cannot be reached"), "check the network"),
        (RefreshError("the token endpoint answers 503", retryable=True), "check the network"),
        (RefreshError("invalid_grant: the account was deleted"), "check the credentials"),
        (Forbidden("storage.objects.get is denied"), "check the credentials"),
    ],
)
def test_credentials_are_blamed_only_where_they_were_refused(error: GoogleAuthError | Forbidden, move: str) -> None:
    with pytest.raises(StorageError, match=move):
        with translated_gcs("gs://bucket/a"):
            raise error
