#!/usr/bin/python3
"""Recall against distance, measured through the server: a five-digit key hidden in filler, asked at the end.

Starts mneme-server over checkpoints (or talks to a running one), and over gRPC lets sessions read the filler before the
needle once (IngestSession), forks them for every sample, reads needle and the rest of the filler, asks, and compares the
answer (Generate, greedy). Says beforehand how much it will read and how long that takes. Every finished sample is
appended to OUT/samples.csv: the same command goes on where it stopped (Ctrl-C, --minutes, a crash).

  train/recall.py --checkpoint train/checkpoints/titans-passkey --checkpoint train/checkpoints/rwkv7-passkey --quick
  train/recall.py --checkpoint ... --lengths 1K,64K,1M --samples 20 --plots docs/plots
  train/recall.py --server 127.0.0.1:7447 --model rwkv7 --lengths 1K,4K

Writes OUT/samples.csv, OUT/speed.csv, OUT/recall.md and, with --plots, PNGs. Needs deploy/install_packages.sh train.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import time
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from served import plan, report  # noqa: E402

PROBE_SECONDS = 3  # of reading, to know the speed beforehand
SPEED_SECONDS = 1.5  # of reading, for each of three measurements at a length
SPEED_TOOK = 4 * SPEED_SECONDS  # all in all
DECODED = 512  # tokens written in each
QUICK_MINUTES = 15
FORK = "recall-fork-"
MARGIN = 0.8  # of the time left that a quick plan may fill: the machine may be busier later


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", action="append", default=[], metavar="[NAME=]FOLDER",
                   help="may be repeated; names follow folders")
    p.add_argument("--server", metavar="ADDRESS", help="a running server instead of one of our own")
    p.add_argument("--model", action="append", default=[], help="of --server; default: all that read bytes")
    p.add_argument("--binary", help="mneme-server; default: build-release/server/mneme-server")
    p.add_argument("--server-option", action="append", default=[], metavar="SETTING=VALUE",
                   help="passed on to our server, e.g. engine.threads=1; window models keep their trained window, without sinks")
    p.add_argument("--lengths", help="of the filler with the key; default: " + ",".join(
        plan.length_name(n).replace(" ", "") for n in plan.LENGTHS))
    p.add_argument("--depths", default=",".join(f"{d:g}" for d in plan.DEPTHS), help="0: needle first; 1: before the question")
    p.add_argument("--samples", type=int, default=20, help="a cell: checkpoint, group of fillers, length, depth")
    p.add_argument("--samples-at-1m", type=int, default=100, help="of a checkpoint and group of fillers, from 1M on, all depths")
    p.add_argument("--samples-at-10m", type=int, default=10, help="the same, from 10M on")
    p.add_argument("--fillers", help="comma-separated, of those in tasks/fillers.py; default: all")
    p.add_argument("--wording", choices=("unseen", "trained"), default="unseen", help="of the needle's reminder")
    p.add_argument("--seed", type=int, default=0, help="other keys, places and texts")
    p.add_argument("--in-flight", type=int, default=4, help="sessions at once: the server batches them")
    p.add_argument("--minutes", type=float, help="stops after so long, and says what is missing")
    p.add_argument("--quick", action="store_true", help=f"ends in {QUICK_MINUTES} minutes: as far, and as many samples, as fit")
    p.add_argument("--dry-run", action="store_true", help="says how much and how long, and leaves")
    p.add_argument("--at-least", type=float, default=0.0, metavar="SHARE",
                   help="exit code 1 if a checkpoint recalls less than this of all five digits at a length, fillers apart")
    p.add_argument("--at-most", type=float, default=1.0, metavar="SHARE", help="the same if it recalls more: for what must forget")
    p.add_argument("--no-speed", action="store_true", help="recall only")
    p.add_argument("--out", default="build-release/recall", help="folder of results")
    p.add_argument("--fresh", action="store_true", help="forgets what an earlier run left in --out")
    p.add_argument("--store", help="folder of our server's store, kept; default: OUT/store, removed when all is done")
    p.add_argument("--plots", metavar="DIR", help="draws PNGs there")
    args = p.parse_args(argv)
    if bool(args.checkpoint) == bool(args.server):
        p.error("give --checkpoint (one or more) or --server")
    known = [n for names in plan.GROUPS.values() for n in names]
    chosen = args.fillers.split(",") if args.fillers else known
    if set(chosen) - set(known):
        p.error(f"fillers are {', '.join(known)}")
    args.groups = {g: tuple(n for n in names if n in chosen) for g, names in plan.GROUPS.items()}
    args.groups = {g: names for g, names in args.groups.items() if names}
    args.lengths = sorted({plan.parse_length(w) for w in args.lengths.split(",")}) if args.lengths else list(plan.LENGTHS)
    args.depths = sorted({float(d) for d in args.depths.split(",")})
    if not all(0 <= d <= 1 for d in args.depths) or args.lengths[0] < 512 or args.in_flight < 1:
        p.error("depths lie in 0..1, lengths are 512 or more, --in-flight is 1 or more")
    if args.quick:
        args.minutes = min(args.minutes or QUICK_MINUTES, QUICK_MINUTES)
    return args


def checkpoints_of(words):
    out = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        name = name or re.sub(r"[^a-z0-9]+|^[^a-z]+", "-", os.path.basename(os.path.abspath(folder)).lower()).strip("-")
        if not os.path.exists(os.path.join(folder, "config.json")):
            sys.exit(f"{folder} has no config.json")
        if name in out:
            sys.exit(f"two checkpoints are called {name}: use --checkpoint NAME=FOLDER")
        out[name] = os.path.abspath(folder)
    return out


def duration(seconds):
    seconds = int(seconds)
    return f"{seconds // 3600} h {seconds % 3600 // 60} min" if seconds >= 3600 else f"{seconds // 60} min {seconds % 60} s"


class Progress:
    """One line that is redrawn on a terminal, a line every half minute elsewhere. Shares are of the time foreseen, since
    checkpoints differ in speed. Thread-safe."""

    def __init__(self, seconds, total_samples, stream=sys.stderr):
        self.total, self.samples, self.stream, self.lock = max(1e-3, seconds), total_samples, stream, threading.Lock()
        self.done, self.tokens, self.finished, self.right = 0.0, 0, 0, 0
        self.begin = self.drawn = time.monotonic()
        self.terminal = stream.isatty()
        self.at("", 1.0, 0.0)

    def at(self, what, tokens_per_second, seconds_per_sample):
        self.what, self.rate, self.overhead = what, tokens_per_second, seconds_per_sample

    def add(self, tokens):
        with self.lock:
            self.tokens += tokens
            self.done += tokens / self.rate
            self.draw()

    def sample(self, exact):
        with self.lock:
            self.finished += 1
            self.right += exact
            self.done += self.overhead
            self.draw()

    def other(self, seconds):
        with self.lock:
            self.done += seconds

    def draw(self, last=False):
        now = time.monotonic()
        if not last and now - self.drawn < (0.2 if self.terminal else 30):
            return
        self.drawn, spent = now, max(1e-3, now - self.begin)
        share = min(1.0, self.done / self.total)
        left = "" if last or share in (0.0, 1.0) else f", {duration(spent * (1 - share) / share)} left"
        line = (f"[{'#' * int(20 * share):<20}] {100 * share:.0f} %, {self.finished} of {self.samples} samples, {self.right} right, "
                f"{self.tokens / spent:,.0f} tokens/s{left}, at {self.what}")
        self.stream.write(f"\r\033[K{line[:shutil.get_terminal_size().columns - 1]}" if self.terminal else line + "\n")
        if last and self.terminal:
            self.stream.write("\n")
        self.stream.flush()


class Evaluation:
    def __init__(self, client, models, args, samples_file, speed_file):
        self.client, self.models, self.args = client, models, args  # models: {name: Model}
        self.samples_file, self.speed_file = samples_file, speed_file
        self.progress, self.pool = Progress(0, 0), None
        self.points = {}  # {session: position_tokens}, ours and complete or begun

    def prefix(self, model):
        return f"recall-{self.models[model].fingerprint[:8]}-{self.args.seed}-"

    def point_id(self, model, source, position):
        return f"{self.prefix(model)}{source[0].replace('_', '-')}-{source[1]}-{position}"

    def scratch(self):
        return f"{FORK}{uuid.uuid4().hex[:16]}"

    def find_points(self):
        """What an earlier run left: points go on, half-read forks are of no use."""
        for session in self.client.list_sessions(FORK):
            self.client.delete_if_there(session)
        for model in self.models:
            self.points.update(self.client.list_sessions(self.prefix(model)))

    def reached(self, model, source):
        """Positions of complete points. Sessions appear while it looks: other sources are read at the same time."""
        start = self.point_id(model, source, 0)[:-1]
        return [at for session, at in list(self.points.items()) if session == f"{start}{at}"]

    def parallel(self, jobs):
        """Runs jobs, --in-flight at once. One that fails ends the others."""
        futures = [self.pool.submit(job) for job in jobs]
        try:
            while futures:
                done, waiting = concurrent.futures.wait(futures, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION)
                for f in done:
                    f.result()
                futures = list(waiting)
                if self.args.deadline and time.monotonic() > self.args.deadline and not self.client.stopping.is_set():
                    self.client.stop()
        except BaseException:
            self.client.stop()
            for f in futures:
                f.cancel()
            concurrent.futures.wait(futures)
            raise

    # Filler before the needle, made once.
    def make_points(self, model, samples):
        def chain(source, positions):
            for p in positions:
                self.make_point(model, source, p)

        self.parallel([lambda s=s, p=p: chain(s, p) for s, p in plan.points_of(samples).items()])

    def make_point(self, model, source, position):
        session = self.point_id(model, source, position)
        if self.points.get(session) == position:
            return session
        if session not in self.points:
            base = max((p for p in self.reached(model, source) if p < position), default=None)
            if base is None:
                self.client.create(model, session)
            else:
                self.client.fork(self.point_id(model, source, base), session)
            self.points[session] = base or 0
        begin = self.points[session]
        if begin < position:
            text = plan.shared_text(self.args.seed, source, begin, position)
            self.client.ingest(session, text, f"point-{begin}", self.progress.add)
        self.points[session] = position
        return session

    def ask(self, model, sample):
        """One sample on a fork of its point."""
        self.client.check()
        begin, session = time.monotonic(), self.scratch()
        self.client.fork(self.point_id(model, sample.source, sample.point), session)
        try:
            done = self.client.ingest(session, sample.text(), "sample", self.progress.add)
            assert done.position_tokens == sample.tokens - len(sample.question), (done.position_tokens, sample)
            answer, usage = self.client.answer(session, sample.question, len(sample.secret))
        finally:
            self.client.delete_if_there(session)
        self.progress.add(len(sample.question))
        right = sum(a == b for a, b in zip(answer, sample.secret))
        exact = int(answer == sample.secret)
        self.samples_file.append(
            model=model, fingerprint=self.models[model].fingerprint, **dict(zip(report.KEY_FIELDS, sample.key)),
            point=sample.point, needle_at=sample.needle_at, tokens=sample.tokens, distance=sample.distance,
            key=sample.secret.decode(), answer=report.printable(answer), exact=exact, digits=right,
            state_bytes=usage.state_bytes, seconds=f"{time.monotonic() - begin:.2f}")
        self.progress.sample(exact)

    def measure_speed(self, model, source, position, tokens):
        """With nothing else running."""
        base, reading, writing = self.make_point(model, source, position), [], []
        for turn in range(3):
            session = self.scratch()
            self.client.fork(base, session)
            try:
                text = b"".join(plan.shared_text(self.args.seed, source, position, position + tokens))
                begin = time.monotonic()
                progress = self.client.ingest(session, [text], "speed")
                reading.append(tokens / (time.monotonic() - begin))
                _, usage = self.client.answer(session, b"What", DECODED)
                writing.append(DECODED / (usage.decode_ms / 1000))
            finally:
                self.client.delete_if_there(session)
        self.speed_file.append(model=model, fingerprint=self.models[model].fingerprint, position=position,
                               prefill_tokens_per_s=round(statistics.median(reading)),
                               decode_tokens_per_s=round(statistics.median(writing)), state_bytes=progress.state_bytes)

    def probe(self, model):
        """(tokens/s with --in-flight sessions, seconds that a sample costs besides its tokens)"""
        source = speed_source(self.args)

        def read(tokens):
            session = self.scratch()
            self.client.create(model, session)
            try:
                self.client.ingest(session, plan.shared_text(self.args.seed, source, 0, tokens), "probe")
                self.client.answer(session, b"What", 5)
            finally:
                self.client.delete_if_there(session)

        def timed(count, tokens):
            begin = time.monotonic()
            self.parallel([lambda: read(tokens)] * count)
            return (time.monotonic() - begin) / count

        timed(self.args.in_flight, 64)  # warms up
        overhead, tokens = timed(2 * self.args.in_flight, 64), 2048
        while True:
            each = timed(self.args.in_flight, tokens)
            if each * self.args.in_flight > PROBE_SECONDS / 2 or tokens >= 1 << 20:
                return tokens / max(1e-6, each - overhead), overhead
            tokens = int(tokens * min(16, PROBE_SECONDS / (each * self.args.in_flight)))

    def done_keys(self, model):
        return {report.sample_key(r) for r in report.select(self.samples_file.rows, model=model,
                                                            fingerprint=self.models[model].fingerprint)}


def per_cell(args, length):
    if length < 1 << 20:
        return args.samples
    total = args.samples_at_1m if length < 10 << 20 else args.samples_at_10m
    return -(-total // len(args.depths))


def planned(args, evaluation):
    """{(length, model): samples not yet done}, lengths first, so that all checkpoints get equally far."""
    out = {}
    done_by = {model: evaluation.done_keys(model) for model in evaluation.models}
    for length in args.lengths:
        for model, done in done_by.items():
            samples = plan.samples_of(length, args.depths, per_cell(args, length), args.seed, args.wording, args.groups)
            out[length, model] = [s for s in samples if s.key not in done]
    return out


def speed_source(args):
    return next(iter(args.groups.values()))[-1], 0


def speed_position(args, evaluation, model, length):
    """Where speed is measured for a length: at its last point, if it wasn't yet."""
    at = max(s.point for s in plan.samples_of(length, args.depths, 1, args.seed, args.wording, args.groups))
    have = report.select(evaluation.speed_file.rows, model=model, fingerprint=evaluation.models[model].fingerprint, position=at)
    return None if args.no_speed or have else at


def announce(args, evaluation, rates, work):
    """Prints what will be read; gives (seconds foreseen, samples)."""
    tokens, samples, seconds, lines = 0, 0, 0.0, []
    reached = collections.defaultdict(dict)
    for (length, model), todo in work.items():
        rate, overhead = rates[model]
        points = plan.points_of(todo)
        for source in points:
            reached[model].setdefault(source, evaluation.reached(model, source))
        shared = plan.shared_cost(todo, reached[model])
        for source in points:
            reached[model][source] += points[source]
        own = sum(s.cost for s in todo)
        took = (shared + own) / rate + len(todo) * overhead
        if (at := speed_position(args, evaluation, model, length)) is not None:
            have = reached[model].setdefault(speed_source(args), evaluation.reached(model, speed_source(args)))
            unread = at - max((p for p in have if p <= at), default=0)
            have.append(at)
            shared, took = shared + unread, took + unread / rate + SPEED_TOOK
        lines.append([model, plan.length_name(length), len(todo), f"{shared:,}", f"{own:,}", duration(took)])
        tokens, samples, seconds = tokens + shared + own, samples + len(todo), seconds + took
    print(report.table(["checkpoint", "tokens", "samples to do", "shared filler to read", "read on forks", "time"], lines))
    for model, (rate, overhead) in rates.items():
        print(f"{model}: {rate:,.0f} tokens/s with {args.in_flight} sessions at once, {1000 * overhead:.0f} ms a sample besides")
    print(f"\n{tokens:,} tokens for {samples} samples: about {duration(seconds)}"
          + (f", at most {args.minutes:g} min" if args.minutes else "") + ".\n", flush=True)
    return seconds, samples


def measure(args, evaluation):
    work = planned(args, evaluation)
    if not args.quick and not any(todo or speed_position(args, evaluation, model, length) is not None
                                  for (length, model), todo in work.items()):
        print("Everything is there already.\n")
        return
    print("Reading a little with each checkpoint, to know how fast they are ...", file=sys.stderr, flush=True)
    rates = {model: evaluation.probe(model) for model in evaluation.models}
    if args.quick:
        left = (args.deadline - time.monotonic()) * MARGIN
        args.lengths, args.samples = plan.quick_plan(args.lengths, args.depths, list(rates.values()), left,
                                                     0 if args.no_speed else SPEED_TOOK, args.groups, args.samples)
        args.samples_at_1m = args.samples_at_10m = args.samples * len(args.depths)
        work = planned(args, evaluation)
    seconds, samples = announce(args, evaluation, rates, work)
    if args.dry_run:
        return
    evaluation.progress = progress = Progress(seconds, samples)
    for (length, model), todo in work.items():
        progress.at(f"{model} {plan.length_name(length)}", *rates[model])
        evaluation.make_points(model, todo)
        evaluation.parallel([lambda s=s: evaluation.ask(model, s) for s in todo])
        if (at := speed_position(args, evaluation, model, length)) is not None:
            evaluation.measure_speed(model, speed_source(args), at, int(min(131072, max(2048, rates[model][0] * SPEED_SECONDS))))
            progress.other(SPEED_TOOK)
    progress.draw(last=True)


def results(args, evaluation, configs, finished):
    mine = [r for r in evaluation.samples_file.rows if r["model"] in evaluation.models
            and r["fingerprint"] == evaluation.models[r["model"]].fingerprint and int(r["seed"]) == args.seed
            and r["wording"] == args.wording]
    speed = [r for r in evaluation.speed_file.rows if r["model"] in evaluation.models
             and r["fingerprint"] == evaluation.models[r["model"]].fingerprint]
    mine = [r for r in mine if r["filler"] in sum(args.groups.values(), ())]
    state = {m: evaluation.models[m].state_bytes for m in evaluation.models}
    for r in mine + speed:
        assert int(r["state_bytes"]) == state[r["model"]], f"the state of {r['model']} changed its size: {r}"
    wording = {"unseen": "a reminder inside the needle that was never trained on",
               "trained": "the needle's wording of training"}[args.wording]
    notes = [f"Five digits hidden in filler, asked at the end; {wording}; fresh keys (seed {args.seed}); answers by greedy "
             "Generate on forks of sessions that read the filler before the needle."]
    if not finished:
        notes.append("**Not finished**: the same command goes on where this stopped.")
    text = report.write(os.path.join(args.out, "recall.md"), mine, speed, list(evaluation.models), configs, state, notes)
    print(text, flush=True)
    if args.plots:
        from served import plots
        plots.draw(mine, speed, list(evaluation.models), configs, args.plots)
    cells = [(c.exact, f"{m}, {plan.length_name(n)}, {g} fillers: {c}")
             for m, n, g, c in report.by_length(mine, evaluation.models)]
    outside = [f"below {args.at_least:g}: {line}" for exact, line in cells if exact < args.at_least]
    outside += [f"above {args.at_most:g}: {line}" for exact, line in cells if exact > args.at_most]
    for line in outside:
        print(line, file=sys.stderr)
    return bool(outside)


def evaluate(args, client, configs):
    models = client.list_models()
    wanted = list(configs) or args.model or [m for m in models if client.reads_bytes(m)]
    for name in wanted:
        if name not in models:
            sys.exit(f"the server has no model {name}: it has {', '.join(models)}")
        if not client.reads_bytes(name):
            sys.exit(f"{name} does not read bytes: its tokens cannot be placed")
    evaluation = Evaluation(client, {n: models[n] for n in wanted}, args,
                            report.Rows(os.path.join(args.out, "samples.csv"), report.SAMPLE_FIELDS),
                            report.Rows(os.path.join(args.out, "speed.csv"), report.SPEED_FIELDS))
    from served.server import Stopped
    finished = interrupted = False
    evaluation.pool = concurrent.futures.ThreadPoolExecutor(args.in_flight)
    try:
        evaluation.find_points()
        measure(args, evaluation)
        finished = True
    except Stopped:
        pass
    except KeyboardInterrupt:
        interrupted = True
        client.stop()
    finally:
        evaluation.pool.shutdown(wait=True, cancel_futures=True)
    if args.dry_run:
        return 0, False
    if not finished:
        when = "" if interrupted else f" after {args.minutes:g} minutes"
        print(f"\nstopped{when}; the same command goes on from here", file=sys.stderr)
    if finished and args.server:
        for session in evaluation.points:
            client.delete_if_there(session)
    outside = results(args, evaluation, configs, finished)
    return (130 if interrupted else int(outside)), finished


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    args = arguments()
    args.deadline = time.monotonic() + 60 * args.minutes - 20 if args.minutes else None  # the rest is for the tables
    signal.signal(signal.SIGTERM, interrupt)
    os.makedirs(args.out, exist_ok=True)
    if args.fresh:
        for name in ("samples.csv", "speed.csv"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(args.out, name))
    from served.server import Client, ServerProcess, find_binary, stubs
    modules = stubs()
    if args.server:
        return evaluate(args, Client(args.server, modules), {})[0]
    checkpoints = checkpoints_of(args.checkpoint)
    configs = {}
    for name, folder in checkpoints.items():
        with open(os.path.join(folder, "config.json")) as f:
            configs[name] = json.load(f)
    store = args.store or os.path.join(args.out, "store")
    if args.fresh:
        shutil.rmtree(store, ignore_errors=True)
    log = os.path.join(os.path.dirname(os.path.abspath(store)), "server.log")
    server = ServerProcess(find_binary(args.binary), checkpoints, store, log, args.server_option)
    finished = False
    try:
        code, finished = evaluate(args, Client(server.address, modules), configs)
    finally:
        server.stop()
        if finished and not args.store:
            shutil.rmtree(store)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # gRPC's is not imported where it is not needed
        if type(error).__module__.split(".")[0] != "grpc":
            raise
        sys.exit(f"the server answered {error.code().name}: {error.details()}")
