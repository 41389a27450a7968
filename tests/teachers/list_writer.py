"""A server that writes lists as a good teacher does when it is asked for inputs for its prompt."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("questions about refunds", "lost parcels", "praise", "broken screens")
MORE = ("opening hours", "gift cards", "spare parts", "jobs", "new addresses", "complaints", "riddles", "empty words")
NOUNS = ("refund", "parcel", "screen", "kettle", "order", "courier", "garden", "window", "invoice", "ticket")
VERBS = ("lost", "returned", "painted", "ordered", "cancelled", "opened", "repaired", "forgot", "sold", "measured")


class Scripted(BaseHTTPRequestHandler):
    """A server that answers requests for lists and for inputs well; `mode` changes what it says."""

    asked: list[str]
    shown: list[list[str]]  # the messages before each
    mode = "good"
    lock = threading.Lock()

    def log_message(self, *_):
        """Say nothing."""

    def do_POST(self):
        """Answer a request."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = request["messages"] if "messages" in request else [{"content": request["prompt"]}]
        *before, asked = [message["content"] for message in messages]
        with self.lock:
            self.asked.append(asked)
            self.shown.append(before)
            text = (
                self.copied(*before) if self.mode == "copies" else self.said(asked.rpartition("This is the prompt")[2])
            )
        said = {"message": {"role": "assistant", "content": text}, "text": text}
        ended = "length" if self.mode == "reasons" else "stop"
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        body = json.dumps({"choices": [{"index": 0, "finish_reason": ended, **said}], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def copied(self, request, answer):
        """Return what was shown, as a list."""
        pieces = [piece for line in request.splitlines() for piece in line.split(". ") if piece]
        return answer + "".join(f"\n11. {piece}" for piece in pieces)

    def said(self, asked):
        """Return what a good teacher writes, in another form of list each time."""
        listed = re.search(r"List (\d+) (different kinds|kinds of unusual)", asked)
        if listed and self.mode == "single":
            return "- praise"
        if listed and listed[2] == "different kinds":
            kinds = (*KINDS[:3], *MORE)[: int(listed[1])]
            return "Here are some kinds:\n\n" + "".join(f"{i}. **{kind}**\n" for i, kind in enumerate(kinds, 1))
        if listed:
            return "".join(f"- {kind}\n" for kind in (KINDS[3], *MORE[5:])[: int(listed[1])])
        if "different lengths" in asked:
            return "<think>\n1. very long\n</think>\n" + json.dumps(["three words", "one sentence"])
        if "Write 10 different inputs" not in asked:
            return "Billing"
        if self.mode == "reasons":
            return "<think>\n1. The users write\n2. Maybe they"
        if self.mode == "refuses" and len(self.asked) % 2:
            return f"I'm sorry, but I can't help with request {len(self.asked) * 7919}.\n\nAsk me anything else."
        if self.mode == "same":
            return "1. The same message.\n2. The same message!"
        if self.mode == "silent":
            return "..."
        kind = re.search(r"Kind of input: (.+)", asked)[1]
        n = sum("Write 10 different inputs" in one for one in self.asked)
        inputs = [
            f"{VERBS[(n + i) % 10]} the {NOUNS[i]} {VERBS[n // 10 % 10]} near {kind[-6:]} {n * 7919 % 997}"
            for i in range(8)
        ]
        inputs += ["My parcel never came to the house", "Please send me the invoice again!"]
        if self.mode == "many":
            return "".join(f"{i}. {VERBS[i % 10]} {i * 7919 + n} {NOUNS[i // 10 % 10]}\n" for i in range(20_000))
        if self.mode == "continues":
            listed = "".join(f"\n{i}. {one}" for i, one in enumerate(inputs, 1)).removeprefix("\n1.")
            return (
                f"{listed}\n\n\nThis is the prompt of an assistant:\n\nYou cook.\n\n1. Is the soup ready?\n2. And the"
            )
        if self.mode == "leak":
            inputs[0] = "Where is my purple umbrella today"
        if n % 3 == 0:
            return json.dumps(inputs)
        mark = "{}. " if n % 3 == 1 else "* "
        return "Sure!\n" + "\n".join(mark.format(i + 1) + f'"{one}"' for i, one in enumerate(inputs)) + "\n\nMore?"


@contextmanager
def serving(mode="good"):
    """Yield a scripted server's name as a teacher, and its handler class."""
    handler = type("Handler", (Scripted,), {"asked": [], "shown": [], "mode": mode})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1#good", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
