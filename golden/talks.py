"""What `peer.py` talks about: the service of README.md, and the conversation with such a service."""

import itertools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import lz4
import vectors
from peer import (BASE, CHUNK_HEAD, EXTENSIONS, KEYS, MAX_BODY, PATIENCE, PAYLOAD, Closed, Failed, Kept, Peer,
                  complete, envelope, frame)

LONG = 3_000_000  # bytes: over a frame, and several times what may be under way
LONG_PATIENCE = 60.0  # seconds that a long body may take, since Python compresses slowly
QUIET = 0.2  # seconds in which nothing is to come
PLAIN_EXTENSIONS = [one for one in EXTENSIONS if one != "encryption"]


def text_of(length):
    """`0 1 2 3 ...`, cut to this length."""
    return " ".join(map(str, range(length // 2 + 1)))[:length]


# --- the service ---------------------------------------------------------------------------------

def note(request):
    peer = request.peer
    peer.noted = getattr(peer, "noted", 0) + 1


def fail(_):
    raise Failed("handler_failed", "boom")


def slow(request):
    request.item("TEST_BEGUN", {})
    stopped = request.nobody_waits.wait(request.payload["milliseconds"] / 1000)
    return "TEST_WAITED", {"stopped": stopped}


def count(request):
    total = 0
    for number in range(1, request.payload["to"] + 1):
        if request.nobody_waits.is_set():
            break
        request.item("TEST_COUNTED", {"number": number})
        total += number
    return "TEST_SUM", {"sum": total}


def store(request):
    data = request.payload["data"].encode()
    return "TEST_STORED", {"bytes": len(data), "crc32": zlib.crc32(data)}


def push(request):
    data = text_of(request.payload["bytes"])
    waiting = request.peer.ask("TEST_STORE", {"data": data})
    return "TEST_STORED", waiting.answer(LONG_PATIENCE)["payload"]


def ask_me(request):
    reply = request.peer.ask("TEST_QUESTION", {"text": request.payload["text"]}).answer()
    return "TEST_ASKED", {"answer": reply["payload"]["text"]}


def notify(request):
    notes = [("TEST_NOTE", {})] * request.payload["count"]
    if request.payload.get("batch"):
        handled = sum(outcome["success"] for outcome in request.peer.send_batch(notes))
    else:
        waiting = [request.peer.ask(*one) for one in notes]
        handled = sum(one.answer() is None for one in waiting)
    return "TEST_NOTIFIED", {"handled": handled}


SERVICE = {
    "AGENT_STARTED": lambda _: None,
    "TEST_ECHO": lambda request: ("TEST_ECHOED", request.payload),
    "TEST_NOTE": note,
    "TEST_NOTES": lambda request: ("TEST_NOTED", {"notes": getattr(request.peer, "noted", 0)}),
    "TEST_FAIL": fail,
    "TEST_SLOW": slow,
    "TEST_COUNT": count,
    "TEST_STORE": store,
    "TEST_FETCH": lambda request: ("TEST_FETCHED", {"data": text_of(request.payload["bytes"])}),
    "TEST_PUSH": push,
    "TEST_ASK_ME": ask_me,
    "TEST_NOTIFY": notify,
}

CLIENT = {
    "TEST_NOTE": note,
    "TEST_QUESTION": lambda request: ("TEST_ANSWER", {"text": request.payload["text"][::-1]}),
    "TEST_STORE": store,
}


class Service:
    """A service at a socket, with a thread for each connection."""

    def __init__(self, path, extensions=EXTENSIONS):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.kept, self.extensions = Kept(), extensions
        threading.Thread(target=self.accepts, daemon=True).start()

    def accepts(self):
        while True:
            try:
                connected, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connected,), daemon=True).start()

    def serve(self, connected):
        try:
            peer = Peer.accept(connected, SERVICE, self.kept, self.extensions)
            if peer:
                peer.ended.wait()
        except Exception:  # whatever is wrong with a handshake ends that connection alone
            pass
        connected.close()


# --- the conversation ----------------------------------------------------------------------------

class Wrong(Exception):
    """It is not as it should be."""


def equal(found, expected, what="it"):
    if found != expected:
        raise Wrong(f"{what} is {found!r}, not {expected!r}")


def holds(condition, what):
    if not condition:
        raise Wrong(what)


def fails(code, work, error=None):
    try:
        found = work()
    except Failed as failed:
        equal(failed.code, code, f"the code of `{failed.error}`")
        holds(error is None or failed.error == error, f"the text is {failed.error!r}")
        return
    raise Wrong(f"{found!r} came instead of the failure {code}")


def echo(peer, text="x", **members):
    equal(peer.ask("TEST_ECHO", {"text": text}, **members).answer()["payload"], {"text": text}, "the echo")


def requests_in_flight(peer):
    waiting = [peer.ask("TEST_ECHO", {"text": str(number)}) for number in range(40)]
    for number, one in reversed(list(enumerate(waiting))):
        equal(one.answer()["payload"]["text"], str(number), "an answer")


def failures_have_codes(peer):
    fails("handler_failed", peer.ask("TEST_FAIL", {}).answer, "boom")
    fails("no_handler", peer.ask("TEST_NOBODY", {}).answer,
          "No handler registered for message type: TEST_NOBODY")


def deadlines(peer):
    busy = peer.ask("TEST_SLOW", {"milliseconds": 2000})
    fails("deadline", peer.ask("TEST_ECHO", {"text": "late"}, deadline=20).answer)
    equal(busy.answer()["payload"], {"stopped": False}, "a handler without a deadline")
    began = time.monotonic()
    late = peer.ask("TEST_SLOW", {"milliseconds": 60_000}, deadline=2000).answer()
    equal(late["payload"], {"stopped": True}, "a handler whose deadline passed")
    holds(time.monotonic() - began < PATIENCE, "it was told late")
    echo(peer, deadline=31_536_000_000)


def members_of_another_form(peer):
    for members in ({"deadline": 0}, {"deadline": -1}, {"deadline": 1.5}, {"deadline": "1"},
                    {"deadline": 31_536_000_001}, {"items": 0}, {"items": 1025}, {"items": True}):
        fails("malformed", peer.ask("TEST_ECHO", {"text": "x"}, **members).answer)
    echo(peer)


def cancellations(peer):
    busy = peer.ask("TEST_SLOW", {"milliseconds": 60_000}, items=1)
    equal(busy.next()[0], "item", "what says that the handler is at work")
    behind = peer.ask("TEST_ECHO", {"text": "never"}, deadline=60_000)
    no_request = peer.ask("TEST_ECHO", {"text": "all the same"})
    peer.cancel(behind)
    peer.cancel(no_request)
    peer.cancel(busy)
    equal(busy.answer()["payload"], {"stopped": True}, "a handler that was cancelled")
    fails("cancelled", behind.answer)
    equal(no_request.answer()["payload"], {"text": "all the same"}, "the answer to what is no request")
    peer.cancel(behind)  # answered already, and so means nothing
    peer.control("CANCEL", {"requestId": "of nobody"})
    echo(peer)


def numbers_of(waiting, count):
    found = []
    while len(found) < count:
        kind, message = waiting.next()
        equal(kind, "item", "what arrived")
        found.append(message["payload"]["number"])
    return found


def streams(peer):
    waiting = peer.ask("TEST_COUNT", {"to": 20}, items=8)
    equal(numbers_of(waiting, 8), list(range(1, 9)), "the items")
    holds(waiting.answers.empty() and not time.sleep(QUIET) and waiting.answers.empty(),
          "an item came that was not granted")
    peer.grant(waiting, 8)
    peer.grant(waiting, 8)
    equal(numbers_of(waiting, 12), list(range(9, 21)), "the items")
    equal(waiting.answer()["payload"], {"sum": 210}, "the result")
    # Nobody asked for items.
    equal(peer.ask("TEST_COUNT", {"to": 20}).next()[0], "reply", "what arrived")
    # Given up in the middle.
    waiting = peer.ask("TEST_COUNT", {"to": 1000}, items=2)
    numbers_of(waiting, 2)
    peer.cancel(waiting)
    holds(waiting.answer()["payload"]["sum"] < 500_500, "it counted on")


def asked_back(peer):
    waiting = peer.ask("TEST_ASK_ME", {"text": "abc"})
    equal(waiting.answer()["payload"], {"answer": "cba"}, "what the service was answered")


def declined(peer):
    before = peer.ask("TEST_NOTES", {}).answer()["payload"]["notes"]
    stray = peer.seen["late answers"]
    for _ in range(5):
        peer.send_unanswered("TEST_NOTE", {})
    fails("malformed", peer.ask("TEST_NOTE", {}, ack=0).answer)
    equal(peer.ask("TEST_NOTES", {}).answer()["payload"]["notes"], before + 5, "the notes that arrived")
    equal(peer.seen["late answers"], stray, "the answers that nobody wanted")


def acknowledged_by_range(peer):
    waiting = [peer.ask("TEST_FAIL" if n % 20 == 7 else "TEST_NOTE", {}) for n in range(100)]
    for n, one in enumerate(waiting):
        if n % 20 == 7:
            fails("handler_failed", one.answer, "boom")
        else:
            equal(one.answer(), None, "the answer to a note")
    holds(peer.seen["acknowledged by range"] > 0, "no range came")


def notified(peer, batch):
    waiting = peer.ask("TEST_NOTIFY", {"count": 50, "batch": batch})
    equal(waiting.answer()["payload"], {"handled": 50}, "what the service was told")
    name = "batches received" if batch else "ranges sent"
    if batch or "ackRanges" in peer.has:
        holds(peer.seen[name] > 0, f"no {name}")


def batches(peer):
    outcomes = peer.send_batch([("TEST_NOTE", {}), ("TEST_FAIL", {}), ("TEST_ECHO", {"text": "b"}),
                                ("TEST_NOBODY", {})])
    equal([one["success"] for one in outcomes], [True, False, True, False], "what came of them")
    equal([one.get("replied", False) for one in outcomes], [False, False, True, False], "`replied`")
    equal(outcomes[2]["reply"]["payload"], {"text": "b"}, "the reply")
    equal((outcomes[1]["error"], outcomes[1]["code"]), ("boom", "handler_failed"), "the failure")
    equal(outcomes[3]["code"], "no_handler", "the code")
    fails("malformed", peer.ask("BATCH", {"messages": []}).answer)
    fails("malformed", peer.ask("BATCH", {"messages": [{"type": "TEST_NOTE"}]}).answer)
    echo(peer)


def compressed(peer):
    echo(peer, text_of(20_000))
    holds(peer.seen["compressed sent"] > 0, "nothing was sent compressed")
    holds(peer.seen["compressed received"] > 0, "nothing came compressed")


def stored(peer, length, **how):
    data = text_of(length)
    reply = peer.ask("TEST_STORE", {"data": data}, **how).answer(LONG_PATIENCE)["payload"]
    equal(reply, {"bytes": length, "crc32": zlib.crc32(data.encode())}, "what was stored")


def fetched(peer, length):
    data = peer.ask("TEST_FETCH", {"bytes": length}).answer(LONG_PATIENCE)["payload"]["data"]
    holds(data == text_of(length), "another text was fetched")


def pushed(peer, length):
    data = text_of(length).encode()
    reply = peer.ask("TEST_PUSH", {"bytes": length}).answer(LONG_PATIENCE)["payload"]
    equal(reply, {"bytes": length, "crc32": zlib.crc32(data)}, "what was pushed")


def longest(peer):
    """Bodies as long as either side takes them."""
    equal(peer.other_payload, PAYLOAD, "what the service takes")
    around = len(envelope("TEST_STORE", {"data": ""}))
    stored(peer, PAYLOAD - around)
    pushed(peer, PAYLOAD - 2 * around)  # the service may write ids and times of another length
    fails("too_large", lambda: stored(peer, PAYLOAD - around + 1))
    echo(peer)


def chunked(peer, length):
    stored(peer, length, chunked=True)
    holds(peer.other_payload >= length, f"it takes only {peer.other_payload} bytes")
    for comes in (pushed, fetched):
        before = peer.seen["pieces received"]
        comes(peer, length)
        holds(length < MAX_BODY or peer.seen["pieces received"] > before, "it did not come in pieces")
    body = envelope("TEST_NOTE", {})
    fails("hash", lambda: ended(peer, body, "00" * 32))
    echo(peer)


def too_large(peer):
    peer.outgoing[900] = state = {"from": None, "to": 0, "end": None}
    peer.control("CHUNKS_BEGIN", {"transfer": 900, "bytes": peer.other_payload + 1, "sha256": "00" * 32})
    fails("too_large", lambda: peer.wait_until(state, lambda: False))


def ended(peer, body, digest):
    """Sends a body with another hash, until the receiver has said what it thinks of it."""
    transfer = peer.send_chunked(body, digest)
    peer.wait_until(peer.outgoing[transfer], lambda: False)


def everything(peer, length):
    """What the capabilities of this connection allow."""
    has = peer.has
    echo(peer)
    requests_in_flight(peer)
    failures_have_codes(peer)
    asked_back(peer)
    notified(peer, batch=False)
    if "requests" in has:
        members_of_another_form(peer)
        cancellations(peer)
        streams(peer)
    if "noAck" in has:
        declined(peer)
    if "ackRanges" in has:
        acknowledged_by_range(peer)
    if "batch" in has:
        batches(peer)
        notified(peer, batch=True)
    if "lz4" in has:
        compressed(peer)
    fetched(peer, min(length, 100_000))
    if "chunks" in has:
        chunked(peer, length)
    else:
        stored(peer, min(length, 100_000))
    # Nothing of what was not negotiated.
    for capability, names in {
        "requests": ["items received"], "ackRanges": ["ranges received", "ranges sent"],
        "batch": ["batches received"], "lz4": ["compressed received"], "chunks": ["pieces received"],
        "encryption": ["records received"],
    }.items():
        for name in names:
            holds(capability in has or not peer.seen[name], f"{name} without `{capability}`")
    equal("encryption" in has, peer.seen["records received"] > 0, "whether records came")


class Conversation:
    """With the service at a path. Prints a line per check."""

    def __init__(self, path):
        self.path, self.passed, self.failed = path, 0, 0

    def connect(self, extensions=(), **how):
        peer = Peer.connect(self.path, extensions, CLIENT, **how)
        expected = complete([*BASE, *extensions])
        equal(peer.has, expected, "what was agreed on")
        return peer

    def check(self, name, work):
        try:
            work()
            self.passed += 1
            print(f"ok {name}", flush=True)
        except (Exception, KeyboardInterrupt) as wrong:
            self.failed += 1
            print(f"FAILED {name}: {type(wrong).__name__}: {wrong}", flush=True)
            if isinstance(wrong, KeyboardInterrupt):
                raise

    def with_peer(self, work, *arguments, extensions=PLAIN_EXTENSIONS, **how):
        def run():
            peer = self.connect(extensions, **how)
            work(peer, *arguments)
            peer.close()
        return run

    def everything(self):
        both = [dict(extensions=list(pair)) for pair in itertools.combinations(PLAIN_EXTENSIONS, 2)]
        self.check("no extension", self.with_peer(everything, 100_000, extensions=[]))
        for one in PLAIN_EXTENSIONS:
            self.check(f"{one} alone", self.with_peer(everything, 100_000, extensions=[one]))
        for how in both:
            self.check(" and ".join(how["extensions"]), self.with_peer(everything, 100_000, **how))
        for one in PLAIN_EXTENSIONS:
            pair = [one, "encryption"]
            self.check(" and ".join(pair),
                       self.with_peer(everything, 20_000, extensions=pair, key="golden-psk"))
        self.check("all but encryption", self.with_peer(everything, LONG))
        for key, cipher in itertools.product(("golden-psk", "golden-kk"), ("ChaChaPoly", "AESGCM")):
            self.check(f"all, with {key} and {cipher}", self.with_peer(
                everything, 20_000, extensions=EXTENSIONS, key=key, cipher=cipher))

        self.check("a deadline passes before its handler begins, and while it is at work",
                   self.with_peer(deadlines))
        self.check("a body over the receiver's limit is refused", self.with_peer(too_large))
        self.check("bodies as long as both sides take them", self.with_peer(longest, extensions=["chunks"]))
        self.check("a body goes on after a reconnect", self.resumed)
        self.check("what nobody knows is ignored in a hello", self.unknown_capability)
        self.check("a capability without what it needs is not agreed on", self.incomplete)
        self.check("a key that is not known is refused", self.wrong_key)
        for name, extensions, blow in BLOWS:
            self.check(f"closes: {name}", lambda e=extensions, b=blow: self.closes(e, b))
        for name, blow in ENCRYPTED_BLOWS:
            self.check(f"closes: {name}", lambda b=blow: self.closes(EXTENSIONS, b, key="golden-psk"))
        self.check("closes: a recorded connection that is played again", self.replayed)
        return self.failed == 0 and self.passed > 0

    def resumed(self):
        body = envelope("TEST_STORE", {"data": text_of(LONG)})
        first = self.connect(["chunks"])
        transfer, at = first.begin_chunked(body)
        # What was asked for beyond the first time shows that something has arrived.
        first.send_pieces(body, transfer, at, LONG // 2)
        first.cut()
        deadline = time.monotonic() + PATIENCE
        while True:
            second = self.connect(["chunks"])
            transfer, at = second.begin_chunked(body)
            if at > 0:
                break
            # The service may not have noticed yet that the first connection has ended.
            holds(time.monotonic() < deadline, "it begins anew")
            second.cut()
            time.sleep(QUIET)
        waiting = second.register(json.loads(body)["id"])
        second.send_pieces(body, transfer, at, len(body))
        equal(waiting.answer()["payload"]["bytes"], LONG, "what was stored")
        second.close()

    def unknown_capability(self):
        peer = Peer.connect(self.path, ["timeTravel", "requests"], CLIENT)
        equal(peer.has, complete([*BASE, "requests"]), "what was agreed on")
        peer.close()

    def incomplete(self):
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(PATIENCE)
        connected.connect(self.path)
        payload = {"protocol": {"min": 1, "max": 1}, "role": "agent",
                   "capabilities": ["requests", "batch", "lz4", "encryption"], "credit": 10}
        connected.sendall(frame(envelope("HELLO", payload)))
        wire = Peer(connected, {}).wire
        answer = json.loads(wire.read())["payload"]
        equal(answer["capabilities"], ["lz4"], "what was agreed on")
        connected.close()

    def wrong_key(self):
        for name, key in (("golden-unknown", KEYS["golden-psk"]), ("golden-psk", {"psk": bytes(32)})):
            keys = {name: key}
            fails("key", lambda: Peer.connect(self.path, EXTENSIONS, CLIENT, key=name, keys=keys))

    def closes(self, extensions, blow, **how):
        peer = self.connect(extensions, **how)
        bystander = self.connect(["requests"])
        blow(peer)
        holds(peer.ended.wait(PATIENCE), "the connection lives on")
        holds(isinstance(peer.over, Closed), f"the service did not close it: {peer.over!r}")
        peer.wire.socket.close()
        echo(bystander)
        bystander.close()
        self.with_peer(echo)()

    def replayed(self):
        peer = self.connect(EXTENSIONS, key="golden-psk")
        echo(peer)
        recorded = bytes(peer.wire.tap)
        peer.close()
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(PATIENCE)
        connected.connect(self.path)
        # The hello first: what closes the connection may come before the answer has been written.
        hello = 4 + int.from_bytes(recorded[:4], "little")
        connected.sendall(recorded[:hello])
        wire = Peer(connected, {}).wire
        answer = json.loads(wire.read())
        holds("encryption" in answer["payload"]["capabilities"], "it does not encrypt")
        received = 0
        try:
            connected.sendall(recorded[hello:])
            while piece := connected.recv(65536):
                received += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        connected.close()
        # Its confirmation, and no answer to anything that was recorded.
        holds(received <= 2 + 4 + 512, "it answered what was recorded")


# --- what closes a connection --------------------------------------------------------------------

def raw(*bodies):
    return lambda peer: [peer.wire.write_as_is(body) for body in bodies]


def piece(transfer, offset, data=b"x"):
    return CHUNK_HEAD.pack(2, transfer, offset) + data


def says(kind, payload):
    return raw(envelope(kind, payload))


def unreadable(body):
    """Three of them are tolerated, and a fourth one is not."""
    def blow(peer):
        raw(*[body] * 3)(peer)
        echo(peer)
        raw(body)(peer)
    return blow


def begins(size, *bodies, again=False):
    """A transfer of so many bytes, and these pieces of it once some are asked for."""
    def blow(peer):
        state = peer.outgoing[1] = {"from": None, "to": 0, "end": None}
        # A body that never came before, so that it is wanted from its beginning.
        begin = {"transfer": 1, "bytes": size, "sha256": os.urandom(32).hex()}
        peer.control("CHUNKS_BEGIN", begin)
        peer.wait_until(state, lambda: state["to"])
        raw(*bodies)(peer)
        if again:
            peer.control("CHUNKS_BEGIN", begin)
    return blow


def next_record(peer):
    """The record of one more message. It counts as sent: where it is good, it is acknowledged."""
    peer.wire.sent += 1
    return peer.wire.seal.seal(frame(envelope("TEST_NOTE", {})))


def record(change):
    """The next record, changed."""
    def blow(peer):
        with peer.wire.lock:
            peer.wire.send_raw(bytes(change(bytearray(next_record(peer)))))
    return blow


def flipped(sealed):
    sealed[10] ^= 1
    return sealed


def again(peer):
    """A record that was good, and was followed by others."""
    with peer.wire.lock:
        sealed = next_record(peer)
        peer.wire.send_raw(sealed)
    echo(peer)
    peer.wire.send_raw(sealed)


def out_of_order(peer):
    with peer.wire.lock:
        one, two = next_record(peer), next_record(peer)
        peer.wire.send_raw(two + one)


BOMB = b"\x1f" + b"x" + b"\1\0" + b"\xff" * 8000 + b"\0" + b"\x50xxxxx"
BLOWS = [
    ("a compressed body that grows beyond what it says", ["lz4"],
     raw(b"\1" + (1000).to_bytes(4, "little") + BOMB)),
    ("a compressed body that says more than a frame holds", ["lz4"],
     raw(b"\1" + (MAX_BODY + 1).to_bytes(4, "little") + BOMB)),
    ("a compressed body that is shorter than it says", ["lz4"],
     raw(b"\1" + (100).to_bytes(4, "little") + lz4.compress(b"{}" * 20))),
    ("a compressed body that is cut", ["lz4"], raw(lz4.pack(envelope("TEST_NOTE", {"x": "y" * 99}))[:-3])),
    ("a match before the beginning", ["lz4"],
     raw(b"\1" + (14).to_bytes(4, "little") + b"\x10{\x02\0\x50xxxxx")),
    ("a compressed body of nothing", ["lz4"], raw(b"\1\0\0\0\0\0")),
    ("a compressed body in a compressed one", ["lz4"], raw(lz4.pack(lz4.pack(envelope("TEST_NOTE", {}))))),
    ("too many bodies that are no envelope", [], unreadable(b"{")),
    ("a compressed body without the capability", [], raw(lz4.pack(envelope("TEST_NOTE", {"x": "y" * 99})))),
    ("a piece without the capability", [], raw(piece(1, 0))),
    ("a piece in a compressed body, without the capability", ["lz4"], raw(lz4.pack(piece(1, 0, b"x" * 99)))),
    ("a piece of a transfer that was never begun", ["chunks"], raw(piece(1, 0))),
    ("a piece without data", ["chunks"], begins(1000, piece(1, 0, b""))),
    ("a piece out of order", ["chunks"], begins(1000, piece(1, 1))),
    ("a piece that comes twice", ["chunks"], begins(1000, piece(1, 0), piece(1, 0))),
    ("a piece beyond the declared length", ["chunks"], begins(10, piece(1, 0, b"x" * 11))),
    ("a number of a transfer that is used twice", ["chunks"], begins(1000, again=True)),
    ("an acknowledgment of a frame that was not sent yet", ["ackRanges"],
     says("ACKNOWLEDGMENTS", {"handled": [[1, 1_000_000]]})),
    ("a failure of a frame that was not sent yet", ["ackRanges"],
     says("ACKNOWLEDGMENTS", {"failed": [{"frame": 1_000_000, "error": "x"}]})),
    ("a range that ends before it begins", ["ackRanges"], says("ACKNOWLEDGMENTS", {"handled": [[2, 1]]})),
    ("a range from frame 0", ["ackRanges"], says("ACKNOWLEDGMENTS", {"handled": [[0, 1]]})),
    ("too many ranges", ["ackRanges"], says("ACKNOWLEDGMENTS", {"handled": [[1, 1]] * 257})),
    ("an acknowledgment that cannot be read", ["ackRanges"], says("ACKNOWLEDGMENTS", {"handled": "all"})),
]
ENCRYPTED_BLOWS = [
    ("a record with another bit", record(flipped)),
    ("a record that comes twice", record(lambda sealed: sealed + sealed)),
    ("a record that comes again after others", again),
    ("records out of order", out_of_order),
    ("a record of no bytes", record(lambda _: b"\x10\0" + bytes(16))),
    ("bytes in the clear behind the hello", lambda peer: peer.wire.send_raw(frame(envelope("TEST_NOTE", {})))),
]


# --- the command line ----------------------------------------------------------------------------

def build():
    """Builds the service of the conversation; returns where it lies."""
    command = ["cargo", "build", "--quiet", "--package", "migration-ipc", "--example",
               "extension_service", "--message-format", "json-render-diagnostics"]
    folder = Path(__file__).resolve().parent.parent
    built = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    for line in built.stdout.splitlines():
        artifact = json.loads(line)
        if artifact.get("target", {}).get("name") == "extension_service":
            return artifact["executable"]
    raise SystemExit("cargo did not say where it put the example extension_service")


def with_program(program, path, use):
    """Runs `use` while a service runs, which says `ready`, and stops when its input ends."""
    service = subprocess.Popen([*program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        readable, _, _ = select.select([service.stdout], [], [], 30)
        if not readable or service.stdout.readline() != b"ready\n":
            raise SystemExit("the service did not start")
        return use(path)
    finally:
        service.stdin.close()
        try:
            service.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def main(arguments):
    if not hasattr(socket, "AF_UNIX"):
        print("SKIPPED: this Python has no Unix sockets")
        return 0
    if arguments[:1] == ["--serve"]:
        Service(arguments[1])
        print("ready", flush=True)
        sys.stdin.read()
        return 0
    good = True
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        path = f"{folder}/service.sock"
        if arguments == ["--selftest"]:
            good = vectors.check_all()
            Service(path)
            conversation = Conversation(path)
            good &= conversation.everything()
        elif arguments:
            conversation = Conversation(arguments[0])
            good = conversation.everything()
        else:
            program = build()

            def converse(at):
                nonlocal conversation
                conversation = Conversation(at)
                return conversation.everything()
            conversation = None
            good = with_program([program], path, converse)
    print(f"peer: {conversation.passed} passed, {conversation.failed} failed")
    return 0 if good else 1
