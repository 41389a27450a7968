"""An OpenAI-compatible server of the embedded model, in a process of its own, that fails on request.

`python server.py FOLDER` serves on a port of 127.0.0.1 that it writes to FOLDER/port, logs each request as a line of
FOLDER/requests.jsonl, and takes faults from FOLDER/faults.json: a list, one for each request (null is none). The
serving process is a child; when it dies (fault "die"), another is started once FOLDER/again exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served:
    """A running server, from the tests' side.

    Args:
        folder: Where it keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, __file__, str(folder)], start_new_session=True)
        deadline = time.monotonic() + 60
        while not (folder / "port").exists():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{(folder / 'port').read_text()}/v1"
        self.teacher = f"{self.url}#embedded"

    def fail(self, *faults: dict | None) -> None:
        """Have the next requests fail, one for each, and forget the requests so far."""
        (self.folder / "faults.json").write_text(json.dumps(faults))
        for name in ("requests.jsonl", "answered.jsonl"):
            (self.folder / name).write_text("")

    def requests(self) -> list[dict]:
        """Return the requests since `fail`."""
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]

    def answered(self) -> list[str]:
        """Return the prompts that were answered since `fail`."""
        return [json.loads(line) for line in (self.folder / "answered.jsonl").read_text().splitlines()]

    def alive(self) -> bool:
        """Whether a connection is taken."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int((self.folder / "port").read_text()))) == 0

    def revive(self) -> None:
        """Start the serving process again if it died."""
        if self.alive():
            return
        (self.folder / "again").touch()
        deadline = time.monotonic() + 20
        while not self.alive():
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.02)

    def close(self) -> None:
        """End the server and its child."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Handler(BaseHTTPRequestHandler):
    """Answers /v1/chat/completions and /v1/completions."""

    folder: Path
    write: staticmethod
    lock = threading.Lock()
    under_way = 0

    def log_message(self, *args) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; one that the client has left is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        """Take a fault or answer."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            type(self).under_way += 1
            fault = self.next_fault() or {"kind": None}
            prompt = request.get("prompt") or request["messages"][-1]["content"]
            told = {"path": self.path, "prompt": prompt, "fault": fault["kind"], "request": request}
            with (self.folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps({**told, "under_way": self.under_way, "time": time.time()}) + "\n")
        time.sleep(fault.get("seconds", 0))
        with self.lock:  # until all is sent, so that a death tears no other answer
            type(self).under_way -= 1
            if fault["kind"] in (None, "slow"):
                self.send(200, json.dumps(self.answer(request)))
                with (self.folder / "answered.jsonl").open("a") as file:
                    file.write(json.dumps(prompt) + "\n")
            else:
                self.fail(fault)

    def next_fault(self) -> dict | None:
        """Return the next fault, and take it off the list."""
        path = self.folder / "faults.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        if not faults:
            return None
        path.write_text(json.dumps(faults[1:]))
        return faults[0]

    def answer(self, request: dict) -> dict:
        """Return what the model writes, in the protocol's form."""
        chat = self.path.endswith("/chat/completions")
        limit = request.get("max_tokens") or request.get("max_completion_tokens")
        text, finished, prompt, written = self.write(request["messages"] if chat else request["prompt"], limit)
        piece = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "stop" if finished else "length", **piece}
        usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        kind = "chat.completion" if chat else "text_completion"
        return {"id": "1", "object": kind, "created": 0, "model": request["model"], "choices": [choice], "usage": usage}

    def fail(self, fault: dict) -> None:
        """Fail in the way that was asked for."""
        kind = fault["kind"]
        if kind == "die":
            os._exit(1)
        if kind == "cut":
            self.send(200, '{"choices": [{"mess', length=1000)
        elif kind == "hang":
            self.close_connection = True
        elif kind == "malformed":
            self.send(200, '{"choices": [{"message": {"content": "re')
        elif kind == "body":
            self.send(200, json.dumps(fault["body"]))
        else:
            said = fault.get("said", "told to fail").replace("KEY", self.headers["Authorization"].split()[-1])
            body = {"error": {"message": said, "code": fault.get("code")}}
            self.send(int(kind), json.dumps(body), headers=fault.get("headers", {}))

    def send(self, status: int, body: str, *, length: int | None = None, headers: dict | None = None) -> None:
        """Send a response; a length that is not the body's cuts the connection in the middle of it."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = length is not None


def load_writer():
    """Return a function from a prompt and a limit to text, whether it ended, and the tokens of both."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_distill.alignment import tokenize_prompt
    from trl_distill.embedded import embedded_path
    from trl_distill.teachers.local import cut_at_stop, stop_ids

    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    model = AutoModelForCausalLM.from_pretrained(embedded_path()).eval()
    stops = stop_ids(model.generation_config, tokenizer)

    @torch.no_grad()
    def write(prompt, limit):
        ids = tokenize_prompt(tokenizer, prompt)
        row = model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=stops)[0]
        written = cut_at_stop(row[len(ids) :].tolist(), stops)
        text = tokenizer.decode(written.ids, skip_special_tokens=True)
        return text, written.finished, len(ids), len(written.ids)

    return write


def serve(folder: Path, write, port: int) -> None:
    """Serve until the process ends."""
    Handler.folder, Handler.write = folder, staticmethod(write)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    ready = folder / "port.new"
    ready.write_text(str(server.server_port))
    ready.rename(folder / "port")
    server.serve_forever(poll_interval=0.05)


def main(folder: Path) -> None:
    """Serve from a child process, and start it again when it died and the tests say so."""
    write = load_writer()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    while True:
        child = os.fork()  # the model is loaded once
        if child == 0:
            serve(folder, write, port)
        os.waitpid(child, 0)
        while not (folder / "again").exists():
            time.sleep(0.02)
        (folder / "again").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
