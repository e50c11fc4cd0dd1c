#!/usr/bin/env python3
"""The Noise of docs/protocol.md, "Encryption", with Python's standard library alone.

Written from revision 34 of the specification (https://noiseprotocol.org/noise.html), RFC 7748 for
X25519, RFC 8439 for ChaChaPoly, FIPS 197 and SP 800-38D for AESGCM. To be read and to check
others by: it is slow, and takes a time that depends on the keys.

    python3 golden/noise.py        holds it against golden/extensions/noise.json
"""

import hashlib
import hmac
import json
import os
import struct
import sys
from pathlib import Path

PROLOGUE = b"migration-ipc encryption 1"
REKEY_AFTER = 16384  # records
MAX_PLAIN = 65519  # bytes of the sequence of frames in one record
TAG = 16


class Broken(Exception):
    """What was received is not what the other side has sealed."""


# --- X25519 --------------------------------------------------------------------------------------

P = 2**255 - 19


def x25519(scalar, point):
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, "little")
    x1 = int.from_bytes(point, "little") % 2**255 % P
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in range(254, -1, -1):
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b = (x2 + z2) % P, (x2 - z2) % P
        da, cb = (x3 - z3) * a % P, (x3 + z3) * b % P
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        e = (a * a - b * b) % P
        x2, z2 = a * a * b * b % P, e * (a * a + 121665 * e) % P
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def public(secret):
    return x25519(secret, (9).to_bytes(32, "little"))


# --- ChaChaPoly ----------------------------------------------------------------------------------

QUARTERS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
            (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]


def chacha_block(key, counter, nonce):
    start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
    s = list(start)
    for _ in range(10):
        for a, b, c, d in QUARTERS:
            for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = s[x] + s[y] & 0xFFFFFFFF
                word = s[z] ^ s[x]
                s[z] = (word << turn | word >> 32 - turn) & 0xFFFFFFFF
    return struct.pack("<16I", *(x + y & 0xFFFFFFFF for x, y in zip(s, start)))


def xor_stream(data, block):
    """The data with a stream of blocks over it, of which `block` makes the one of a number."""
    out = bytearray()
    for number, at in enumerate(range(0, len(data), len(block(0)))):
        piece = block(number)
        out += bytes(x ^ y for x, y in zip(data[at:at + len(piece)], piece))
    return bytes(out)


def padded(data):
    return data + bytes(-len(data) % 16)


class ChaChaPoly:
    def __init__(self, key):
        self.key = key

    @staticmethod
    def nonce(n):
        return bytes(4) + struct.pack("<Q", n)

    def crypt(self, n, data):
        return xor_stream(data, lambda number: chacha_block(self.key, number + 1, self.nonce(n)))

    def tag(self, n, ad, sealed):
        key = chacha_block(self.key, 0, self.nonce(n))
        r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
        total = 0
        data = padded(ad) + padded(sealed) + struct.pack("<QQ", len(ad), len(sealed))
        for at in range(0, len(data), 16):
            total = (total + int.from_bytes(data[at:at + 16] + b"\1", "little")) * r % (2**130 - 5)
        return ((total + int.from_bytes(key[16:32], "little")) % 2**128).to_bytes(16, "little")


# --- AESGCM --------------------------------------------------------------------------------------

def times_x(byte):
    return (byte << 1 ^ (0x1B if byte & 0x80 else 0)) & 0xFF


def make_sbox():
    sbox, p, q = [0x63] * 256, 1, 1
    while True:
        p ^= times_x(p)  # times 3
        for shift in (1, 2, 4):  # divided by 3
            q = (q ^ q << shift) & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        turned = q ^ (q << 1 | q >> 7) ^ (q << 2 | q >> 6) ^ (q << 3 | q >> 5) ^ (q << 4 | q >> 4)
        sbox[p] = (turned & 0xFF) ^ 0x63
        if p == 1:
            return sbox


SBOX = make_sbox()


class AESGCM:
    def __init__(self, key):
        words, factor = [list(key[at:at + 4]) for at in range(0, 32, 4)], 1
        while len(words) < 60:
            word = words[-1]
            if len(words) % 8 == 0:
                word = [SBOX[byte] for byte in word[1:] + word[:1]]
                word[0] ^= factor
                factor = times_x(factor)
            elif len(words) % 8 == 4:
                word = [SBOX[byte] for byte in word]
            words.append([x ^ y for x, y in zip(words[-8], word)])
        self.rounds = [sum(words[at:at + 4], []) for at in range(0, 60, 4)]
        self.h = int.from_bytes(self.block(bytes(16)), "big")

    @staticmethod
    def nonce(n):
        return bytes(4) + struct.pack(">Q", n)

    def block(self, data):
        s = [x ^ y for x, y in zip(data, self.rounds[0])]
        for number, key in enumerate(self.rounds[1:], 1):
            s = [SBOX[s[(at + 4 * (at % 4)) % 16]] for at in range(16)]
            if number < 14:
                mixed = []
                for at in range(0, 16, 4):
                    c = s[at:at + 4]
                    every = c[0] ^ c[1] ^ c[2] ^ c[3]
                    mixed += [c[i] ^ every ^ times_x(c[i] ^ c[(i + 1) % 4]) for i in range(4)]
                s = mixed
            s = [x ^ y for x, y in zip(s, key)]
        return bytes(s)

    def counter(self, n, number):
        return self.block(self.nonce(n) + struct.pack(">I", number))

    def crypt(self, n, data):
        return xor_stream(data, lambda number: self.counter(n, number + 2))

    def tag(self, n, ad, sealed):
        total = 0
        data = padded(ad) + padded(sealed) + struct.pack(">QQ", 8 * len(ad), 8 * len(sealed))
        for at in range(0, len(data), 16):
            x, v, total = total ^ int.from_bytes(data[at:at + 16], "big"), self.h, 0
            for bit in range(127, -1, -1):
                if x >> bit & 1:
                    total ^= v
                v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        return bytes(x ^ y for x, y in zip(total.to_bytes(16, "big"), self.counter(n, 1)))


CIPHERS = {"ChaChaPoly": ChaChaPoly, "AESGCM": AESGCM}


# --- Noise, section 5 ----------------------------------------------------------------------------

class CipherState:
    def __init__(self, cipher, key):
        self.make, self.cipher, self.n = cipher, cipher(key), 0

    def seal(self, ad, plain):
        sealed = self.cipher.crypt(self.n, plain)
        sealed += self.cipher.tag(self.n, ad, sealed)
        self.n += 1
        return sealed

    def open(self, ad, data):
        sealed, tag = data[:-TAG], data[-TAG:]
        if len(data) < TAG or not hmac.compare_digest(tag, self.cipher.tag(self.n, ad, sealed)):
            raise Broken("a tag does not fit")
        plain = self.cipher.crypt(self.n, sealed)
        self.n += 1
        return plain

    def rekey(self):
        """Section 11.3 and 4.2. The nonce goes on."""
        self.cipher = self.make(self.cipher.crypt(2**64 - 1, bytes(32)))


PATTERNS = {  # what both know before, and the two messages
    "NNpsk0": ((), ("psk e", "e ee")),
    "KK": (("s", "rs"), ("e es ss", "e ee se")),
}


class Handshake:
    """One side of a handshake. `secret` is its static key, `other` the other side's public one; `e`
    is the ephemeral key, which only a vector fixes."""

    def __init__(self, protocol, initiator, psk=None, secret=None, other=None, e=None):
        _, pattern, curve, cipher, digest = protocol.split("_")
        assert (curve, digest) == ("25519", "SHA256")
        self.cipher, self.initiator, self.psk = CIPHERS[cipher], initiator, psk
        self.s, self.rs, self.e, self.re = secret, other, e or os.urandom(32), None
        name = protocol.encode()
        self.h = name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()
        self.ck, self.state = self.h, None
        self.mix_hash(PROLOGUE)
        known, self.messages = PATTERNS[pattern]
        self.has_psk = "psk" in pattern
        if known:
            ours, theirs = public(self.s), self.rs
            for key in (ours, theirs) if initiator else (theirs, ours):
                self.mix_hash(key)

    def mix_hash(self, data):
        self.h = hashlib.sha256(self.h + data).digest()

    def hkdf(self, data, count):
        secret = hmac.digest(self.ck, data, "sha256")
        outputs, last = [], b""
        for number in range(1, count + 1):
            last = hmac.digest(secret, last + bytes([number]), "sha256")
            outputs.append(last)
        return outputs

    def mix_key(self, data):
        self.ck, key = self.hkdf(data, 2)
        self.state = CipherState(self.cipher, key)

    def shared(self, token):
        """`es` is the initiator's ephemeral key and the responder's static one, and so on."""
        mine, other = token if self.initiator else reversed(token)
        ours, theirs = {"e": self.e, "s": self.s}[mine], {"e": self.re, "s": self.rs}[other]
        self.mix_key(x25519(ours, theirs))

    def token(self, token):
        if token == "psk":
            self.ck, mixed, key = self.hkdf(self.psk, 3)
            self.mix_hash(mixed)
            self.state = CipherState(self.cipher, key)
        else:
            self.shared(token)

    def mix_ephemeral(self, key):
        self.mix_hash(key)
        if self.has_psk:
            self.mix_key(key)

    def write(self, number):
        """The message of this number, 0 or 1, without a payload."""
        out = b""
        for token in self.messages[number].split():
            if token == "e":
                out = public(self.e)
                self.mix_ephemeral(out)
            else:
                self.token(token)
        tag = self.state.seal(self.h, b"")
        self.mix_hash(tag)
        return out + tag

    def read(self, number, message):
        if len(message) != 32 + TAG:
            raise Broken("a message of the handshake has 48 bytes")
        for token in self.messages[number].split():
            if token == "e":
                self.re = message[:32]
                self.mix_ephemeral(self.re)
            else:
                self.token(token)
        self.state.open(self.h, message[32:])
        self.mix_hash(message[32:])

    def split(self):
        """The records that this side sends, and those that it receives."""
        keys = [Records(CipherState(self.cipher, key)) for key in self.hkdf(b"", 2)]
        return keys if self.initiator else keys[::-1]


class Records:
    """One direction of a session."""

    def __init__(self, state):
        self.state = state

    def _counted(self):
        if self.state.n % REKEY_AFTER == 0:
            self.state.rekey()

    def seal(self, plain):
        sealed = self.state.seal(b"", plain)
        self._counted()
        return struct.pack("<H", len(sealed)) + sealed

    def open(self, sealed):
        """What follows the length of a record."""
        plain = self.state.open(b"", sealed)
        self._counted()
        return plain


# --- the vectors ---------------------------------------------------------------------------------

def both(vector):
    """Both sides of the handshake of a vector."""
    key = {name: bytes.fromhex(text) for name, text in vector["keys_hex"].items()}
    protocol = vector["protocol"]
    if "psk" in key:
        common = [{"psk": key["psk"]}] * 2
    else:
        secrets = key["client_static"], key["service_static"]
        common = [{"secret": one, "other": public(two)} for one, two in (secrets, secrets[::-1])]
    return (Handshake(protocol, True, e=key["client_ephemeral"], **common[0]),
            Handshake(protocol, False, e=key["service_ephemeral"], **common[1]))


def differences(vector):
    """What this implementation makes otherwise than a vector says."""
    client, service = both(vector)
    found = {}
    first = client.write(0)
    service.read(0, first)
    second = service.write(1)
    client.read(1, second)
    found["messages_hex"] = [first.hex(), second.hex()]
    found["handshake_hash_hex"] = client.h.hex()
    assert client.h == service.h
    at_client, at_service = client.split(), service.split()
    pairs = {"client": (at_client[0], at_service[1]), "service": (at_service[0], at_client[1])}
    found["records"] = []
    for record in vector["records"]:
        sends, receives = pairs[record["from"]]
        plain = bytes.fromhex(record["plain_hex"])
        while sends.state.n < record["number"]:  # those between are of no interest
            for side in (sends, receives):
                side.state.n += 1
                side._counted()
        sealed = sends.seal(plain)
        assert receives.open(sealed[2:]) == plain
        found["records"].append({**record, "record_hex": sealed.hex()})
    found["refused"] = []
    for broken in vector["refused"]:
        try:
            both(vector)[1].read(0, bytes.fromhex(broken["message_hex"]))
        except Broken:
            found["refused"].append(broken)
    return [name for name, value in found.items() if vector[name] != value]


def main():
    vectors = json.loads((Path(__file__).parent / "extensions" / "noise.json").read_text())
    failed = 0
    for vector in vectors:
        wrong = differences(vector)
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok'} {vector['name']} {' '.join(wrong)}".rstrip())
    return 1 if failed or not vectors else 0


if __name__ == "__main__":
    sys.exit(main())
