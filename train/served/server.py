"""Starts mneme-server, and talks to one: only what the evaluation needs, over gRPC like any other client."""

import contextlib
import ctypes
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVICES = ("resources", "sessions", "generation", "models")
FRAME = 64 << 10
PARENT = "tenants/default"
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


def stubs():
    """The Python modules of our protos, made by Debian's protoc (protobuf-compiler-grpc)."""
    plugin = shutil.which("grpc_python_plugin")
    if not shutil.which("protoc") or not plugin:
        sys.exit("protoc or grpc_python_plugin is missing: deploy/install_packages.sh train")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["protoc", f"-I{ROOT}/proto", f"--python_out={folder}", f"--grpc_python_out={folder}",
                        f"--plugin=protoc-gen-grpc_python={plugin}", *(f"mneme/v1/{name}.proto" for name in SERVICES)],
                       check=True)
        sys.path.insert(0, folder)
        try:
            return {name: tuple(importlib.import_module(f"mneme.v1.{name}_pb2{kind}") for kind in ("", "_grpc"))
                    for name in ("generation", "models", "sessions")}
        finally:
            sys.path.remove(folder)


def find_binary(given):
    if given:
        return given
    for folder in ("build-release", "build", "build-dev"):
        path = os.path.join(ROOT, folder, "server", "mneme-server")
        if os.path.exists(path):
            return path
    found = shutil.which("mneme-server")
    if not found:
        sys.exit("no mneme-server in build-release/server: build it (cmake --preset release && cmake --build --preset release), "
                 "or name it with --binary")
    return found


class ServerProcess:
    """mneme-server over the given checkpoints, on a free port of loopback. No sinks: a window model keeps its trained
    window and nothing else. In a session of its own, so that Ctrl-C reaches us alone and turns are cancelled in order."""

    def __init__(self, binary, checkpoints, store, log, options=()):
        command = [binary, *(f"--model={name}={path}" for name, path in checkpoints.items()), "--listen.address=127.0.0.1:0",
                   "--listen.metrics_address=", f"--store.path={store}", "--engine.sink_tokens=0", "--log_level=warn",
                   "--sessions.undelete_window=0s", *(f"--{o}" for o in options)]
        os.makedirs(store, exist_ok=True)
        self.log = open(log, "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True,
                                        preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT))  # if we are killed
        self.address, self.banner = None, []
        for line in self.process.stdout:
            self.banner.append(line.rstrip())
            if m := re.match(r"listening on (\S+)", line):
                self.address = m[1]
                break
        if not self.address:
            code = self.process.wait()
            with open(log) as f:
                sys.exit("\n".join([*self.banner, *f.read().splitlines()[-5:], f"mneme-server ended with {code}: see {log}"]))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Stopped(Exception):
    """The evaluation is ending: deadline or Ctrl-C."""


class Client:
    """Thread-safe. stop() cancels what runs and refuses what would begin."""

    def __init__(self, address, modules):
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 16 << 20)])
        (self.generation, g), (self.models, m), (self.sessions, s) = (modules[n] for n in ("generation", "models", "sessions"))
        self.generation_stub, self.models_stub = g.GenerationStub(self.channel), m.ModelsStub(self.channel)
        self.sessions_stub = s.SessionsStub(self.channel)
        self.stopping, self.lock, self.calls = threading.Event(), threading.Lock(), set()

    def stop(self):
        self.stopping.set()
        with self.lock:
            calls = list(self.calls)
        for call in calls:
            call.cancel()

    def check(self):
        """Raises Stopped once stop() was called."""
        if self.stopping.is_set():
            raise Stopped()

    @contextlib.contextmanager
    def running(self, call):
        with self.lock:
            self.calls.add(call)
        try:
            if self.stopping.is_set():
                call.cancel()
            yield call
        except grpc.RpcError as error:
            if self.stopping.is_set() and error.code() == grpc.StatusCode.CANCELLED:
                raise Stopped() from None
            raise
        finally:
            with self.lock:
                self.calls.discard(call)

    def list_models(self):
        listed = self.models_stub.ListModels(self.models.ListModelsRequest(page_size=100)).models
        return {m.name.split("/")[-1]: m for m in listed}

    def reads_bytes(self, model):
        request = self.generation.TokenizeRequest(model=f"models/{model}", text="pass 0")
        return list(self.generation_stub.Tokenize(request).token_ids) == list(b"pass 0")

    def list_sessions(self, prefix):
        """{id: position_tokens}"""
        out, token = {}, ""
        while True:
            request = self.sessions.ListSessionsRequest(parent=PARENT, page_size=1000, page_token=token)
            page = self.sessions_stub.ListSessions(request)
            for s in page.sessions:
                if (name := s.name.split("/")[-1]).startswith(prefix):
                    out[name] = s.position_tokens
            token = page.next_page_token
            if not token:
                return out

    def create(self, model, session):
        """Keeps states only: no transcript, no snapshots."""
        request = self.sessions.CreateSessionRequest(parent=PARENT, session_id=session)
        request.session.model = f"models/{model}"
        request.session.transcript = request.session.NONE
        request.session.snapshot_policy.at_turn_end = False
        self.sessions_stub.CreateSession(request)

    def fork(self, session, child):
        self.sessions_stub.ForkSession(self.sessions.ForkSessionRequest(name=f"{PARENT}/sessions/{session}", session_ids=[child]))

    def delete(self, session):
        self.sessions_stub.DeleteSession(self.sessions.DeleteSessionRequest(name=f"{PARENT}/sessions/{session}", force=True))

    def delete_if_there(self, session):
        with contextlib.suppress(grpc.RpcError):
            self.delete(session)

    def ingest(self, session, pieces, ingest_id, on_tokens=None):
        """Reads the text; gives the last progress. on_tokens(new tokens) as they are read."""

        def requests():
            start = self.sessions.IngestRequest()
            start.start.session, start.start.ingest_id = f"{PARENT}/sessions/{session}", ingest_id
            yield start
            offset = 0
            for piece in pieces:
                for at in range(0, len(piece), FRAME):
                    if self.stopping.is_set():
                        return
                    frame = self.sessions.IngestRequest()
                    frame.data.offset_bytes, frame.data.data = offset, piece[at:at + FRAME]
                    offset += len(frame.data.data)
                    yield frame
            end = self.sessions.IngestRequest()
            end.data.offset_bytes, end.data.last = offset, True
            yield end

        seen, progress = 0, None
        with self.running(self.sessions_stub.IngestSession(requests())) as call:
            for progress in call:
                if on_tokens and progress.read_tokens > seen:
                    on_tokens(progress.read_tokens - seen)
                    seen = progress.read_tokens
        if not (progress and progress.done):
            self.check()
        assert progress and progress.done, "the server ended an ingest before its last byte"
        return progress

    def answer(self, session, question, tokens):
        """(greedy continuation as bytes, usage)"""
        request = self.generation.GenerateRequest(session=f"{PARENT}/sessions/{session}", text=question.decode(),
                                                  max_output_tokens=tokens, ignore_eos=True)
        request.sampling.temperature = 0
        ids, usage = [], None
        with self.running(self.generation_stub.Generate(request)) as call:
            for response in call:
                event = response.WhichOneof("event")
                if event == "delta":
                    ids += response.delta.token_ids
                elif event == "final":
                    usage = response.final.usage
                    if response.final.finish_reason == self.generation.CANCELLED:
                        raise Stopped()
        assert usage is not None and len(ids) == tokens, (ids, usage)
        return bytes(ids), usage
