#!/usr/bin/env python3
"""Replays the service transcripts of this folder over a Unix socket.

    python3 golden/replay.py              builds and starts the service of the transcripts
    python3 golden/replay.py SOCKET       uses a service that runs already

Shares no code with the project: the form of the transcripts, the frames and the comparison are
implemented here once more, from README.md. Prints every difference; exits with 1 if there is one.
"""

import json
import os
import queue
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STEP = 10.0  # seconds that a step may take
START = 30.0  # seconds that the service may take to start

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,7})?Z"
TEXT = r'(?:[^"\\]|\\.)*'
PLACEHOLDERS = {"$id": UUID, "$time": TIME, "$text": TEXT}

SENDS = ("send_json", "send_text", "send_hex")
EXPECTS = ("expect_json", "expect_close")
MODES = ("whole", "bytes", "prefix-then-body", "one-write")


class Difference(Exception):
    """What happened is not what the transcript says."""


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def fill_in(text, number, user):
    """The text with its placeholders, but for those that match something."""
    text = text.replace("$user", compact(user)[1:-1]).replace("$n", str(number))
    padding = re.search(r"\$pad:(\d+)", text)
    if padding:
        length = int(padding[1]) - len(text.encode()) + len(padding[0])
        text = text.replace(padding[0], "x" * length)
    return text


def matches(expected, received):
    parts = re.split(r"(\$id|\$time|\$text)", expected)
    pattern = "".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts)
    return re.fullmatch(pattern, received, re.DOTALL) is not None


def frame(body):
    return struct.pack("<i", len(body)) + body


def grouped(frames, mode):
    """The frames as the pieces that are written."""
    if mode == "whole":
        return frames
    if mode == "one-write":
        return [b"".join(frames)]
    if mode == "bytes":
        return [bytes([byte]) for byte in b"".join(frames)]
    return [piece for whole in frames for piece in (whole[:4], whole[4:])]


class Connection:
    """One connection: writes on a thread of its own, reads frames."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.pieces = queue.Queue()
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def _write(self):
        while (piece := self.pieces.get()) is not None:
            try:
                self.socket.sendall(piece)
            except OSError:
                return  # the service has closed, as some transcripts expect

    def _read(self, length, deadline):
        data = b""
        while len(data) < length:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = self.socket.recv(length - len(data))
            except ConnectionResetError:
                piece = b""
            except socket.timeout:
                raise Difference("nothing was received") from None
            if not piece and data:
                raise Difference("the connection ended within a frame")
            if not piece:
                return None
            data += piece
        return data

    def receive(self, kind):
        """The next body, or None at the end. Skips heartbeats, unless one is the `kind` to expect."""
        deadline = time.monotonic() + STEP
        while True:
            prefix = self._read(4, deadline)
            if prefix is None:
                return None
            body = self._read(struct.unpack("<i", prefix)[0], deadline)
            if body is None:
                raise Difference("the connection ended within a frame")
            text = body.decode()
            if kind == "HEARTBEAT" or json.loads(text)["type"] != "HEARTBEAT":
                return text

    def close(self):
        # Wakes the writer, wherever it waits.
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.pieces.put(None)
        self.writer.join(STEP)
        self.socket.close()


def play(step, connection, user):
    kinds = [kind for kind in step if kind in SENDS + EXPECTS]
    mode = step.get("write", {}).get("mode", "whole")
    if len(kinds) != 1 or set(step) - {kinds[0], "repeat", "write"} or mode not in MODES:
        raise Difference(f"a step that is not described: {step}")
    kind = kinds[0]
    value = step[kind]
    frames = []
    for number in range(step.get("repeat", 1)):
        if kind == "send_hex":
            frames.append(bytes.fromhex(value))
        elif kind in SENDS:
            text = value if kind == "send_text" else compact(value)
            frames.append(frame(fill_in(text, number, user).encode()))
        else:
            received = connection.receive(value["type"] if kind == "expect_json" else None)
            if kind == "expect_close":
                if received is not None:
                    raise Difference(f"expected the end, received {received}")
                continue
            expected = fill_in(compact(value), number, user)
            if received is None or not matches(expected, received):
                raise Difference(f"expected {expected}\n    received {received or 'the end'}")
    for piece in grouped(frames, mode):
        connection.pieces.put(piece)


def replay(path, user):
    """Replays every case; returns how many passed and how many failed."""
    passed = failed = 0
    for file in sorted((FOLDER / "service").glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            connection = Connection(path)
            try:
                for number, step in enumerate(case["steps"], 1):
                    try:
                        play(step, connection, user)
                    except Difference as difference:
                        raise Difference(f"step {number}: {difference}") from None
                passed += 1
            except Difference as difference:
                failed += 1
                print(f"FAILED {file.name}: {case['name']}: {difference}")
            finally:
                connection.close()
    return passed, failed


def build():
    """Builds the service of the transcripts; returns where it lies."""
    command = ["cargo", "build", "--quiet", "--package", "migration-ipc", "--example",
               "golden_service", "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, check=True)
    for line in built.stdout.splitlines():
        artifact = json.loads(line)
        if artifact.get("target", {}).get("name") == "golden_service":
            return artifact["executable"]
    raise SystemExit("cargo did not say where it put the example golden_service")


def with_service(use):
    """Runs `use` with the socket of a service that lives as long."""
    program = build()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        path = f"{folder}/service.sock"
        service = subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            readable, _, _ = select.select([service.stdout], [], [], START)
            if not readable or service.stdout.readline() != b"ready\n":
                raise SystemExit("the service did not start")
            return use(path)
        finally:
            service.stdin.close()
            try:
                service.wait(STEP)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


def main():
    if not hasattr(socket, "AF_UNIX"):
        print("SKIPPED: this Python has no Unix sockets")
        return 0
    import pwd  # not there where Unix sockets are not

    try:
        # Whom the service sees, whatever the environment says.
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name
        user = str(os.geteuid())
    if len(sys.argv) > 1:
        passed, failed = replay(sys.argv[1], user)
    else:
        passed, failed = with_service(lambda path: replay(path, user))
    print(f"golden: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
