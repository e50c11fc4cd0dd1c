#!/usr/bin/env python3
"""A hostile client: attacks a service over its Unix socket, and a bystander who works meanwhile.

    python3 golden/hostile.py compare PROGRAM [ATTACK...]   starts the service `PROGRAM`, and prints
                                                            the bystander's p99 under each attack
                                                            over its quiet p99
    python3 golden/hostile.py SOCKET list
    python3 golden/hostile.py SOCKET attack NAME [UID]      until standard input ends
    python3 golden/hostile.py SOCKET bystander COUNT [UID]  prints its times in milliseconds

Shares no code with the project. With a UID it becomes that account first, which only root can. An
attack writes `under way` once it has done each of its blows at least once, goes on until standard
input ends, and fails (exit code 1) when the service does not answer a blow as it should.
"""

import json
import os
import random
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

PATIENCE = 60.0  # seconds within which the service has to answer; nothing is measured by it
QUIET = 3.0  # seconds without another refusal: the service has said all that it has to say
SEED = 0x5EED
MAX_BODY = 1_048_576
NOW = "2024-01-01T12:00:00Z"
RECONNECT_AFTER = 25  # round trips of the bystander over one connection

stop = threading.Event()


class Wrong(Exception):
    """The service did not do what it should."""


def frame(body):
    return struct.pack("<i", len(body)) + body


def message(number, kind, payload, **members):
    head = {"id": f"h{number}", "type": kind, "timestamp": NOW, **members, "payload": payload}
    return json.dumps(head).encode()


def action(number=0, text="x"):
    return message(number, "USER_ACTION", {"userId": "", "action": text, "details": {}})


def hello(number=0, role="agent", padding=""):
    payload = {
        "protocol": {"min": 1, "max": 1},
        "role": role,
        "credit": 1000,
        "capabilities": ["inReplyTo", "credit", "errorCodes", "goodbye"],
    }
    return message(number, "HELLO", payload, padding=padding)


class Peer:
    """One connection."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.buffer = b""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.socket.connect(path)
            except BlockingIOError:
                # The queue of those who wait to be accepted is full, and one has to ask again.
                if time.monotonic() > deadline:
                    raise Wrong("no connection was accepted") from None
                time.sleep(0.002)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def write(self, data):
        """Whether all of it was taken."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def send(self, body):
        return self.write(frame(body))

    def receive(self):
        """The next message that is no heartbeat, or None at the end."""
        while True:
            while len(self.buffer) < 4 or len(self.buffer) < 4 + self.length():
                try:
                    piece = self.socket.recv(65536)
                except ConnectionResetError:
                    piece = b""
                except socket.timeout:
                    raise Wrong("no answer came") from None
                if not piece:
                    return None
                self.buffer += piece
            end = 4 + self.length()
            body, self.buffer = self.buffer[4:end], self.buffer[end:]
            received = json.loads(body)
            if received["type"] not in ("HEARTBEAT", "CREDIT"):
                return received

    def length(self):
        return struct.unpack("<i", self.buffer[:4])[0]

    def answer(self, number):
        """The payload of the acknowledgment for a message."""
        while True:
            received = self.receive()
            if received is None:
                raise Wrong("the connection ended instead of an answer")
            payload = received["payload"]
            if received["type"] == "ACKNOWLEDGMENT" and payload["originalMessageId"] == f"h{number}":
                return payload

    def ask(self, body, number=0):
        if not self.send(body):
            raise Wrong("the connection ended before the question")
        return self.answer(number)

    def must_work(self):
        """It lives on: a message is answered."""
        self.ask(action("works"), "works")

    def must_refuse(self, body, number=0):
        if self.ask(body, number)["success"]:
            raise Wrong(f"it was accepted: {body[:200]!r}")

    def must_end(self):
        while (received := self.receive()) is not None:
            if received["type"] not in ("ACKNOWLEDGMENT", "HELLO", "BACKUP_REQUEST"):
                raise Wrong(f"this came instead of the end: {received}")

    def is_open(self):
        """Whether the service has not closed it yet."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        if not readable:
            return True
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b""
        except ConnectionResetError:
            return False


# --- the attacks ------------------------------------------------------------------------------
# Each is one blow, which is repeated until the end, or holds something until then.

ATTACKS = {}
HOLDING = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


def holding(function):
    """An attack that holds what it has got: it says so by `yield`, and goes on at the end."""
    HOLDING[function.__name__] = function
    return function


@attack
def lengths(path):
    for length in (b"\xff\xff\xff\xff", 0, -(2**31), MAX_BODY + 1, 2**31 - 1):
        prefix = length if isinstance(length, bytes) else struct.pack("<i", length)
        with Peer(path) as peer:
            peer.write(prefix)
            peer.must_end()


@attack
def one_byte_at_a_time(path):
    with Peer(path) as peer:
        for byte in frame(action()):
            peer.write(bytes([byte]))
        peer.answer(0)


@attack
def hello_too_long(path):
    with Peer(path) as peer:
        peer.send(hello(padding="x" * 5000))
        peer.must_end()


@attack
def depth_bomb(path):
    deep = b"[" * 100_000 + b"]" * 100_000
    with Peer(path) as peer:
        for body in (
            b'{"id":"h0","type":"USER_ACTION","ignored":' + deep + b"}",
            b'{"id":"h0","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":' + deep + b"}",
            b'{"id":"h0","type":"USER_ACTION","payload":' + b'{"a":' * 100_000,
        ):
            peer.must_refuse(body)
        peer.must_work()


@attack
def values_bomb(path):
    many = b"[" + b"0," * 500_000 + b"0]"
    with Peer(path) as peer:
        peer.must_refuse(b'{"id":"h0","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":' + many + b"}")
        peer.must_refuse(b'{"id":"h0","type":"X","payload":{' + b",".join(b'"%d":0' % n for n in range(90_000)) + b"}}")
        peer.must_work()


@attack
def duplicate_members(path):
    with Peer(path) as peer:
        head = b'{"id":"h0","type":"USER_ACTION",'
        when = b'"timestamp":"2024-01-01T12:00:00Z"'
        peer.must_refuse(head + b'"type":"HELLO",' + when + b',"payload":{}}')
        peer.must_refuse(head + when + b',"payload":{"action":"x"},"payload":{"action":"y"}}')
        peer.must_refuse(head + when + b',"payload":{"action":"x","action":"y"}}')
        peer.must_refuse(head + when + b',"payload":{"userId":"","userId":"0","action":"y"}}')
        # Which of the ids it has nobody can say.
        peer.send(b'{"id":"h0","id":"h1","type":"X",' + when + b"}")
        peer.must_work()


@attack
def bad_text(path):
    with Peer(path) as peer:
        head = b'{"id":"h0","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":'
        peer.must_refuse(head + b'{"action":"\xff\xfe"}}')
        peer.must_refuse(head + b'{"action":"\xed\xa0\x80"}}')
        peer.must_refuse(head + b'{"action":"\\ud800"}}')
        peer.must_refuse(head + b'{"action":"\x00"}}')
        peer.must_refuse(b'{"id":"h0","type":"\\u0000\\u001b[2J\\n","timestamp":"x"}')
        peer.ask(head + b'{"action":"\\u0000\\r\\n\\u001b[2J"}}')
        peer.must_work()


@attack
def unreadable_bodies(path):
    with Peer(path) as peer:
        for _ in range(10):
            peer.send(b"\xff" * 100)
        peer.must_end()


@attack
def garbage(path):
    noise = random.Random(SEED).randbytes(1 << 20)
    with Peer(path) as peer:
        peer.write(noise)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.must_end()


@attack
def truncated_frames(path):
    whole = frame(action(text="x" * 1000))
    for cut in (1, 3, 4, 5, 500, len(whole) - 1):
        with Peer(path) as peer:
            peer.write(whole[:cut])


@attack
def connect_and_leave(path):
    for _ in range(50):
        Peer(path).socket.close()


@attack
def forged_control(path):
    with Peer(path) as peer:
        peer.send(hello())
        if peer.receive()["type"] != "HELLO":
            raise Wrong("the hello was not answered by a hello")
        for number in range(200):
            forged = {"originalMessageId": f"forged-{number}", "success": True, "timestamp": NOW}
            peer.send(message(number, "ACKNOWLEDGMENT", forged))
            peer.send(message(number, "CREDIT", {"messages": 4_294_967_295}))
            peer.send(message(number, "CREDIT", {"messages": -1}))
        # Replies that nobody asked for, and what only a service may say.
        peer.must_refuse(message(1, "STATUS_UPDATE", {}, inReplyTo="forged"), 1)
        for number, kind in enumerate(("BACKUP_REQUEST", "SHUTDOWN_REQUEST", "CONFIGURATION_UPDATE"), 2):
            peer.must_refuse(message(number, kind, {}), number)
        peer.must_work()
        peer.send(message(9, "GOODBYE", {"reason": "stopping"}))
        peer.must_end()
    with Peer(path) as peer:
        # Of a plain peer these mean nothing.
        peer.must_refuse(message(1, "CREDIT", {"messages": 1}), 1)
        peer.must_refuse(message(2, "GOODBYE", {"reason": "done"}), 2)
        peer.must_work()


@attack
def huge_ids(path):
    with Peer(path) as peer:
        for length in (1025, 100_000, 1_000_000):
            body = {"id": "x" * length, "type": "USER_ACTION", "timestamp": NOW, "payload": {}}
            peer.send(json.dumps(body).encode())
        peer.must_work()


@attack
def unknown_types(path):
    with Peer(path) as peer:
        for number in range(200):
            peer.must_refuse(message(number, f"UNKNOWN_{number}" * 10, {}), number)
        peer.must_work()


@attack
def spoofed_user(path):
    with Peer(path) as peer:
        for number in range(3):
            payload = {"userId": "1", "action": "x", "details": {}}
            peer.must_refuse(message(number, "USER_ACTION", payload), number)
        for number in range(3, 10):
            payload = {"userId": "1", "agentVersion": "1", "sessionId": "x"}
            peer.send(message(number, "AGENT_STARTED", payload))
        peer.must_end()


@attack
def hello_twice(path):
    with Peer(path) as peer:
        peer.send(hello())
        peer.receive()
        peer.must_refuse(hello(1, role="operator"), 1)
        # It is no operator for having asked.
        peer.must_refuse(message(2, "STATUS_REQUEST", {}), 2)
        peer.must_work()


@attack
def operator_by_assertion(path):
    with Peer(path) as peer:
        peer.send(hello(role="operator"))
        peer.must_end()


@attack
def flood_of_heartbeats(path):
    beat = {"senderId": "x", "timestamp": NOW, "sequenceNumber": 1}
    many = b"".join(frame(message(number, "HEARTBEAT", beat)) for number in range(500))
    with Peer(path) as peer:
        for _ in range(10):
            if not peer.write(many):
                return
            for number in range(500):
                peer.answer(number)


def flood_of(path, body, blows):
    """Sends without waiting, and reads what comes, so many times or until the connection ends."""
    with Peer(path) as peer:
        peer.socket.setblocking(False)
        data = frame(body) * 200
        rest = b""
        for _ in range(blows):
            readable, writable, _ = select.select([peer.socket], [peer.socket], [], 0.1)
            try:
                if readable and not peer.socket.recv(1 << 16):
                    return
                if writable:
                    rest = rest or data
                    rest = rest[peer.socket.send(rest) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return


@attack
def flood_of_messages(path):
    flood_of(path, action(), 100)


@attack
def flood_of_large_messages(path):
    flood_of(path, action(text="x" * 100_000), 20)


@holding
def silence(path):
    peers = connect_many(path, 300)
    yield
    close_all(peers)


@holding
def flood_of_connections(path):
    peers = connect_many(path, 1000)
    # Some are turned away, which takes the service a moment to say.
    still_open, since = len(peers), time.monotonic()
    while time.monotonic() < since + QUIET:
        time.sleep(0.1)
        now_open = sum(peer.is_open() for peer in peers)
        if now_open < still_open:
            still_open, since = now_open, time.monotonic()
    print(f"open: {still_open}", file=sys.stderr)
    yield
    close_all(peers)


@holding
def slow_loris(path):
    peers = connect_many(path, 50)
    whole = frame(action(text="x" * 100_000))
    for peer in peers:
        peer.write(whole[:1])

    def drip():
        for byte in whole[1:]:
            if stop.wait(0.05):
                return
            for peer in peers:
                peer.write(bytes([byte]))

    dripping = threading.Thread(target=drip)
    dripping.start()
    yield
    dripping.join()
    close_all(peers)


@holding
def unread_answers(path):
    peers = connect_many(path, 10)
    for peer in peers:
        peer.socket.setblocking(False)
    question = frame(action()) * 100
    for _ in range(200):
        for peer in peers:
            try:
                # What is cut off by a full buffer goes on as garbage, which is as well.
                peer.socket.send(question)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
    yield
    close_all(peers)


@holding
def frames_that_never_end(path):
    peers = connect_many(path, 60)
    begun = struct.pack("<i", MAX_BODY) + b"[" * (MAX_BODY - 1)
    for peer in peers:
        peer.socket.setblocking(False)
    for peer in peers:
        sent = 0
        while sent < len(begun):
            _, writable, _ = select.select([], [peer.socket], [], 0.05)
            if not writable:
                break  # the service reads no further
            try:
                sent += peer.socket.send(begun[sent:])
            except (BrokenPipeError, ConnectionResetError):
                break
    yield
    close_all(peers)


def connect_many(path, count):
    peers = []
    while len(peers) < count:
        peers.append(Peer(path))
    return peers


def close_all(peers):
    for peer in peers:
        peer.socket.close()


def run_attack(name, path):
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    if name in HOLDING:
        steps = HOLDING[name](path)
        next(steps)
        under_way()
        stop.wait()
        next(steps, None)
        return
    blow = ATTACKS[name]
    if name.startswith("flood_of_messages") or name.startswith("flood_of_large"):
        blow(path)
        under_way()
        floods = [threading.Thread(target=repeat, args=(blow, path)) for _ in range(4)]
        for flood in floods:
            flood.start()
        for flood in floods:
            flood.join()
        return
    blow(path)
    under_way()
    while not stop.is_set():
        blow(path)


def repeat(blow, path):
    while not stop.is_set():
        try:
            blow(path)
        except OSError:
            # An account that is over its limits is turned away.
            stop.wait(0.05)


def under_way():
    print("under way", flush=True)


def wait_for_the_end():
    while os.read(0, 4096):
        pass
    stop.set()


# --- the bystander ----------------------------------------------------------------------------


def run_bystander(count, path):
    times = []
    number = 0
    while len(times) < count:
        # Newcomers are to get in, too.
        with Peer(path) as peer:
            started = {"userId": "", "agentVersion": "1", "sessionId": "bystander"}
            peer.send(message("s", "AGENT_STARTED", started))
            if peer.receive() is None:
                raise Wrong("the bystander was turned away")
            for _ in range(min(RECONNECT_AFTER, count - len(times))):
                number += 1
                begun = time.perf_counter()
                if not peer.ask(action(number), number)["success"]:
                    raise Wrong("the bystander's message was refused")
                times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    at = lambda share: times[min(int(len(times) * share), len(times) - 1)]
    print(json.dumps({"round_trips": len(times), "p50": at(0.5), "p99": at(0.99)}), flush=True)


# --- the comparison ---------------------------------------------------------------------------


def compare(program, names):
    """One run of everything, so that what else the machine does hits all of it."""
    names = names or [*ATTACKS, *HOLDING]
    # Not where the environment says: a socket's path must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        run = os.path.join(folder, "run")
        os.mkdir(run, 0o755)
        path = os.path.join(run, "service.sock")
        # The sources may be closed to the other accounts.
        script = shutil.copy(__file__, folder)
        os.chmod(script, 0o644)
        command = [program, "service", "--until-stdin-ends", "--endpoint", path]
        command += ["--data-dir", os.path.join(folder, "data")]
        null = subprocess.DEVNULL
        service = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null)
        try:
            compare_at(path, script, names)
        finally:
            service.stdin.close()
            service.wait(timeout=PATIENCE)


def compare_at(path, script, names):
    two_accounts = os.geteuid() == 0
    if not two_accounts:
        print("without root all are one account, which is held to no limits of an account")

    def start(account, *arguments):
        account = [account] if two_accounts else []
        command = [sys.executable, script, path, *arguments, *account]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd="/", text=True)

    def bystander():
        process = start("54332", "bystander", "2000")
        output, _ = process.communicate(timeout=10 * PATIENCE)
        if process.returncode != 0:
            raise Wrong("the bystander did not complete")
        return json.loads(output)

    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise Wrong("the service does not start")
        time.sleep(0.05)
    bystander()
    quiet = bystander()
    print(f"{'quiet':28} p50 {quiet['p50']:8.3f} ms  p99 {quiet['p99']:8.3f} ms")
    for account, name in enumerate(names, 54401):
        attacker = start(str(account), "attack", name)
        if attacker.stdout.readline() != "under way\n":
            raise Wrong(f"{name}: the attack failed")
        times = bystander()
        attacker.communicate(timeout=PATIENCE)
        ratio = times["p99"] / quiet["p99"]
        print(
            f"{name:28} p50 {times['p50']:8.3f} ms  p99 {times['p99']:8.3f} ms  {ratio:6.2f}",
            flush=True,
        )


def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def main():
    if sys.argv[1:2] == ["compare"]:
        compare(sys.argv[2], sys.argv[3:])
        return 0
    _, path, command, *rest = sys.argv
    if command == "list":
        print("\n".join([*ATTACKS, *HOLDING]))
        return 0
    if len(rest) > 1:
        become(int(rest[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if command == "attack":
            run_attack(rest[0], path)
        else:
            run_bystander(int(rest[0]), path)
    except Wrong as wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
