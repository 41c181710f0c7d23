"""Draws performance.png, faults.png and hit_ratio.png: see the script `draw-performance` beside this."""

import csv
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SUBJECTS = {
    "bare tonic echo": "a server that does nothing",
    "account-service": "account-service, coherent",
    "OpenFGA in memory": "OpenFGA, no data store",
    "SpiceDB in memory": "SpiceDB, no data store",
    "Node.js grpc-js": "the same in Node.js",
}
PACES = {"Closed(1)": "one at a time", "Closed(64)": "64 at once"}


def medians(path):
    found = {}
    for row in csv.DictReader(open(path)):
        # Each part of a run begins with the header; the first one compares.
        if row["subject"] == "subject":
            break
        if row["pace"] in PACES:
            found.setdefault((row["subject"], row["pace"]), []).append(float(row["cpu_us_per_call"]))
    return {key: statistics.median(values) for key, values in found.items()}


def draw_performance(rows, path):
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


def draw_faults(rows, path):
    courses = {}
    for row in csv.DictReader(open(rows)):
        courses.setdefault(row["fault"], []).append([float(row[name]) for name in ("seconds", "served", "failed", "p99_ms")])
    figure, axes = plt.subplots(len(courses), 2, figsize=(12, 2 * len(courses)), layout="constrained", squeeze=False)
    for (calls, latency), (fault, course) in zip(axes, courses.items()):
        seconds, served, failed, p99 = zip(*course)
        calls.plot(seconds, [10 * count for count in served], label="served", color="#7a9")
        calls.plot(seconds, [10 * count for count in failed], label="failed", color="#c55")
        calls.set_title(f"{fault}: checks a second", fontsize=9)
        calls.legend(fontsize=7)
        latency.plot(seconds, p99, color="#89a")
        latency.set_title("p99, ms", fontsize=9)
        for axis in (calls, latency):
            axis.axvline(0, color="#aaa", linestyle=":")
            axis.set_ylim(bottom=0)
            axis.tick_params(labelsize=7)
    figure.supxlabel("seconds after the fault", fontsize=8)
    figure.savefig(path, dpi=80)


def draw_hit_ratio(table, path):
    cells = [line.strip("|\n ").split(" | ") for line in open(table) if line.startswith("| 1")]
    rates = sorted({int(cell[0]) for cell in cells})
    figure, axes = plt.subplots(2, len(rates), figsize=(12, 5), layout="constrained", sharex=True)
    for column, rate in enumerate(rates):
        for replicas in sorted({int(cell[2]) for cell in cells}):
            chosen = [cell for cell in cells if (int(cell[0]), int(cell[2])) == (rate, replicas)]
            pairs = [int(cell[1]) for cell in chosen]
            axes[0][column].plot(pairs, [float(cell[3].rstrip(" %")) for cell in chosen], marker="o", label=f"{replicas} replicas")
            axes[1][column].plot(pairs, [float(cell[7]) for cell in chosen], marker="o")
        axes[0][column].set_title(f"{rate:,} checks a second: in memory, %", fontsize=9)
        axes[1][column].set_title("$ for a million checks", fontsize=9)
        axes[0][column].set_ylim(0, 100)
        axes[1][column].set_ylim(bottom=0)
        for axis in axes[:, column]:
            axis.set_xscale("log")
            axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("pairs of a user and an organization", fontsize=8)
    figure.savefig(path, dpi=80)


bench, pictures = sys.argv[1:]
draw_performance(f"{bench}/rows.csv", f"{pictures}/performance.png")
draw_faults(f"{bench}/faults.csv", f"{pictures}/faults.png")
draw_hit_ratio(f"{bench}/simulation.md", f"{pictures}/hit_ratio.png")
