#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws charts from results: speedup over context from bench/run's JSON; accuracy over budget, loss over kept neurons, time
over context and mass of layers from needle's; speed and quality of the methods in llama.cpp from examples/llama.cpp/run's.

    ./bench/run --json bench.json
    for budget in 128 256 512 1024; do
      ./examples/run --model llama --method dense --method quoka:queries=farthest_point,n=16,budget=$budget \\
        --json llama-$budget.json
    done
    ./bench/plot.py --bench bench.json --needle llama-*.json --prefill smollm2-8192.json --out charts

Needs matplotlib (Debian: python3-matplotlib).
"""
import argparse
import collections
import json
import math
import os
import re
import statistics
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit("matplotlib was not found (Debian: apt-get install python3-matplotlib)")

ROW = re.compile(r"attention/(?P<method>\w+)/(?P<kind>.+?)/Hq:(?P<Hq>\d+)/Hk:(?P<Hk>\d+)/D:(?P<D>\d+)"
                 r"/Tq:(?P<Tq>\d+)/Tk:(?P<Tk>\d+)(?:/budget:(?P<budget>\d+))?/threads:(?P<threads>\d+)")


def load(path, part):
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        return result, result[part]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: not the JSON this chart is drawn from ({error!r})")


def medians(rows):
    """The median of each attention row, or its only repetition: (parts of the name, row)."""
    for row in rows:
        single = row.get("run_type") == "iteration" and row.get("repetitions", 1) == 1
        name = ROW.match(row.get("run_name", ""))
        if name and (single or row.get("aggregate_name") == "median"):
            yield name.groupdict(), row


def machine_of(machine, features, compiler):
    return f"{machine}, {features}, {compiler}"


def label_axes(axes, title, x, y):
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.grid(alpha=0.3)


def draw_speedup(path, out):
    """How much faster QUOKA is than dense attention, and each one's share of the roof, over the length of the cache."""
    result, rows = load(path, "benchmarks")
    rows = list(medians(rows))
    shape = ("Hq", "Hk", "D", "Tq", "threads")
    shapes = {tuple(name[key] for key in shape) for name, _ in rows}
    # The comparison is with the element type's better accumulate policy, whose row names none.
    dense = {(name["kind"], name["Tk"]) + tuple(name[key] for key in shape): row
             for name, row in rows if name["method"] == "dense"}

    speedup, roof = collections.defaultdict(list), collections.defaultdict(list)
    for name, row in rows:
        series = name["method"] + " " + name["kind"].replace("/", " ")
        if name["budget"]:
            series += f", budget {name['budget']}"
        if len(shapes) > 1:
            series += " (" + "/".join(f"{key}:{name[key]}" for key in shape[:4]) + ")"
        if "roof" in row:
            roof[series].append((int(name["Tk"]), 100 * row["roof"]))
        other = dense.get((name["kind"].split("/")[0], name["Tk"]) + tuple(name[key] for key in shape))
        if name["method"] != "dense" and other:
            speedup[series].append((int(name["Tk"]), other["real_time"] / row["real_time"]))
    if not speedup:
        sys.exit(f"{path}: no sparse row with its dense one")

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    for axes, series in ((left, speedup), (right, roof)):
        for name in sorted(series):
            axes.plot(*zip(*sorted(series[name])), marker="o", label=name)
    left.axhline(1, color="gray", linewidth=1)
    label_axes(left, "Attention of a chunk, selection included", "past keys (Tk)", "times faster than dense")
    label_axes(right, "Share of what the machine can do", "past keys (Tk)", "% of the roof")
    right.set_ylim(bottom=0)
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    context = result["context"]
    figure.suptitle(machine_of(context.get("machine"), context.get("features"), context.get("compiler")), fontsize=9)
    save(figure, out, "attention_speedup.svg")


def split_setting(method, key):
    """"quoka:n=16,budget=512", "budget" -> ("quoka:n=16", 512.0); without that setting: None."""
    found = re.search(rf"[:,]{key}=([\d.]+)", method)
    if not found:
        return method, None
    rest = method[:found.start()] + method[found.end():]
    return (rest if ":" in rest else rest.replace(",", ":", 1)), float(found.group(1))


def load_needle(path):
    """The rows of needle's JSON, what they were measured with, and the dense one: (model, machine, rows, dense)."""
    result, rows = load(path, "results")
    about = result.get("machine", {})
    dense = next((row for row in rows if row["method"] == "dense"), None)
    if dense is None:
        sys.exit(f"{path}: no row 'dense' to compare with")
    return result["settings"], machine_of(about.get("cpu"), about.get("features"), about.get("compiler")), rows, dense


def model_of(settings):
    return settings.get("model", "?").split(".")[0]


def draw_needle(paths, out):
    """Per model, of what chunks read: answers, loss and, where it was timed, speedup of the first token over the budget,
    each beside dense attention on the same prompts."""
    models = collections.defaultdict(lambda: collections.defaultdict(list))
    machine, timed = "", False
    for path in paths:
        settings, machine, rows, dense = load_needle(path)
        model = f"{model_of(settings)}, {settings.get('context', '?')} tokens"
        for row in rows:
            series, budget = split_setting(row["method"], "budget")
            if not budget or not re.match("quoka|sink_window", series):
                continue
            faster = dense["ttft_ms"] / row["ttft_ms"] if row["ttft_ms"] else math.nan
            timed = timed or not math.isnan(faster)
            answers = row.get("accuracy_of_dense", row["accuracy"] / dense["accuracy"])
            loss = row.get("nll_over_dense", row["nll"] - dense["nll"])
            models[model][series].append((budget, answers, loss, faster))
    if not models:
        sys.exit("no method with a budget in these files")

    columns = 3 if timed else 2
    figure, grid = plt.subplots(len(models), columns, figsize=(5.3 * columns, 4.5 * len(models)), squeeze=False)
    for row, model in zip(grid, sorted(models)):
        for series in sorted(models[model]):
            points = list(zip(*sorted(models[model][series])))
            for axes, values in zip(row, points[1:]):
                axes.plot(points[0], values, marker="o", label=series)
        row[0].axhline(1, color="gray", linewidth=1, label="dense")
        row[0].set_ylim(0, 1.1)
        row[0].legend(fontsize="small")
        for axes, title, y, base in zip(row[1:], ("error", "speed"), ("nll above dense (nats)",
                                                                      "time to first token, times faster"), (0, 1)):
            axes.axhline(base, color="gray", linewidth=1)
            label_axes(axes, title, "budget (past keys per KV head)", y)
        label_axes(row[0], model, "budget (past keys per KV head)", "answers kept of dense's")
    figure.suptitle(machine, fontsize=9)
    save(figure, out, "needle_accuracy.svg")


def draw_curves(axes, curves):
    """Each series' points (x, y) in order, and their names."""
    for series in sorted(curves):
        axes.plot(*zip(*sorted(curves[series])), marker="o", label=series)
    axes.legend(fontsize="small")


def draw_neurons(paths, out):
    """Per file: loss above dense over the share of neurons that each rule computes."""
    figure, grid = plt.subplots(1, len(paths), figsize=(6 * len(paths), 4.5), squeeze=False)
    for axes, path in zip(grid[0], paths):
        settings, _, rows, dense = load_needle(path)
        curves = collections.defaultdict(list)
        for row in rows:
            series, keep = split_setting(row["method"], "keep")
            if keep:
                curves[series].append((keep, row["nll"] - dense["nll"]))
        draw_curves(axes, curves)
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_title(f"{model_of(settings)}, {settings['context']} tokens", fontsize="medium")
        axes.set_xlabel("share of the neurons that a block computes")
        axes.set_ylabel("nll above dense (nats)")
        axes.grid(alpha=0.3)
    save(figure, out, "neurons_loss.svg")


def draw_time(paths, out):
    """Per model: seconds to the first token over the length of the prompt."""
    models = collections.defaultdict(lambda: collections.defaultdict(list))
    machine = ""
    for path in paths:
        settings, machine, rows, _ = load_needle(path)
        for row in rows:
            if row["ttft_ms"]:
                models[model_of(settings)][row["method"]].append((settings["context"], row["ttft_ms"] / 1000))
    if not models:
        sys.exit("no row of these files was timed")
    figure, grid = plt.subplots(1, len(models), figsize=(6 * len(models), 4.5), squeeze=False)
    for axes, model in zip(grid[0], sorted(models)):
        draw_curves(axes, models[model])
        label_axes(axes, model, "tokens of the prompt", "seconds to the first token")
    figure.suptitle(machine, fontsize=9)
    save(figure, out, "first_token.svg")


def draw_mass(paths, out):
    """Per file: the share of the softmax that the keys which were read receive, layer by layer."""
    figure, grid = plt.subplots(1, len(paths), figsize=(6 * len(paths), 4.5), squeeze=False)
    for axes, path in zip(grid[0], paths):
        settings, _, rows, _ = load_needle(path)
        curves = {row["method"]: [(layer, mass) for layer, mass in enumerate(row.get("mass_of_layer") or [])
                                  if mass is not None] for row in rows}
        draw_curves(axes, {method: points for method, points in curves.items() if points})
        axes.set_title(f"{model_of(settings)}, {settings['context']} tokens", fontsize="medium")
        axes.set_xlabel("layer")
        axes.set_ylabel("mass of the keys that were read")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    save(figure, out, "mass_of_layers.svg")


def draw_prefill(paths, out):
    """Per file: tokens per second, perplexity above dense and facts found of each method, with standard errors."""
    figure, grid = plt.subplots(len(paths), 3, figsize=(14, 3.2 * len(paths)), squeeze=False, sharey="row")
    for row, path in zip(grid, paths):
        result, methods = load(path, "methods")
        settings, about = result["settings"], result.get("machine", {})
        dense = methods.get("skim dense", {}).get("prompts", [])
        names = list(reversed(methods))
        for axes, title in zip(row, ("tokens/s of the prompt", "perplexity above skim dense, %", "facts found")):
            axes.set_title(title, fontsize="medium")
            axes.grid(alpha=0.3, axis="x")
        for name in names:
            seconds, prompts = methods[name].get("seconds", []), methods[name].get("prompts", [])
            row[0].barh(name, settings["tokens"] / statistics.median(seconds) if seconds else 0, color="tab:blue")
            change = [100 * (math.exp(own["nll"] - base["nll"]) - 1) for own, base in zip(prompts, dense)]
            found = [own["right"] / own["answers"] for own in prompts]
            for axes, values in ((row[1], change), (row[2], found)):
                error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
                axes.barh(name, statistics.mean(values) if values else 0, xerr=error, color="tab:blue")
        prompts = max((len(each.get("prompts", [])) for each in methods.values()), default=0)
        row[0].set_ylabel(f"{settings['model']}\n{settings['tokens']} tokens, {prompts} prompts\n"
                          f"{settings['threads']} threads, {about.get('processor', '?')}", fontsize=7)
    save(figure, out, "llama_prefill.svg")


def save(figure, out, name):
    os.makedirs(out, exist_ok=True)
    figure.tight_layout()
    path = os.path.join(out, name)
    figure.savefig(path)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", metavar="FILE", help="JSON of bench/run")
    parser.add_argument("--prefill", metavar="FILE", nargs="+", default=[], help="JSON files of examples/llama.cpp/run")
    charts = {"needle": draw_needle, "neurons": draw_neurons, "time": draw_time, "mass": draw_mass}
    for name, draw in charts.items():
        parser.add_argument(f"--{name}", metavar="FILE", nargs="+", default=[],
                            help=f"JSON files of examples/run. {draw.__doc__}")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where the charts go (default: here)")
    given = parser.parse_args()
    wanted = [(draw, getattr(given, name)) for name, draw in charts.items() if getattr(given, name)]
    if not given.bench and not given.prefill and not wanted:
        parser.error("give --bench, --prefill, --" + ", --".join(charts) + " or some of them")
    if given.bench:
        draw_speedup(given.bench, given.out)
    if given.prefill:
        draw_prefill(given.prefill, given.out)
    for draw, files in wanted:
        draw(files, given.out)


if __name__ == "__main__":
    main()
