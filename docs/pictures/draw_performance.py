"""Draws performance.png: see the script `draw-performance` beside this."""

import csv
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SUBJECTS = {
    "bare tonic echo": "a server that does nothing",
    "the same max_staleness": "from memory (max_staleness)",
    "account-service": "account-service, coherent",
    "OpenFGA in memory": "OpenFGA, no data store",
    "SpiceDB in memory": "SpiceDB, no data store",
    "Node.js grpc-js": "the same in Node.js",
}
PACES = {"Closed(1)": "one at a time", "Closed(64)": "64 at once"}


def medians(path):
    found = {}
    part = 0
    for row in csv.DictReader(open(path)):
        # Each part of a run begins with the header; the first one compares.
        part += row["subject"] == "subject"
        is_compared = part == 0 or "max_staleness" in row["subject"]
        if is_compared and row["pace"] in PACES:
            found.setdefault((row["subject"], row["pace"]), []).append(float(row["cpu_us_per_call"]))
    return {key: statistics.median(values) for key, values in found.items()}


def main(rows, path):
    measured = medians(rows)
    figure, axes = plt.subplots(1, len(PACES), figsize=(12, 3), layout="constrained")
    for axis, (pace, title) in zip(axes, PACES.items()):
        bars = [(name, measured[subject, pace]) for subject, name in SUBJECTS.items() if (subject, pace) in measured]
        names, micros = zip(*reversed(bars))
        drawn = axis.barh(names, micros, color=["#c55" if "account" in name else "#89a" for name in names])
        axis.bar_label(drawn, fmt="%.1f µs", padding=3, fontsize=8)
        axis.set_title(f"processor time of a check, {title}", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.18)
    figure.savefig(path, dpi=90)


main(*sys.argv[1:])
