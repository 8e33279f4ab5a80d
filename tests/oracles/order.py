"""The order of rows in Python integers, written from store/FORMAT.md §6 alone."""

import hashlib

MASK = (1 << 64) - 1
ROUNDS, GOLDEN = 6, 0x9E3779B97F4A7C15
PHILOX_M = 0xD2E7470EE14C6C93, 0xCA5A826395121157
PHILOX_W = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def subseed(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def permute(i, count, key):
    half = max(1, -(-(count - 1).bit_length() // 2))
    mask = (1 << half) - 1
    keys = [mix((key + r * GOLDEN) & MASK) for r in range(1, ROUNDS + 1)]
    while True:
        left, right = i >> half, i & mask
        for k in keys:
            left, right = right, left ^ (mix((right + k) & MASK) & mask)
        i = left << half | right
        if i < count:
            return i


def philox(key, count):
    """``count`` words of Philox4x64-10 (Salmon et al. 2011), the counter starting at 1."""
    words, counter = [], 1
    while len(words) < count:
        x = [counter & MASK, counter >> 64 & MASK, 0, 0]
        k = [key, 0]
        for _ in range(10):
            p0, p1 = PHILOX_M[0] * x[0], PHILOX_M[1] * x[2]
            x = [(p1 >> 64) ^ x[1] ^ k[0], p1 & MASK, (p0 >> 64) ^ x[3] ^ k[1], p0 & MASK]
            k = [(k[0] + PHILOX_W[0]) & MASK, (k[1] + PHILOX_W[1]) & MASK]
        words += x
        counter += 1
    return words[:count]


def shuffle(key, count):
    bits = (count - 1).bit_length() if count else 0
    low = (1 << bits) - 1
    keyed = sorted((word & ~low) | i for i, word in enumerate(philox(key, count)))
    return [word & low for word in keyed]


def order(parts, *, seed, epoch, window_rows, survives=lambda part, row: True):
    """The (part, row in part) of every surviving row, in order; ``parts`` is a list of (part, rows)."""
    chunks = [(p, c) for p, rows in parts for c in range(-(-rows // 256))]
    rows_of = dict(parts)
    width = max(1, window_rows // 256)
    key = subseed(f"{seed}/chunks/{epoch}")
    found = []
    for window in range(-(-len(chunks) // width)):
        ends = range(window * width, min((window + 1) * width, len(chunks)))
        chosen = sorted(permute(i, len(chunks), key) for i in ends)
        rows = [
            (part, row)
            for part, chunk in (chunks[c] for c in chosen)
            for row in range(chunk * 256, min((chunk + 1) * 256, rows_of[part]))
            if survives(part, row)
        ]
        found += [rows[i] for i in shuffle(subseed(f"{seed}/rows/{epoch}/{window}"), len(rows))]
    return found
