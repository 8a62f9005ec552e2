"""Time near-duplicate search against datasketch on generated rows with planted duplicates, as ratios.

    pip install 'danlu[bench]'
    python benchmarks/dedup.py               # ratios on 20,000 rows, both in one process
    python benchmarks/dedup.py --million     # time and memory of `danlu data dedup` on 1,000,000 short rows

Both sides cut the same texts into the same word 3-grams, use the same threshold, num_perm and bands (so that recall is
equal), and check the true Jaccard similarity of what their bands find. Recall is over all planted pairs whose true
similarity reaches the threshold.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.dedup.clusters import ShingleSets, UnionFind, join_similar
from danlu.data.dedup.config import DedupConfig
from danlu.data.dedup.minhash import MinHasher, choose_bands
from danlu.data.dedup.run import dedup
from danlu.data.dedup.shingles import shingle_sets

NGRAM, NUM_PERM, CHUNK, PART = 3, 128, 256, 20_000
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ai", "or", "en")]


def make_rows(number: int, share: float, words: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Return texts, and pairs (original, copy); a copy has up to a tenth of its words replaced."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(20_000)]
    texts: list[str] = []
    pairs: list[tuple[int, int]] = []
    while len(texts) < number:
        if texts and rng.random() < share:
            original = rng.randrange(len(texts))
            copy = texts[original].split()
            for _ in range(rng.randint(0, max(1, len(copy) // 10))):
                copy[rng.randrange(len(copy))] = rng.choice(vocabulary)
            pairs.append((original, len(texts)))
            texts.append(" ".join(copy))
        else:
            texts.append(" ".join(rng.choices(vocabulary, k=rng.randint(words // 2, words * 3 // 2))))
    return texts, pairs


def word_sets(texts: Sequence[str]) -> list[set[str]]:
    """Return the word 3-grams of each text."""
    split = [text.split() for text in texts]
    return [{" ".join(words[i:i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))} for words in split]


def ours(texts: Sequence[str], threshold: float) -> set[tuple[int, int]]:
    """Return the pairs (row, another of its cluster) that danlu joins, as roots."""
    bands = choose_bands(threshold, NUM_PERM, 0.95)
    hasher = MinHasher(bands, 0)
    values, counts, keys = [], [], []
    for start in range(0, len(texts), CHUNK):
        shingles, number = shingle_sets(texts[start:start + CHUNK], NGRAM)
        keys.append(hasher.band_keys(hasher.signatures(shingles, number)))
        values.append(shingles)
        counts.append(number)
    sets, rows = UnionFind(len(texts)), np.arange(len(texts))
    stored = ShingleSets(np.concatenate(values), np.concatenate(counts))
    for band in np.concatenate(keys, axis=1):
        join_similar(band, rows, sets, stored, threshold)
    return {(int(root), row) for row, root in enumerate(sets.roots()) if root != row}


def theirs(texts: Sequence[str], threshold: float) -> set[tuple[int, int]]:
    """Return the pairs that datasketch's MinHashLSH finds, checked by true similarity and joined."""
    from datasketch import MinHash, MinHashLSH

    bands = choose_bands(threshold, NUM_PERM, 0.95)
    index = MinHashLSH(params=(bands.bands, bands.rows), num_perm=NUM_PERM)
    grams = word_sets(texts)
    sets = UnionFind(len(texts))
    for row, gram in enumerate(grams):
        sketch = MinHash(num_perm=NUM_PERM)
        sketch.update_batch([one.encode() for one in gram])
        for other in index.query(sketch):
            if jaccard(gram, grams[other]) >= threshold:
                sets.join(row, other)
        index.insert(row, sketch)
    return {(int(root), row) for row, root in enumerate(sets.roots()) if root != row}


def jaccard(one: set[str], other: set[str]) -> float:
    """Return |A and B| / |A or B|."""
    return len(one & other) / len(one | other)


def quality(found: set[tuple[int, int]], wanted: Sequence[tuple[int, int]]) -> float:
    """Return the share of wanted pairs whose rows are in one cluster."""
    root = {row: top for top, row in found}
    together = sum(root.get(one, one) == root.get(other, other) for one, other in wanted)
    return together / len(wanted) if wanted else 1.0


def timed(search: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return the result and the seconds it took."""
    start = time.perf_counter()
    result = search(*arguments)
    return result, time.perf_counter() - start


def compare(number: int) -> None:
    """Print seconds, ratio and recall for both, for several lengths and thresholds."""
    print("words  threshold  danlu s  datasketch s  ratio  recall danlu  recall datasketch")
    for words in (12, 60, 300):
        rows = min(number, number * 60 // words)
        texts, pairs = make_rows(rows, 0.3, words, 1)
        grams = word_sets(texts)
        for threshold in (0.5, 0.8):
            wanted = [pair for pair in pairs if jaccard(grams[pair[0]], grams[pair[1]]) >= threshold]
            (mine, fast), (other, slow) = timed(ours, texts, threshold), timed(theirs, texts, threshold)
            print(f"{words:5}  {threshold:9}  {fast:7.2f}  {slow:12.2f}  {slow / fast:5.1f}  "
                  f"{quality(mine, wanted):12.4f}  {quality(other, wanted):17.4f}", flush=True)


def million(number: int) -> None:
    """Print the time and memory of `danlu data dedup` over files on disk."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        with source.open("w", encoding="utf-8") as file:
            # A part at a time, so that the memory measured is not that of the generator.
            for seed in range(0, number, PART):
                texts, _ = make_rows(min(PART, number - seed), 0.3, 20, seed)
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        config = DedupConfig.model_validate({"input": str(source), "output": str(out), "num_workers": 2})
        report, seconds = timed(dedup, config)
        size = source.stat().st_size / 2**20
    peak = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{number} rows, {size:.0f} MiB: {seconds:.1f} s, {number / seconds:.0f} rows/s; peak {peak[0]:.2f} GiB "
          f"in the main process, {peak[1]:.2f} GiB in a worker")
    print("\n".join(report.lines()[:3]))


def main() -> None:
    """Run the chosen part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--million", action="store_true")
    chosen = parser.parse_args()
    if chosen.million:
        million(1_000_000 if chosen.rows == 20_000 else chosen.rows)
    else:
        compare(chosen.rows)


if __name__ == "__main__":
    sys.exit(main())
