"""The compression of docs/protocol.md, "Compression", with Python's standard library alone.

The block format is that of https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md: sequences
of a token, literals, and a match, of which the last one has literals alone.
"""

MAX_BODY = 1_048_576
MIN_MATCH = 4
LAST_LITERALS = 5  # a block ends with as many literals, at least
MATCH_LIMIT = 12  # the last match begins as many bytes before the end, at least
MAX_OFFSET = 65535


class Broken(Exception):
    """A block that is none, or of another length than was said."""


def extended(length):
    """The bytes of a length behind the 15 that its half of the token holds."""
    out = bytearray()
    length -= 15
    while length >= 255:
        out.append(255)
        length -= 255
    out.append(length)
    return out


def sequence(literals, offset=None, match=MIN_MATCH):
    match -= MIN_MATCH
    out = bytearray([min(len(literals), 15) << 4 | (min(match, 15) if offset else 0)])
    if len(literals) >= 15:
        out += extended(len(literals))
    out += literals
    if offset:
        out += offset.to_bytes(2, "little")
        if match >= 15:
            out += extended(match)
    return out


def compress(data):
    """Takes the nearest earlier place of the next four bytes, if there is one."""
    out, places, at, start = bytearray(), {}, 0, 0
    while at + MATCH_LIMIT <= len(data):
        key = data[at:at + MIN_MATCH]
        earlier = places.get(key)
        places[key] = at
        if earlier is None or at - earlier > MAX_OFFSET:
            at += 1
            continue
        end = at + MIN_MATCH
        while end < len(data) - LAST_LITERALS and data[end] == data[end - at + earlier]:
            end += 1
        out += sequence(data[start:at], at - earlier, end - at)
        at = start = end
    return bytes(out + sequence(data[start:]))


def decompress(block, length):
    """The original, which has exactly this length. Never holds more than that."""
    out, at = bytearray(), 0

    def more(size):
        nonlocal at
        taken = block[at:at + size]
        if len(taken) < size:
            raise Broken("a block that ends within a sequence")
        at += size
        return taken

    def whole(half):
        total, byte = half, 255 if half == 15 else 0
        while byte == 255:
            byte = more(1)[0]
            total += byte
            if total > length:
                raise Broken("more than was said")
        return total

    while True:
        token = more(1)[0]
        literals = more(whole(token >> 4))
        if len(out) + len(literals) > length:
            raise Broken("more than was said")
        out += literals
        if at == len(block):
            break
        offset = int.from_bytes(more(2), "little")
        match = whole(token & 15) + MIN_MATCH
        if not 1 <= offset <= len(out):
            raise Broken("a match before the beginning")
        if len(out) + match > length:
            raise Broken("more than was said")
        source = out[-offset:]
        out += (source * (match // offset + 1))[:match]
    if len(out) != length:
        raise Broken("less than was said")
    return bytes(out)


def pack(body):
    """A body as a compressed one, whether that is shorter or not."""
    return b"\x01" + len(body).to_bytes(4, "little") + compress(body)


def unpack(body):
    """The original of a compressed body."""
    length = int.from_bytes(body[1:5], "little")
    if len(body) < 6 or body[0] != 1 or not 1 <= length <= MAX_BODY:
        raise Broken("no compressed body")
    return decompress(body[5:], length)
