from tests.gcs import gcs_url  # noqa: F401  (a fixture)
