"""What a user is told to do about a bucket that cannot be used."""

import json

import pytest
from google.api_core.exceptions import Forbidden, NotFound
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError

from nanocode.storage.gcs import translated_gcs
from nanocode.storage.objects import NotFound as NoObject
from nanocode.storage.objects import Refused, StorageError
from tests.clouds.permissions import ACCOUNT, refusal


@pytest.mark.parametrize(
    ("error", "move"),
    [
        (TransportError("the metadata server cannot be reached"), "check the network"),
        (RefreshError("the token endpoint answers 503", retryable=True), "check the network"),
        (RefreshError("invalid_grant: the account was deleted"), "check the credentials"),
        (Forbidden("The account is disabled."), "check the credentials"),
    ],
)
def test_credentials_are_blamed_only_where_they_were_refused(error: GoogleAuthError | Forbidden, move: str) -> None:
    with pytest.raises(StorageError, match=move):
        with translated_gcs("gs://bucket/a"):
            raise error


def as_a_download_has_it(permission: str) -> Forbidden:
    body = json.loads(refusal(permission))["error"]
    return Forbidden(body["message"], errors=body["errors"])


def as_an_upload_has_it(permission: str) -> Forbidden:
    """The client puts the whole body into the message."""
    return Forbidden(f"POST https://storage.googleapis.com/upload: {refusal(permission).decode()}: Request failed")


@pytest.mark.parametrize("wrapped", [as_a_download_has_it, as_an_upload_has_it])
@pytest.mark.parametrize("permission", ["storage.objects.list", "storage.objects.create"])
def test_the_permission_that_lacks_is_named_with_the_command_that_grants_it(permission: str, wrapped: object) -> None:
    with pytest.raises(Refused) as told, translated_gcs("gs://bucket/run/a"):
        raise wrapped(permission)  # type: ignore[operator]
    assert str(told.value) == (
        f"not allowed to use gs://bucket/run/a: {ACCOUNT} lacks the permission {permission}: grant it (`gcloud storage "
        f"buckets add-iam-policy-binding gs://bucket --member=serviceAccount:{ACCOUNT} --role=roles/storage.objectUser`)"
    )


def test_a_person_is_granted_it_as_one_and_an_account_that_is_not_named_is_left_to_fill_in() -> None:
    with pytest.raises(Refused, match="--member=user:ada@example.com --role"), translated_gcs("gs://bucket/a"):
        raise Forbidden("ada@example.com does not have storage.objects.get access to the Google Cloud Storage object.")
    with pytest.raises(Refused, match="its account lacks .* --member=serviceAccount:ACCOUNT --role"):
        with translated_gcs("gs://bucket/a"):
            raise Forbidden("Caller does not have storage.objects.get access to the Google Cloud Storage object.")


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("Rate Limit Exceeded", errors=[{"domain": "usageLimits", "reason": "userRateLimitExceeded"}]),
        Forbidden('POST https://upload: {"error": {"errors": [{"reason": "rateLimitExceeded"}]}}'),
        TransportError("the metadata server cannot be reached"),
        RefreshError("invalid_grant: the account was deleted"),
    ],
    ids=["rate limit", "rate limit of an upload", "outage", "credentials"],
)
def test_what_may_pass_by_itself_is_no_refusal(error: Exception) -> None:
    with pytest.raises(StorageError) as told, translated_gcs("gs://bucket/a"):
        raise error
    assert not isinstance(told.value, Refused)


def test_what_is_not_there_is_the_bucket_where_nothing_else_can_be() -> None:
    with pytest.raises(
        Refused, match="bucket gs://bucket does not exist: create it .`gcloud storage buckets create gs://b"
    ):
        with translated_gcs("gs://bucket/run/a", in_bucket=True):
            raise NotFound("The specified bucket does not exist.")
    with pytest.raises(NoObject), translated_gcs("gs://bucket/run/a"):
        raise NotFound("No such object: bucket/run/a")
