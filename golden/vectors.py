"""Holds peer.py, lz4.py and noise.py to the vectors of golden/extensions; README.md has their form."""

import hashlib
import json
import socket
from pathlib import Path

import lz4
import noise
import peer

FOLDER = Path(__file__).resolve().parent / "extensions"


def capabilities(vector):
    agreed = peer.complete(vector["client"]) & peer.complete(vector["service"])
    return [one for one in peer.NEEDS if one in agreed] == vector["agreed"]


def members(vector):
    try:
        message = peer.read_envelope(vector["body"])
    except ValueError:
        return vector["reads_as"] is None
    if vector["reads_as"] is None:
        return False
    has, read = {"requests", "noAck"}, {"ack": True}
    for name in ("ack", "deadline", "items", "item"):
        value = message.get(name)
        read.setdefault(name, None)
        if value is not None:
            wrong = peer.malformed_member({name: value}, has)
            read[name] = "malformed" if wrong else value
    if vector["written"] and "seq" not in message:
        said = {name: message.get(name) for name in ("ack", "deadline", "items", "item")}
        written = json.loads(peer.envelope(message["type"], message["payload"], message["id"],
                                           message.get("inReplyTo"), **said))
        written["timestamp"] = message["timestamp"]
        if peer.compact(written).decode() != vector["body"]:
            return False
    return read == vector["reads_as"]


def bodies(vector):
    first = bytes.fromhex(vector["body_hex"])[0]
    return vector["kind"] == {1: "compressed", 2: "chunk"}.get(first, "json")


def chunks(vector):
    body = bytes.fromhex(vector["body_hex"]) + bytes(vector.get("zeros", 0))
    try:
        transfer, offset, data = peer.read_piece(body)
    except peer.Violation:
        return vector["reads_as"] is None
    expected = vector["reads_as"]
    return expected is not None and (transfer, offset, data) == (
        expected["transfer"], expected["offset"],
        bytes.fromhex(expected["data_hex"]) + bytes(expected.get("zeros", 0)))


def blocks(vector):
    try:
        original = lz4.unpack(bytes.fromhex(vector["body_hex"]))
    except lz4.Broken:
        return vector["original"] is None
    if vector["original"] is None:
        return False
    expected = vector["original"].encode() * vector.get("times", 1)
    return original == expected == lz4.unpack(lz4.pack(expected))


def acknowledgments(vector):
    ours, theirs = socket.socketpair()
    one = peer.Peer(ours, {})
    one.wire.sent = len(vector["frames"])
    waiting = {}
    for number, frame in enumerate(vector["frames"], 1):
        if "waits" in frame:
            waiting[frame["waits"]] = one.register(frame["waits"])
            one.numbered(waiting[frame["waits"]], number)
    closes = False
    try:
        one.on_acknowledgments({}, vector["payload"])
    except (peer.Violation, KeyError, TypeError, ValueError):
        closes = True
    ours.close(), theirs.close()
    answers = {name: wait.answers.get_nowait() for name, wait in waiting.items()
               if not wait.answers.empty()}
    handled = [name for name, (kind, _) in answers.items() if kind == "reply"]
    failed = {name: why.code for name, (kind, why) in answers.items() if kind == "failure"}
    return (handled, failed, closes) == (vector["handled"], vector["failed"], vector["closes"])


def transcript(vector):
    hellos = b"".join(peer.frame(vector[name].encode()) for name in ("client_body", "service_body"))
    return hashlib.sha256(hellos).hexdigest() == vector["transcript"]


CHECKS = {
    "capabilities": capabilities, "members": members, "bodies": bodies, "chunks": chunks,
    "lz4": blocks, "acknowledgments": acknowledgments, "transcript": transcript,
    "noise": lambda vector: not noise.differences(vector),
}


def check_all():
    """Whether all hold; prints those that do not, and how many there are of each kind."""
    good = True
    for name, check in CHECKS.items():
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        wrong = [vector["name"] for vector in found if not check(vector)]
        for one in wrong:
            print(f"FAILED {name}.json: {one}")
        print(f"{'FAILED' if wrong else 'ok'} {name}.json: {len(found) - len(wrong)} of {len(found)}")
        good = good and bool(found) and not wrong
    return good
