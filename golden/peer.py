#!/usr/bin/env python3
"""A peer with all extensions, written from docs/protocol.md alone, and what it expects of others.

    python3 golden/peer.py SOCKET       converses with a service; prints one line per check
    python3 golden/peer.py              builds and starts the service to converse with
    python3 golden/peer.py --selftest   converses with a service of its own, and checks the vectors
    python3 golden/peer.py --serve SOCKET   is that service, until its standard input ends

Python's standard library alone, and no code of the project: to read beside the text. What is asked
of the service is in README.md, the conversation in talks.py. Exits with 1 if a check fails. It is
no program for daily use: it trusts its own side, and sends no heartbeats, since it lives for
seconds.
"""

import hashlib
import itertools
import json
import queue
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter

import lz4
import noise

PATIENCE = 10.0  # seconds that anything may take
MAX_BODY = 1_048_576
MAX_CHUNK_FRAME = 65_536
CHUNK_HEAD = struct.Struct("<BIQ")  # the byte 02, the transfer, the offset
MAX_DATA = MAX_CHUNK_FRAME - 4 - CHUNK_HEAD.size
MAX_DEADLINE = 31_536_000_000
MAX_ITEMS = 1024
MAX_RANGES = 256
MAX_BATCH = 256
MAX_TRANSFERS = 8
PAYLOAD = 16 * MAX_BODY  # the longest body in chunks that this side takes
WINDOW = 262_144  # bytes of a chunked body that may be under way
COMPRESS_FROM = 512  # bytes
CREDIT = 64
ACKNOWLEDGE_AFTER = 32  # messages; sooner when no other one waits

NEEDS = {
    "inReplyTo": [], "credit": [], "errorCodes": [], "goodbye": [], "backlog": [],
    "durable": ["inReplyTo", "errorCodes"], "requests": ["inReplyTo", "errorCodes"],
    "noAck": [], "ackRanges": [], "batch": ["inReplyTo"], "lz4": [], "chunks": [], "encryption": [],
}
ENVELOPE = {"id", "type", "timestamp", "seq", "stream", "ack", "deadline", "items", "item", "payload",
            "inReplyTo"}
EXTENSIONS = ["requests", "noAck", "ackRanges", "batch", "lz4", "chunks", "encryption"]
BASE = ["inReplyTo", "credit", "errorCodes", "goodbye"]

CONTROL = {
    "HEARTBEAT": None, "ACKNOWLEDGMENT": None, "HELLO": None, "CREDIT": "credit", "GOODBYE": "goodbye",
    "CANCEL": "requests", "ITEMS": "requests", "ACKNOWLEDGMENTS": "ackRanges",
    "BATCH_OUTCOMES": "batch", "CHUNKS_BEGIN": "chunks", "CHUNKS_TAKE": "chunks",
    "CHUNKS_END": "chunks", "ENCRYPTED": "encryption", "ENCRYPTION_CONFIRM": "encryption",
}

# Keys that the conversation knows by name; those of golden/extensions/noise.json.
KEYS = {
    "golden-psk": {"psk": bytes(range(0x01, 0x21))},
    "golden-kk": {"client": bytes(range(0x21, 0x41)), "service": bytes(range(0x41, 0x61))},
}


class Closed(Exception):
    """There is no connection any more."""


class Violation(Exception):
    """The other side did what closes the connection."""


class Failed(Exception):
    """The answer to a message is a failure."""

    def __init__(self, code, error):
        super().__init__(f"{code}: {error}")
        self.code, self.error = code, error


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def frame(body):
    return struct.pack("<i", len(body)) + body


def new_id():
    return str(uuid.uuid4())


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def envelope(kind, payload, message_id=None, in_reply_to=None, **members):
    """A body. `members` in the order of the protocol: ack, deadline, items, item."""
    head = {"id": message_id or new_id(), "type": kind, "timestamp": now()}
    for name in ("ack", "deadline", "items", "item"):
        if members.get(name) is not None:
            head[name] = members[name]
    head["payload"] = payload
    if in_reply_to:
        head["inReplyTo"] = in_reply_to
    return compact(head)


class Members(dict):
    """An object of JSON, and the names that it has twice."""

    def __init__(self, pairs):
        super().__init__(pairs)
        names = Counter(name for name, _ in pairs)
        self.twice = {name for name in names if names[name] > 1}


def read_envelope(body):
    """The message of a body; ValueError when it is none."""
    message = json.loads(body, object_pairs_hook=Members)
    if not isinstance(message, Members) or message.twice & ENVELOPE:
        raise ValueError("no envelope, or a member of it twice")
    if any(type(message.get(name)) is not str for name in ("id", "type", "timestamp")):
        raise ValueError("no `id`, `type` or `timestamp`")
    return message


def malformed_member(message, has):
    """The name of a member that a capability gives a meaning, and that is not in the form for it."""
    limits = {"deadline": MAX_DEADLINE, "items": MAX_ITEMS, "item": 2**64 - 1}
    for name, high in limits.items():
        if "requests" in has and message.get(name) is not None and not whole(message[name], 1, high):
            return name
    if "noAck" in has and type(message.get("ack")) not in (type(None), bool):
        return "ack"
    return None


def read_piece(body):
    """The transfer, the offset and the data of a piece."""
    if len(body) <= CHUNK_HEAD.size or len(body) + 4 > MAX_CHUNK_FRAME or body[0] != 2:
        raise Violation("a piece without data, or with too much")
    _, transfer, offset = CHUNK_HEAD.unpack_from(body)
    return transfer, offset, body[CHUNK_HEAD.size:]


def complete(capabilities):
    """The capabilities without those that miss what they need."""
    return {one for one in capabilities if one in NEEDS and all(n in capabilities for n in NEEDS[one])}


def whole(value, low, high):
    """Whether a value of JSON is an integer within limits."""
    return type(value) is int and low <= value <= high


# --- frames --------------------------------------------------------------------------------------

class Wire:
    """Frames over a socket: counted, compressed where that gains, encrypted once that is switched on."""

    def __init__(self, connected):
        self.socket = connected
        self.lock = threading.RLock()
        self.sent = self.received = 0  # frames: the number of the last one in each direction
        self.seal = self.open = None  # the records of each direction
        self.compresses = False
        self.bytes = bytearray()  # what was received, and opened, and not read
        self.seen = Counter()  # what went over it, to show that it did
        self.tap = bytearray()  # the first bytes that were sent

    def write(self, body):
        """Sends a frame, and gives its number."""
        with self.lock:
            if self.compresses and len(body) >= COMPRESS_FROM:
                packed = lz4.pack(body)
                if len(packed) < len(body):
                    body = packed
                    self.seen["compressed sent"] += 1
            return self.write_as_is(body)

    def write_as_is(self, body):
        """Sends a frame with just these bytes, and gives its number."""
        with self.lock:
            self.sent += 1
            self.put(frame(body))
            return self.sent

    def put(self, data):
        """Sends bytes of the sequence of frames."""
        with self.lock:
            try:
                if not self.seal:
                    return self.send_raw(data)
                for at in range(0, len(data), noise.MAX_PLAIN):
                    self.send_raw(self.seal.seal(data[at:at + noise.MAX_PLAIN]))
                    self.seen["records sent"] += 1
            except OSError:
                raise Closed from None

    def send_raw(self, data):
        self.tap += data[:max(0, 65536 - len(self.tap))]
        self.socket.sendall(data)

    def take(self, length):
        """The next bytes of the sequence of frames."""
        while len(self.bytes) < length:
            if self.open:
                size = struct.unpack("<H", self.exactly(2))[0]
                if size < 1 + noise.TAG:
                    raise Violation("a record of no bytes")
                self.bytes += self.open.open(self.exactly(size))
                self.seen["records received"] += 1
            else:
                # No more than is wanted: what follows may be the first record.
                self.bytes += self.exactly(length - len(self.bytes))
        taken = bytes(self.bytes[:length])
        del self.bytes[:length]
        return taken

    def exactly(self, length):
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except OSError:
                piece = b""
            if not piece:
                raise Closed
            data += piece
        return data

    def read(self):
        """The body of the next frame."""
        length = struct.unpack("<i", self.take(4))[0]
        if not 1 <= length <= MAX_BODY:
            raise Violation(f"a frame of {length} bytes")
        body = self.take(length)
        self.received += 1
        return body

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


# --- what is under way ---------------------------------------------------------------------------

class Waiting:
    """A message that was sent, until its answer is there."""

    def __init__(self, message_id, items):
        self.id, self.granted, self.number = message_id, items or 0, None
        self.answers, self.arrived = queue.Queue(), 0

    def answer(self, patience=PATIENCE):
        """The reply, or None for a success without one. Items are skipped."""
        while True:
            kind, value = self.next(patience)
            if kind == "reply":
                return value
            if kind == "failure":
                raise value

    def next(self, patience=PATIENCE):
        """`item` or `reply` with a message, or `failure` with why."""
        try:
            return self.answers.get(timeout=patience)
        except queue.Empty:
            raise Failed("silence", "nothing was answered") from None


class Request:
    """A message that was received, while it is handled."""

    def __init__(self, peer, message, number, batch=None):
        self.peer, self.message, self.number, self.batch = peer, message, number, batch
        self.id, self.kind = message["id"], message["type"]
        self.payload = message.get("payload")
        self.nobody_waits = threading.Event()
        self.cancelled = self.begun = False
        self.items, self.sent = message.get("items") or 0, 0
        self.changed = threading.Condition()
        deadline = message.get("deadline")
        self.until = None if deadline is None else time.monotonic() + deadline / 1000

    def item(self, kind, payload):
        """Sends an item once it is granted. False: nobody wants it."""
        if "items" not in self.message:
            return False
        with self.changed:
            while self.sent == self.items:
                self.peer.wire.seen["waited for a grant"] += 1
                if self.nobody_waits.is_set() or not self.changed.wait(PATIENCE):
                    return False
            self.sent += 1
            number = self.sent
        self.peer.wire.write(envelope(kind, payload, in_reply_to=self.id, item=number))
        self.peer.wire.seen["items sent"] += 1
        return True

    def grant(self, items):
        with self.changed:
            self.items += items
            self.changed.notify_all()

    def stop(self):
        self.nobody_waits.set()
        with self.changed:
            self.changed.notify_all()


class Kept:
    """What arrived of chunked bodies, by length and hash, over connections. Of one account: whoever
    serves several keeps it for each."""

    def __init__(self):
        self.lock, self.bodies = threading.Lock(), {}

    @staticmethod
    def name(begin):
        return begin["bytes"], begin["sha256"].lower()

    def take(self, begin):
        """What there is of a body. Another transfer of the same one begins anew meanwhile."""
        with self.lock:
            return self.bodies.pop(self.name(begin), bytearray())

    def keep(self, begin, data):
        with self.lock:
            if len(data) > len(self.bodies.get(self.name(begin), b"")):
                self.bodies[self.name(begin)] = data


# --- a peer --------------------------------------------------------------------------------------

class Peer:
    """One connection, from either side. One thread reads, one handles messages in their order."""

    def __init__(self, connected, handlers, kept=None):
        self.wire, self.handlers, self.kept = Wire(connected), handlers, kept or Kept()
        self.has, self.other_payload, self.is_service = set(), 0, False
        self.lock = threading.RLock()
        self.waiting, self.by_number = {}, {}  # what was sent, by id and by number of its frame
        self.batches = {}
        self.under_way = {}  # requests that were received, by id
        self.inbox = queue.Queue()
        self.handled, self.failures, self.used = [], [], 0
        self.credit, self.credited = 0, threading.Condition()
        self.incoming, self.last_incoming = {}, 0  # transfers
        self.outgoing, self.numbers = {}, itertools.count(1)
        self.moved = threading.Condition()
        self.unreadable, self.confirmed, self.transcript = 0, threading.Event(), None
        self.over, self.ended, self.goodbye = None, threading.Event(), None
        self.seen = self.wire.seen

    # --- hello ---

    @classmethod
    def connect(cls, path, extensions, handlers=None, key=None, cipher="ChaChaPoly", announce=True,
                keys=KEYS):
        """A client; `announce` too, behind its hello."""
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(PATIENCE)
        connected.connect(path)
        self = cls(connected, handlers or {})
        offers = [*BASE, *extensions]
        payload = {
            "protocol": {"min": 1, "max": 1}, "role": "agent", "capabilities": offers,
            "credit": CREDIT, "limits": {"payload": PAYLOAD}, "schema": "golden",
        }
        handshake = None
        if key:
            pattern = "NNpsk0" if "psk" in keys[key] else "KK"
            protocol = f"Noise_{pattern}_25519_{cipher}_SHA256"
            handshake = handshake_of(protocol, keys[key], True)
            payload["encryption"] = {"protocol": protocol, "key": key, "message": handshake.write(0).hex()}
        hello = envelope("HELLO", payload)
        self.wire.write(hello)
        # Whoever demands encryption says nothing else in the clear.
        if announce and not key:
            started = self.announce()
        while True:
            body = self.wire.read()
            message = json.loads(body)
            if message["type"] == "HELLO":
                break
            if message["type"] != "HEARTBEAT":
                raise Violation(f"a plain service: it answers {body}")
        answer = message["payload"]
        if "refused" in answer:
            raise Failed(answer["refused"]["code"], answer["refused"].get("message"))
        if message["inReplyTo"] != json.loads(hello)["id"]:
            raise Violation("an answer to another hello")
        self.agree(complete(answer["capabilities"]) & complete(offers), answer)
        if key:
            if "encryption" not in self.has:
                raise Violation("it does not encrypt")
            handshake.read(1, bytes.fromhex(answer["encryption"]["message"]))
            self.wire.write(envelope("ENCRYPTED", {}))
            self.switch(handshake, frame(hello) + frame(body))
        self.start()
        if announce:
            (self.announce() if key else started).answer()
        return self

    def announce(self):
        with self.lock:
            payload = {"userId": "", "agentVersion": "golden", "sessionId": "1"}
            waiting = self.register(new_id())
            body = envelope("AGENT_STARTED", payload, waiting.id)
            with self.wire.lock:
                self.numbered(waiting, self.wire.sent + 1)
                self.wire.write(body)
            self.credit -= 1
            return waiting

    @classmethod
    def accept(cls, connected, handlers, kept, extensions):
        """A service's side, with an example of everything that it has to do and of nothing more."""
        connected.settimeout(None)
        self = cls(connected, handlers, kept)
        self.is_service = True
        hello = self.wire.read()
        message = json.loads(hello)
        payload = message["payload"]
        agreed = complete(payload["capabilities"]) & complete([*BASE, *extensions])
        answer = {"protocol": {"min": 1, "max": 1}, "role": payload["role"]}
        offered, handshake = payload.get("encryption"), None
        if "encryption" in agreed and offered:
            try:
                handshake = handshake_of(offered["protocol"], KEYS[offered["key"]], False)
                handshake.read(0, bytes.fromhex(offered["message"]))
            except (noise.Broken, KeyError, ValueError):
                refusal = {"refused": {"code": "key", "message": "no such key, or not its message"}}
                self.wire.write(envelope("HELLO", refusal, in_reply_to=message["id"]))
                self.wire.close()
                return None
            answer["encryption"] = {"message": handshake.write(1).hex()}
        else:
            agreed.discard("encryption")
        answer |= {"capabilities": [one for one in NEEDS if one in agreed], "credit": CREDIT,
                   "limits": {"payload": PAYLOAD}}
        body = envelope("HELLO", answer, in_reply_to=message["id"])
        self.wire.write(body)
        self.agree(agreed, payload)
        if handshake:
            while (clear := json.loads(self.wire.read()))["type"] != "ENCRYPTED":
                if clear["type"] != "AGENT_STARTED":
                    raise Violation("more than an announcement in the clear")
                self.arrived(clear, self.wire.received)
            self.switch(handshake, frame(hello) + frame(body))
        self.start()
        return self

    def agree(self, capabilities, theirs):
        self.has = capabilities
        self.other_payload = (theirs.get("limits") or {}).get("payload", 0)
        self.credit += theirs.get("credit", 0)
        self.wire.compresses = "lz4" in capabilities

    def switch(self, handshake, hellos):
        """Encrypts from here on; the first frame says which hellos this side has seen."""
        self.wire.seal, self.wire.open = handshake.split()
        self.transcript = hashlib.sha256(hellos).hexdigest()
        self.wire.write(envelope("ENCRYPTION_CONFIRM", {"transcript": self.transcript}))
        confirm = json.loads(self.wire.read())
        if (confirm["type"], confirm["payload"]) != ("ENCRYPTION_CONFIRM", {"transcript": self.transcript}):
            raise Violation("it has seen other hellos")

    def start(self):
        self.wire.socket.settimeout(None)
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.reads, self.handles)]
        for thread in self.threads:
            thread.start()

    # --- sending ---

    def register(self, message_id, items=None):
        with self.lock:
            if self.over:
                raise Closed
            waiting = self.waiting[message_id] = Waiting(message_id, items)
            return waiting

    def numbered(self, waiting, number):
        waiting.number = number
        self.by_number[number] = waiting

    def ask(self, kind, payload, chunked=False, **members):
        """Sends a message that is answered: a request, or any other one."""
        self.acknowledge()  # a handler that waits here is not to keep others waiting
        waiting = self.register(new_id(), members.get("items"))
        body = envelope(kind, payload, waiting.id, **members)
        if chunked or len(body) > MAX_BODY:
            self.send_chunked(body)
        else:
            self.use_credit(1)
            with self.wire.lock, self.lock:
                self.numbered(waiting, self.wire.sent + 1)
                self.wire.write(body)
        return waiting

    def send_unanswered(self, kind, payload):
        """Sends a message whose success nobody needs to hear of."""
        self.use_credit(1)
        self.wire.write(envelope(kind, payload, ack=False))

    def control(self, kind, payload, in_reply_to=None):
        self.wire.write(envelope(kind, payload, in_reply_to=in_reply_to))

    def use_credit(self, messages):
        if "credit" in self.has:
            with self.credited:
                if not self.credited.wait_for(lambda: self.credit >= messages or self.over, PATIENCE):
                    raise Failed("silence", "no credit was given")
                self.credit -= messages

    def cancel(self, waiting):
        self.control("CANCEL", {"requestId": waiting.id})

    def grant(self, waiting, items):
        waiting.granted += items
        self.control("ITEMS", {"requestId": waiting.id, "items": items})

    def send_batch(self, messages):
        """Sends messages, as type and payload, in one frame; gives what came of them."""
        parts = [(new_id(), kind, payload) for kind, payload in messages]
        replies = [self.register(message_id) for message_id, *_ in parts]
        batch = self.register(new_id())
        self.batches[batch.id] = len(parts)
        self.use_credit(len(parts))
        inside = [json.loads(envelope(kind, payload, message_id)) for message_id, kind, payload in parts]
        self.wire.write(envelope("BATCH", {"messages": inside}, batch.id))
        self.seen["batches sent"] += 1
        outcomes = batch.answer()
        for waiting, outcome in zip(replies, outcomes):
            if outcome.get("replied"):
                outcome["reply"] = waiting.answer()
            self.waiting.pop(waiting.id, None)
        return outcomes

    def send_chunked(self, body, digest=None):
        """Sends a body in pieces."""
        transfer, at = self.begin_chunked(body, digest)
        self.send_pieces(body, transfer, at, len(body))
        return transfer

    def begin_chunked(self, body, digest=None):
        """Begins a transfer: its number, and from where the other side wants the body."""
        transfer = next(self.numbers)
        state = self.outgoing[transfer] = {"from": None, "to": 0, "end": None}
        digest = digest or hashlib.sha256(body).hexdigest()
        self.control("CHUNKS_BEGIN", {"transfer": transfer, "bytes": len(body), "sha256": digest})
        self.wait_until(state, lambda: state["from"] is not None)
        return transfer, state["from"]

    def send_pieces(self, body, transfer, at, goal):
        """Sends the pieces up to there, as fast as they are asked for."""
        state = self.outgoing[transfer]
        while at < goal:
            self.wait_until(state, lambda: state["to"] > at)
            while at < min(state["to"], goal):
                data = body[at:min(at + MAX_DATA, state["to"], goal)]
                self.wire.write(CHUNK_HEAD.pack(2, transfer, at) + data)
                self.seen["pieces sent"] += 1
                at += len(data)

    def wait_until(self, state, ready):
        """Waits for what the receiver of a transfer says of it."""
        with self.moved:
            if not self.moved.wait_for(lambda: ready() or state["end"] or self.over, PATIENCE):
                raise Failed("silence", "the receiver of a body says nothing")
            if state["end"]:
                raise Failed(state["end"]["code"], state["end"].get("error"))
            if self.over:
                raise Closed

    # --- reading ---

    def reads(self):
        why = Closed()
        try:
            while True:
                body = self.wire.read()
                self.take(body, self.wire.received)
        except Closed:
            pass
        except (Violation, noise.Broken, lz4.Broken, KeyError, TypeError, ValueError) as violation:
            why = violation
        self.wire.close()
        for state in self.incoming.values():
            self.kept.keep(state["begin"], state["data"])
        with self.lock:
            self.over = why
            for waiting in self.waiting.values():
                waiting.answers.put(("failure", Failed("lost", "the connection was lost")))
            for request in self.under_way.values():
                request.stop()
        for condition in (self.credited, self.moved):
            with condition:
                condition.notify_all()
        self.inbox.put(None)
        self.ended.set()

    def take(self, body, number):
        """A body: of a frame, or None for the number of one that came in chunks."""
        if body[0] == 1:
            if "lz4" not in self.has:
                raise Violation("a compressed body, which was not negotiated")
            body = lz4.unpack(body)
            self.seen["compressed received"] += 1
            if body[0] == 1:
                raise Violation("a compressed body in a compressed one")
        if body[0] == 2:
            if "chunks" not in self.has:
                raise Violation("a piece, which was not negotiated")
            return self.piece(body)
        try:
            message = read_envelope(body)
        except (ValueError, RecursionError):
            self.unreadable += 1
            if self.unreadable > 3:
                raise Violation("too much that is no envelope") from None
            return None
        return self.arrived(message, number)

    def arrived(self, message, number):
        kind, payload = message["type"], message.get("payload")
        if kind in CONTROL and (CONTROL[kind] is None or CONTROL[kind] in self.has):
            return getattr(self, "on_" + kind.lower(), lambda *_: None)(message, payload)
        answered = message.get("inReplyTo")
        if answered is not None:
            if malformed_member(message, self.has) == "item":
                raise Violation("an item without a number")
            return self.on_reply(message, answered)
        if kind == "BATCH" and "batch" in self.has:
            return self.on_batch(message, payload)
        wrong = malformed_member(message, self.has)
        request = Request(self, {"id": message["id"], "type": kind} if wrong else message, number)
        if wrong:
            return self.answer(request, failure=("malformed", f"Malformed message: `{wrong}`"))
        return self.enqueue(request)

    def enqueue(self, request):
        with self.lock:
            self.under_way[request.id] = request
        if request.until is not None and "requests" in self.has:
            timer = threading.Timer(request.until - time.monotonic(), request.stop)
            timer.daemon = True
            timer.start()
        self.inbox.put(request)

    def on_goodbye(self, _, payload):
        self.goodbye = payload["reason"]
        self.wire.close()

    def on_credit(self, _, payload):
        with self.credited:
            self.credit += payload["messages"]
            self.credited.notify_all()

    def settle(self, waiting, answer):
        with self.lock:
            if waiting is None or self.waiting.pop(waiting.id, None) is None:
                self.seen["late answers"] += 1
                return
            self.by_number.pop(waiting.number, None)
        waiting.answers.put(answer)

    def on_acknowledgment(self, _, payload):
        answer = ("reply", None) if payload["success"] else (
            "failure", Failed(payload.get("code"), payload.get("error")))
        self.settle(self.waiting.get(payload["originalMessageId"]), answer)

    def on_acknowledgments(self, _, payload):
        ranges, failed = payload.get("handled", []), payload.get("failed", [])
        if len(ranges) > MAX_RANGES or len(failed) > MAX_RANGES:
            raise Violation("too many ranges or failures")
        for first, last in ranges:
            if not (whole(first, 1, last) and whole(last, 1, self.wire.sent)):
                raise Violation(f"a range from {first} to {last}")
        for failure in failed:
            if not whole(failure["frame"], 1, self.wire.sent):
                raise Violation(f"a failure of frame {failure['frame']}")
        for failure in failed:
            why = Failed(failure.get("code"), failure.get("error"))
            if failure["frame"] in self.by_number:
                self.settle(self.by_number[failure["frame"]], ("failure", why))
        # Of what waits, not of what is in the ranges: those may be long.
        for number in sorted(self.by_number):
            if any(first <= number <= last for first, last in ranges):
                self.settle(self.by_number[number], ("reply", None))
                self.seen["acknowledged by range"] += 1
        self.seen["ranges received"] += 1

    def on_reply(self, message, answered):
        waiting, item = self.waiting.get(answered), message.get("item")
        if item is None or "requests" not in self.has:
            return self.settle(waiting, ("reply", message))
        if waiting is None:
            self.seen["late answers"] += 1
            return None
        waiting.arrived += 1
        if item != waiting.arrived or item > waiting.granted:
            raise Violation(f"item {item} is not the next one, or was not granted")
        self.seen["items received"] += 1
        return waiting.answers.put(("item", message))

    def on_cancel(self, _, payload):
        with self.lock:
            request = self.under_way.get(payload["requestId"])
            # A message that wants neither is no request, and is not cancelled.
            if request and ("deadline" in request.message or "items" in request.message):
                request.cancelled = True
                request.stop()

    def on_items(self, _, payload):
        if not whole(payload["items"], 1, MAX_ITEMS):
            raise Violation("a grant of no items")
        with self.lock:
            if request := self.under_way.get(payload["requestId"]):
                request.grant(payload["items"])

    # --- batches ---

    def on_batch(self, message, payload):
        parts = (payload or {}).get("messages")
        banned = {"ack", "items", "item", "inReplyTo"}
        good = isinstance(parts, list) and 1 <= len(parts) <= MAX_BATCH and all(
            isinstance(part, dict) and not banned & part.keys() and part.get("type") not in CONTROL
            and part.get("type") != "BATCH" and not malformed_member(part, self.has)
            and all(type(part.get(name)) is str for name in ("id", "type", "timestamp"))
            for part in parts)
        if not good:
            request = Request(self, {"id": message["id"], "type": "BATCH"}, None)
            return self.answer(request, failure=("malformed", "Malformed message: no batch"))
        batch = {"id": message["id"], "outcomes": [], "size": len(parts)}
        self.seen["batches received"] += 1
        for part in parts:
            self.enqueue(Request(self, part, None, batch))
        return None

    def on_batch_outcomes(self, message, payload):
        expected = self.batches.pop(message["inReplyTo"], None)
        if expected is not None and len(payload["outcomes"]) != expected:
            raise Violation("another number of outcomes than of messages")
        self.settle(self.waiting.get(message["inReplyTo"]), ("reply", payload["outcomes"]))

    # --- chunks ---

    def on_chunks_begin(self, _, payload):
        transfer, size = payload["transfer"], payload["bytes"]
        if not whole(transfer, self.last_incoming + 1, 2**32 - 1):
            raise Violation("a number of a transfer that was used before")
        self.last_incoming = transfer
        if size > PAYLOAD or len(self.incoming) >= MAX_TRANSFERS:
            code = "too_large" if size > PAYLOAD else "busy"
            return self.control("CHUNKS_END", {"transfer": transfer, "code": code, "error": code})
        data = self.kept.take(payload)
        state = self.incoming[transfer] = {"begin": payload, "data": data, "from": len(data), "to": 0}
        return self.take_more(transfer, state)

    def take_more(self, transfer, state):
        state["to"] = min(len(state["data"]) + WINDOW, state["begin"]["bytes"])
        self.control("CHUNKS_TAKE", {"transfer": transfer, "from": state["from"], "to": state["to"]})

    def piece(self, body):
        transfer, offset, data = read_piece(body)
        state = self.incoming.get(transfer)
        if state is None:
            if transfer <= self.last_incoming:
                return None  # it was ended, and this was under way
            raise Violation("a piece of nothing")
        if offset != len(state["data"]) or offset + len(data) > state["to"]:
            raise Violation("a piece out of order, or beyond what was asked for")
        state["data"] += data
        self.seen["pieces received"] += 1
        begin = state["begin"]
        if len(state["data"]) < begin["bytes"]:
            if state["to"] - len(state["data"]) < WINDOW // 2 and state["to"] < begin["bytes"]:
                self.take_more(transfer, state)
            return None
        del self.incoming[transfer]
        whole_body = bytes(state["data"])
        if hashlib.sha256(whole_body).hexdigest() != begin["sha256"].lower():
            return self.control("CHUNKS_END", {"transfer": transfer, "code": "hash", "error": "another body"})
        return self.take(whole_body, None)

    def on_chunks_take(self, _, payload):
        with self.moved:
            state = self.outgoing.get(payload["transfer"])
            if state:
                if state["from"] not in (None, payload["from"]) or payload["to"] <= state["to"]:
                    raise Violation("a step back")
                state["from"], state["to"] = payload["from"], payload["to"]
                self.moved.notify_all()

    def on_chunks_end(self, _, payload):
        """`abandoned` is said by the sender of a transfer, everything else by its receiver."""
        if payload["code"] == "abandoned":
            self.incoming.pop(payload["transfer"], None)
            return
        with self.moved:
            if state := self.outgoing.get(payload["transfer"]):
                state["end"] = payload
                self.moved.notify_all()

    # --- handling ---

    def handles(self):
        while (request := self.inbox.get()) is not None:
            try:
                self.handle(request)
                if self.inbox.empty() or len(self.handled) + len(self.failures) >= ACKNOWLEDGE_AFTER:
                    self.acknowledge()
                    self.give_credit()
            except Closed:
                pass

    def handle(self, request):
        with self.lock:
            request.begun = True
            late = request.until is not None and time.monotonic() >= request.until
        reply = failure = None
        if request.cancelled:
            failure = ("cancelled", "the request was cancelled")
        elif late and "requests" in self.has:
            failure = ("deadline", "the deadline has passed")
        elif request.kind not in self.handlers:
            failure = ("no_handler", f"No handler registered for message type: {request.kind}")
        else:
            try:
                reply = self.handlers[request.kind](request)
            except Failed as failed:
                failure = (failed.code, failed.error)
        with self.lock:
            self.under_way.pop(request.id, None)
        self.answer(request, reply, failure)

    def answer(self, request, reply=None, failure=None):
        """The one final answer to a message."""
        with self.lock:
            # What came in chunks has used none.
            self.used += request.number is not None or request.batch is not None
        if reply:
            kind, payload = reply
            body = envelope(kind, payload, in_reply_to=request.id)
            self.send_chunked(body) if len(body) > MAX_BODY else self.wire.write(body)
        code, error = failure or (None, None)
        said = {} if failure is None else {"error": error, "code": code}
        if request.batch:
            outcome = {"success": failure is None, **said, **({"replied": True} if reply else {})}
            return self.outcome(request.batch, outcome)
        if reply or (failure is None and request.message.get("ack") is False and "noAck" in self.has):
            return None
        if request.number is not None and "ackRanges" in self.has:
            with self.lock:
                if failure:
                    self.failures.append({"frame": request.number, **said})
                else:
                    self.handled.append(request.number)
            return self.acknowledge() if failure else None
        payload = {"originalMessageId": request.id, "success": failure is None, "timestamp": now(), **said}
        return self.control("ACKNOWLEDGMENT", payload)

    def outcome(self, batch, outcome):
        batch["outcomes"].append(outcome)
        if len(batch["outcomes"]) == batch["size"]:
            self.control("BATCH_OUTCOMES", {"outcomes": batch["outcomes"]}, in_reply_to=batch["id"])

    def acknowledge(self):
        """Says what came of the messages that were handled since the last time."""
        with self.lock:
            handled, failed = sorted(self.handled), self.failures
            self.handled, self.failures = [], []
        ranges = []
        for number in handled:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        if ranges or failed:
            payload = {**({"handled": ranges} if ranges else {}), **({"failed": failed} if failed else {})}
            self.control("ACKNOWLEDGMENTS", payload)
            self.seen["ranges sent"] += 1

    def give_credit(self):
        with self.lock:
            used, self.used = self.used, 0
        if used and "credit" in self.has:
            self.control("CREDIT", {"messages": used})

    def close(self):
        """Says goodbye, and waits until the other side has closed."""
        try:
            self.control("GOODBYE", {"reason": "done"})
        except Closed:
            pass
        if not self.ended.wait(PATIENCE):
            self.wire.close()
            raise Failed("silence", "it does not close")
        self.wire.socket.close()

    def cut(self):
        """Ends the connection without a word."""
        self.wire.close()
        self.ended.wait(PATIENCE)
        self.wire.socket.close()


def handshake_of(protocol, known, is_client):
    """A side's part, with a key that both know; a protocol that does not go with it is an error."""
    if "psk" in known:
        if "NNpsk0" not in protocol:
            raise KeyError(protocol)
        return noise.Handshake(protocol, is_client, psk=known["psk"])
    mine, other = ("client", "service") if is_client else ("service", "client")
    if "_KK_" not in protocol:
        raise KeyError(protocol)
    return noise.Handshake(protocol, is_client, secret=known[mine], other=noise.public(known[other]))


if __name__ == "__main__":
    import talks
    sys.exit(talks.main(sys.argv[1:]))
