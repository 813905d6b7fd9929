"""`python -m tests.bench [NAME ...]`: run the measurements, print a table, write `bench-results.json`."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path("bench-results.json")


def main(names: list[str]) -> int:
    # As `nanocode run` sets it for its stages; read by libc when a process starts.
    if "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.bench", *names])
    from rich.console import Console
    from rich.table import Table

    from tests.bench.measurements import MEASUREMENTS

    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        print(f"no measurement is called {unknown[0]}: choose from {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    console = Console()
    found = {}
    for name in names or MEASUREMENTS:
        with console.status(name):
            found[name] = MEASUREMENTS[name]()
        table = Table(title=name, title_justify="left", show_header=False)
        for key, value in found[name].items():
            table.add_row(key, f"{value:,.4g}" if isinstance(value, float) else str(value))
        console.print(table)
    about = {"when": datetime.now(UTC).isoformat(), "cpu": platform.processor(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({"machine": about, "measurements": found}, indent=1) + "\n")
    console.print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
