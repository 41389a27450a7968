"""An OpenAI-compatible server of the embedded model, in a process of its own, that fails on request.

`python server.py FOLDER` serves on a port of 127.0.0.1 that it writes to FOLDER/port, logs each request as a line of
FOLDER/requests.jsonl, and takes faults from FOLDER/faults.json: a list, one for each request (null is none). Of what
FOLDER/gives.json names it tells log-probabilities: "prompt" as vLLM does, "top" as OpenAI does; "most" bounds how many.
`python server.py FOLDER MODEL` serves another model than the embedded one. The
serving process is a child; when it dies (fault "die"), another is started once FOLDER/again exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
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
        model: Folder of the model it serves; None is the embedded one.
    """

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.folder = folder
        command = [sys.executable, __file__, str(folder), *([] if model is None else [str(model)])]
        self.process = subprocess.Popen(command, start_new_session=True)
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
        self.give()
        for name in ("requests.jsonl", "answered.jsonl"):
            (self.folder / name).write_text("")

    def give(self, *kinds: str, most: int = 20, reasoning: str = "", lacks: dict | None = None) -> None:
        """Say what it can do.

        Args:
            kinds: Of log-probabilities that it tells.
            most: Of them at most; it refuses more.
            reasoning: What it thinks before every completion, logged as vLLM logs it.
            lacks: Parameters that it does not take, each with the body of the 400 that says so.
        """
        gives = {kind: kind in kinds for kind in ("prompt", "top")}
        more = {"most": most, "reasoning": reasoning, "lacks": lacks or {}}
        (self.folder / "gives.json").write_text(json.dumps({**gives, **more}))

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
    served: Model
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
            record = {"path": self.path, "prompt": prompt, "fault": fault["kind"], "request": request}
            record["key"] = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            with (self.folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps({**record, "under_way": self.under_way, "time": time.time()}) + "\n")
        time.sleep(fault.get("seconds", 0))
        with self.lock:  # until all is sent, so that a death tears no other answer
            type(self).under_way -= 1
            refused = self.refusal(request)
            if fault["kind"] in (None, "slow") and refused is not None:
                self.send(400, json.dumps(refused))
            elif fault["kind"] in (None, "slow", "change"):
                answer = self.answer(request)
                if fault["kind"] != "change":  # before it is sent: who has the answer may look here at once
                    with (self.folder / "answered.jsonl").open("a") as file:
                        file.write(json.dumps(prompt) + "\n")
                self.send(200, json.dumps(changed(answer, fault) if fault["kind"] == "change" else answer))
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

    @property
    def can(self) -> dict:
        """What `Served.give` said."""
        path = self.folder / "gives.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def gives(self, kind: str) -> int:
        """Return how many log-probabilities of a kind are given; 0 is none."""
        return self.can["most"] if self.can.get(kind) else 0

    def refusal(self, request: dict) -> dict | list | None:
        """Return what is said to a parameter that is not taken, or to a request for too many log-probabilities."""
        for name, said in self.can.get("lacks", {}).items():
            if name in request:
                return said
        for kind, name in (("prompt", "prompt_logprobs"), ("top", "top_logprobs"), ("top", "logprobs")):
            asked, most = request.get(name) or 0, self.gives(kind)
            if asked is not True and most and asked > most:
                said = f"Requested {name} of {asked}, which is greater than max allowed: {most}"
                return {"error": {"message": said}}
        return None

    def answer(self, request: dict) -> dict:
        """Return what the model writes, in the protocol's form."""
        chat = self.path.endswith("/chat/completions")
        limit = request.get("max_tokens") or request.get("max_completion_tokens")
        prompt = self.served.ids(request["messages"] if chat else request["prompt"])
        text, finished, written = self.served.write(prompt, limit)
        thought = self.can.get("reasoning", "") if chat else ""
        message = {"role": "assistant", "content": text, **({"reasoning_content": thought} if thought else {})}
        piece = {"message": message} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "stop" if finished else "length", **piece}
        if self.gives("prompt") and request.get("prompt_logprobs"):
            choice["prompt_logprobs"] = self.served.prompt_logprobs(prompt, request["prompt_logprobs"])
        if self.gives("top") and request.get("logprobs"):
            k = request["top_logprobs"] if chat else request["logprobs"]
            choice["logprobs"] = self.served.top_logprobs(prompt, written, k, chat=chat)
            if thought:
                pieces = ["<think>", *re.findall(r"\s?\S+", f"{thought} </think>"), "\n\n"]
                logged = [{"token": piece, "logprob": -0.1, "bytes": list(piece.encode())} for piece in pieces]
                choice["logprobs"]["content"][:0] = [{**one, "top_logprobs": [one]} for one in logged]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(written)}
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
            body = fault.get("answer") or {"error": {"message": said, "code": fault.get("code")}}
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


def changed(answer: dict, fault: dict) -> dict:
    """Return an answer with one entry of its choice changed: put in, or the last one taken off."""
    choice, name = answer["choices"][0], fault["name"]
    if fault["how"] == "shorten":
        choice[name] = choice[name][:-1]
    else:
        choice[name] = fault["how"]
    return answer


class Model:
    """A causal language model and what a server tells of it.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path | str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from trl_distill.data.cross_tokenizer.token_bytes import token_bytes
        from trl_distill.prompts.chat_template import ChatTemplate

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.stops = ChatTemplate(self.tokenizer).stop_ids(self.model.generation_config)
        self.bytes = token_bytes(self.tokenizer)

    def ids(self, prompt) -> list[int]:
        """Return a prompt's ids: text, messages, or ids that are so already."""
        from trl_distill.prompts.tokenization import tokenize_prompt

        return prompt if prompt and isinstance(prompt[0], int) else tokenize_prompt(self.tokenizer, prompt)

    def write(self, prompt: list[int], limit: int) -> tuple[str, bool, list[int]]:
        """Return the text of the likeliest completion, whether it ended, and its ids."""
        import torch

        from trl_distill.models.generation import cut_at_stop

        with torch.no_grad():
            row = self.model.generate(
                torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, eos_token_id=self.stops
            )[0]
        written = cut_at_stop(row[len(prompt) :].tolist(), self.stops)
        return self.tokenizer.decode(written.ids, skip_special_tokens=True), written.finished, list(written.ids)

    def log_probs(self, ids: list[int]):
        """Return [S, V]: what the model says of the token after each."""
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def prompt_logprobs(self, ids: list[int], k: int) -> list[dict | None]:
        """Return what vLLM reports for a prompt: at each token the k likeliest and itself, nothing at the first."""
        found: list[dict | None] = [None]
        for row, token in zip(self.log_probs(ids), ids[1:], strict=False):
            likeliest = row.topk(k).indices.tolist()
            entry = {}
            for index in [*likeliest, *([] if token in likeliest else [token])]:
                rank = int((row > row[index]).sum()) + 1
                said = {"logprob": row[index].item(), "rank": rank, "decoded_token": self.tokenizer.decode([index])}
                entry[str(index)] = said
            found.append(entry)
        return found

    def top_logprobs(self, prompt: list[int], written: list[int], k: int, *, chat: bool) -> dict:
        """Return what is reported for written tokens; the token that ends is not among them, as at OpenAI."""
        rows = self.log_probs([*prompt, *written])[len(prompt) - 1 :]
        content = []
        for row, token in zip(rows, written, strict=False):
            if token in self.stops:
                break
            others = [self.item(i, row[i].item()) for i in row.topk(k).indices.tolist()]
            content.append({**self.item(token, row[token].item()), "top_logprobs": others})
        if chat:
            return {"content": content}
        return {
            "tokens": [item["token"] for item in content],
            "token_logprobs": [item["logprob"] for item in content],
            "top_logprobs": [{o["token"]: o["logprob"] for o in item["top_logprobs"]} for item in content],
        }

    def item(self, token: int, log_prob: float) -> dict:
        """Return one token as OpenAI tells it."""
        piece = self.bytes[token]
        text = self.tokenizer.convert_ids_to_tokens(token) if piece is None else piece.decode(errors="replace")
        return {"token": text, "logprob": log_prob, "bytes": None if piece is None else list(piece)}


def serve(folder: Path, served: Model, port: int) -> None:
    """Serve until the process ends."""
    Handler.folder, Handler.served = folder, served
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    ready = folder / "port.new"
    ready.write_text(str(server.server_port))
    ready.rename(folder / "port")
    server.serve_forever(poll_interval=0.05)


def main(folder: Path, model: str | None = None) -> None:
    """Serve from a child process, and start it again when it died and the tests say so."""
    from trl_distill.embedded import embedded_path

    served = Model(model or embedded_path())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    while True:
        child = os.fork()  # the model is loaded once
        if child == 0:
            serve(folder, served, port)
        os.waitpid(child, 0)
        while not (folder / "again").exists():
            time.sleep(0.02)
        (folder / "again").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
