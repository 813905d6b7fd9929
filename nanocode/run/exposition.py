"""`nanocode status DIR --metrics`: a run in Prometheus' text format (for a textfile collector, say)."""

from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

BY_STAGE = {
    "step": "Steps, or pieces of work, done",
    "steps": "Steps, or pieces of work, in all",
    "loss": "Training loss of the last step",
    "tokens_per_second": "Training throughput",
    "mfu": "Model FLOPs utilisation",
    "attempts": "Attempts so far",
    "preemptions": "Attempts that were taken away",
    "failures": "Attempts that failed",
    "goodput": "Productive share of the wall-clock time",
    "goodput_with_a_slice": "The same, of the time in which nobody waited for a slice",
    "eta_seconds": "Time left at the recent speed",
    "cost_dollars": "Cost so far",
}
"""Key of a stage in the status -> what the gauge means."""


def exposition(found: dict[str, Any]) -> str:
    """The status as gauges; what is not known has no sample."""
    registry = CollectorRegistry()
    run = found["run"]

    def gauge(name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"nanocode_{name}", meaning, ("run", *labels), registry=registry)

    gauge("run_state", "1 for the state the run is in", "state").labels(run, found["state"]).set(1)
    gauge("run_spent_dollars", "Cost of the run so far").labels(run).set(found["spent_dollars"])
    if found["forecast_dollars"] is not None:
        gauge("run_forecast_dollars", "Cost of the run by its end, at the current goodput").labels(run).set(
            found["forecast_dollars"]
        )
    by_slice = gauge("slice_dollars", "Cost of a slice so far", "slice", "zone")
    for one in found["slices"]:
        if one["dollars"] is not None:
            by_slice.labels(run, one["name"], one["zone"]).set(one["dollars"])
    state = gauge("stage_state", "1 for the state the stage is in", "stage", "state")
    seconds = gauge("stage_wall_seconds", "Wall-clock time by what it went into", "stage", "kind")
    numbers = {key: gauge(f"stage_{key}", meaning, "stage") for key, meaning in BY_STAGE.items()}
    for stage in found["stages"]:
        state.labels(run, stage["name"], stage["state"]).set(1)
        for kind, took in stage["seconds"].items():
            seconds.labels(run, stage["name"], kind).set(took)
        for key, one in numbers.items():
            if stage[key] is not None:
                one.labels(run, stage["name"]).set(stage[key])
    return generate_latest(registry).decode()
