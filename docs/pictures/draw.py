"""Draws dashboard.png and outage.png: see the script `draw` beside this."""

import csv
import json
import math
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SECONDS = 110
COLUMNS = 3


def query(prometheus, expression, end):
    expression = expression.replace("$__rate_interval", "5s").replace("$job", ".*")
    parameters = urllib.parse.urlencode(
        {"query": expression, "start": end - SECONDS, "end": end, "step": 1}
    )
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{parameters}") as answer:
        return json.load(answer)["data"]["result"]


def legend(target, labels):
    text = target["legendFormat"]
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def draw_dashboard(prometheus, dashboard, path):
    panels = json.load(open(dashboard))["panels"]
    end = time.time()
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(7 * COLUMNS, 3.1 * rows), layout="constrained")
    for axis, panel in zip(axes.flat, panels):
        for target in panel["targets"]:
            for series in query(prometheus, target["expr"], end):
                points = [(float(at) - end + SECONDS, float(value)) for at, value in series["values"]]
                axis.plot(*zip(*points), label=legend(target, series["metric"]), linewidth=1)
        axis.set_title(panel["title"], fontsize=10)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axis.set_ylabel({"s": "seconds", "percentunit": "share"}.get(unit, "" if unit == "short" else "a second"), fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6, ncols=2, loc="upper left", framealpha=0.6)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    figure.savefig(path, dpi=70)


def draw_outage(rows, path):
    rows = list(csv.DictReader(open(rows)))
    seconds = [int(row["second"]) for row in rows]
    column = lambda name: [float(row[name]) for row in rows]
    figure, (calls, table, latency) = plt.subplots(3, 1, figsize=(11, 9), sharex=True, layout="constrained")
    calls.plot(seconds, column("reads"), label="checks answered")
    calls.plot(seconds, column("refused"), label="checks refused with OVERLOADED")
    calls.plot(seconds, column("failed"), label="checks failed otherwise")
    calls.set_ylabel("a second")
    table.plot(seconds, column("table_reads"), label="table reads")
    table.plot(seconds, [10 * value for value in column("writes")], label="additions and removals, times 10")
    table.plot(seconds, [10 * value for value in column("failed_writes")], label="those that failed, times 10")
    table.set_ylabel("a second")
    latency.plot(seconds, column("p50_ms"), label="check, p50")
    latency.plot(seconds, column("p99_ms"), label="check, p99")
    latency.set_ylabel("ms")
    latency.set_yscale("log")
    latency.set_xlabel("seconds")
    for axis in (calls, table, latency):
        before = None
        for row in rows:
            if row["state"] != before:
                before = row["state"]
                axis.axvline(int(row["second"]), color="grey", linewidth=0.5)
                if axis is calls:
                    axis.annotate(before, (int(row["second"]) + 0.3, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
        axis.legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=80)


def main():
    prometheus, dashboard, rows, folder = sys.argv[1:]
    draw_dashboard(prometheus, dashboard, f"{folder}/dashboard.png")
    draw_outage(rows, f"{folder}/outage.png")


main()
