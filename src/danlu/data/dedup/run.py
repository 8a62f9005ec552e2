"""Drop duplicate rows: sketch every row, find clusters, write one row of each cluster and a ledger of the others."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import DataError
from danlu.data.clean.ledger import excerpt
from danlu.data.clean.output import WholeFiles, check_output, json_line
from danlu.data.clean.rows import joined
from danlu.data.clean.source import Chunk, data_files, fields_of, map_ordered, read_chunks
from danlu.data.dedup.clusters import UnionFind, join_equal, join_similar, members
from danlu.data.dedup.config import DedupConfig
from danlu.data.dedup.minhash import Bands
from danlu.data.dedup.shingles import Places
from danlu.data.dedup.sketch import Sketcher, SketchStore

EXACT, NEAR, BAD = "equal text", "near duplicate", "bad row"


@dataclass(slots=True)
class Clusters:
    """For every row the row that is kept of its cluster, and what was found on the way."""

    kept: Places
    is_exact: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    sizes: Counter[int]
    compared: int


@dataclass(slots=True)
class DedupReport:
    """What was read, dropped and kept."""

    counts: Counter[str]
    sizes: Counter[int]
    bands: Bands
    config: DedupConfig
    compared: int
    examples: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the table."""
        config, counts = self.config, self.counts
        shown = [f"{counts['read']} read, {counts['kept']} kept, {counts['read'] - counts['kept']} dropped: "
                 + ", ".join(f"{counts[reason]} {reason}" for reason in (EXACT, NEAR, BAD) if counts[reason] or
                             reason != BAD)]
        if not config.exact_only:
            shown.append(
                f"near means Jaccard similarity of {config.ngram}-grams of at least {config.threshold:g}; "
                f"{self.bands.bands} bands of {self.bands.rows} find a pair right there with probability "
                f"{self.bands.chance(config.threshold):.3f}; {self.compared} pairs compared")
        if self.sizes:
            biggest = ", ".join(f"{size} rows ({number}x)" for size, number in sorted(self.sizes.items())[:-4:-1])
            shown.append(f"{sum(self.sizes.values())} clusters; the largest: {biggest}")
        for example in self.examples:
            told = "" if example["similarity"] is None else f", similarity {example['similarity']:.2f}"
            shown += [f"  {example['dropped']} ({example['reason']} of {example['kept']}{told})",
                      f"    - {example['dropped_text']!r}", f"      {example['kept_text']!r}"]
        return shown


def dedup(config: DedupConfig) -> DedupReport:
    """Write the rows that stay and the ledger, both or neither."""
    output = Path(config.output)
    files = data_files(config.input, config.dataset_dir)
    check_output(output, files, overwrite=config.overwrite)
    check_output(config.ledger_path, [*files, output], overwrite=config.overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    sketcher = Sketcher(config)
    before = _state(files)
    with TemporaryDirectory(prefix=".dedup-", dir=output.parent) as folder, WholeFiles() as whole:
        store = SketchStore(Path(folder), sketcher.bands, config.verify)
        store.fill(map_ordered(sketcher, read_chunks(files), config.num_workers))
        if not len(store):
            raise DataError("no rows", where=", ".join(config.input), fix="give a file that is not empty")
        clusters = find_clusters(store, config)
        if _state(files) != before:
            raise DataError("the input changed while it was read", where=", ".join(config.input), fix="run it again")
        return _write(config, files, store, clusters, whole)


def _state(files: list[Path]) -> list[tuple[int, int]]:
    return [(stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in files)]


def find_clusters(store: SketchStore, config: DedupConfig) -> Clusters:
    """Return which row stands for each row: equal texts first, then similar ones among what differs."""
    good = np.ones(len(store), bool)
    good[list(store.bad)] = False
    rows = np.flatnonzero(good)
    sets = UnionFind(len(store))
    join_equal(store.digests()[:, rows], rows, sets)
    exact_roots = sets.roots().copy()
    compared = 0
    shingles = store.shingle_sets() if config.verify and not config.exact_only else None
    if not config.exact_only:
        counts = np.frombuffer(store.counts, np.int64)
        rows = rows[(exact_roots[rows] == rows) & (counts[rows] > 0)]
        for index in range(store.bands.bands):
            compared += join_similar(store.band(index)[rows], rows, sets, shingles, config.threshold)
    kept, sizes = choose_kept(sets.roots(), np.frombuffer(store.lengths, np.int64), config.keep)
    dropped = np.flatnonzero(kept != np.arange(len(store)))
    similarity = np.full(len(store), np.nan)
    is_exact = exact_roots == exact_roots[kept]
    similarity[dropped[is_exact[dropped]]] = 1.0
    near = dropped[~is_exact[dropped]]
    if shingles is not None:
        similarity[near] = shingles.jaccard(near, kept[near])
    return Clusters(kept, is_exact, similarity, sizes, compared)


def choose_kept(roots: Places, lengths: Places, rule: str) -> tuple[Places, Counter[int]]:
    """Return for every row the one kept of its cluster, and how many clusters have which size."""
    kept = np.arange(len(roots))
    sizes: Counter[int] = Counter()
    rules = {"first": lambda cluster: cluster[0], "last": lambda cluster: cluster[-1],
             "longest": lambda cluster: cluster[np.argmax(lengths[cluster])]}
    for cluster in members(roots):
        kept[cluster] = rules[rule](cluster)
        sizes[len(cluster)] += 1
    return kept, sizes


def _write(config: DedupConfig, files: list[Path], store: SketchStore, clusters: Clusters,
           whole: WholeFiles) -> DedupReport:
    stays = clusters.kept == np.arange(len(store))
    stays[list(store.bad)] = False
    report = DedupReport(Counter(read=len(store), kept=int(stays.sum())), clusters.sizes, store.bands, config,
                         clusters.compared)
    rows, ledger = whole.open(Path(config.output)), whole.open(config.ledger_path)
    examples = _choose_examples(clusters, config.examples)
    wanted = frozenset(row for dropped in examples for row in (dropped, int(clusters.kept[dropped])))
    texts: dict[int, str] = {}
    write = partial(kept_lines, config, np.packbits(stays), wanted)
    for lines, found in map_ordered(write, read_chunks(files), config.num_workers):
        rows.writelines(lines)
        texts.update(found)
    for entry in _entries(store, clusters, stays):
        report.counts[entry["reason"]] += 1
        ledger.write(json_line(entry, entry["source"]))
    report.examples = [_example(store, clusters, dropped, texts) for dropped in examples]
    summary = {"read": len(store), "kept": report.counts["kept"], **{name: report.counts[name] for name in
               (EXACT, NEAR, BAD)}, "clusters": sum(clusters.sizes.values()), "examples": report.examples}
    ledger.write(json_line(summary, str(config.ledger_path)))
    return report


def kept_lines(config: DedupConfig, stays_bits: NDArray[np.uint8], wanted: frozenset[int],
               chunk: Chunk) -> tuple[list[bytes], dict[int, str]]:
    """Return the lines of the rows that stay, and excerpts of the wanted ones."""
    lines: list[bytes] = []
    texts: dict[int, str] = {}
    for index, row in enumerate(chunk.rows, chunk.index):
        if stays_bits[index >> 3] >> (7 - (index & 7)) & 1:
            lines.append(json_line(row.value, f"{chunk.path}:{row.number}"))
        if index in wanted:
            fields = fields_of(row, chunk.path, config.columns)
            texts[index] = excerpt(joined([one for one in fields if one.is_one_of(config.only)]))
    return lines, texts


def _choose_examples(clusters: Clusters, number: int) -> list[int]:
    """Return the first dropped rows of each kind."""
    dropped = np.flatnonzero(clusters.kept != np.arange(len(clusters.kept)))
    is_exact = clusters.is_exact[dropped]
    return [int(row) for rows in (dropped[is_exact], dropped[~is_exact]) for row in rows[:number]]


def _entries(store: SketchStore, clusters: Clusters, stays: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    for row in np.flatnonzero(~stays).tolist():
        source = store.paths[store.files[row]]
        entry: dict[str, Any] = {"source": source, "row": store.numbers[row], "action": "dropped"}
        if row in store.bad:
            yield entry | {"reason": BAD, "detail": store.bad[row]}
            continue
        yield entry | {"reason": EXACT if clusters.is_exact[row] else NEAR,
                       "kept": store.origin(int(clusters.kept[row])), "similarity": _rounded(clusters.similarity[row])}


def _example(store: SketchStore, clusters: Clusters, dropped: int, texts: dict[int, str]) -> dict[str, Any]:
    kept = int(clusters.kept[dropped])
    return {"dropped": store.origin(dropped), "kept": store.origin(kept),
            "reason": EXACT if clusters.is_exact[dropped] else NEAR,
            "similarity": _rounded(clusters.similarity[dropped]),
            "dropped_text": texts.get(dropped, ""), "kept_text": texts.get(kept, "")}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
