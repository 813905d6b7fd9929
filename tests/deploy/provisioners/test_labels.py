"""Names and labels that both clouds take, whatever a run is called."""

import re

from hypothesis import given
from hypothesis import strategies as st

from deploy.provisioners.labels import labels, name_of, owned, run_label


@given(st.text(min_size=1), st.integers(1, 9999), st.text(), st.floats(0, 4e9))
def test_any_run_and_owner_give_names_and_labels_that_the_clouds_take(
    url: str, number: int, owner: str, expires: float
) -> None:
    run, slice = run_label(url), f"slice-{number}"
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name_of(run, slice))
    found = labels(run, slice, owner, expires)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?", value) for value in found.values())
    known = owned(found)
    assert known is not None and (known.run, known.slice, known.expires) == (run, slice, float(int(expires)))


def test_runs_of_the_same_name_in_two_buckets_are_told_apart() -> None:
    assert run_label("gs://mine/runs/d24") != run_label("gs://yours/runs/d24")
    assert run_label("gs://mine/runs/d24/") == run_label("gs://mine/runs/d24")


def test_what_somebody_else_has_made_is_not_ours() -> None:
    assert owned({"team": "research"}) is None
    assert owned({"nanocode-run": "d24-1a2b3c"}) is None
