"""The stores under test: a folder, and a prefix in a real fake-gcs-server."""

from tests.gcs import gcs_url, store

__all__ = ["gcs_url", "store"]
