"""Shingles against Python sets, bands against their formula, clusters against brute force, and the verb end to end."""

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.cli.main import main
from danlu.data.dedup.clusters import ShingleSets, UnionFind, join_similar, members
from danlu.data.dedup.minhash import Bands, MinHasher, choose_bands
from danlu.data.dedup.run import choose_kept
from danlu.data.dedup.shingles import ngrams, normalise, shingle_sets, tokenise

TEXTS = ["the cat sat on the mat", "The cat, sat on THE mat!", "今天天气很好", "今天 天气 很好", "我用Python3写代码",
         "", "...", "one", "one two", "naïve café", "a b c a b c a b c", "カタカナ", "don't stop", "x" * 5000,
         "क्या हाल है", "😀 emoji"]


def words_of(text: str) -> list[str]:
    """The tokens by a slow rule: runs of letters, marks and digits; Chinese and kana signs alone."""
    words, run = [], ""
    for sign in text + " ":
        is_alone = "\u3041" <= sign <= "\u3096" or "\u30a1" <= sign <= "\u30ff" or "\u3400" <= sign <= "\u9fff"
        is_word = (sign.isalnum() or sign in "\u094d\u093e\u093f\u0948\u0902") and not is_alone
        if run and not is_word:
            words.append(run)
            run = ""
        run += sign if is_word else ""
        words += [sign] if is_alone else []
    return words


def grams_of(text: str, n: int) -> set[tuple[str, ...]]:
    words = words_of(normalise(text))
    return {tuple(words[at:at + n]) for at in range(max(1, len(words) - n + 1))} if words else set()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shingles_are_the_sets_of_ngrams(n: int) -> None:
    """Numbers of different n-grams, and intersections of every two texts, are those of Python sets of strings."""
    values, counts = shingle_sets([normalise(text) for text in TEXTS], n)
    parts = [set(part.tolist()) for part in np.split(values, np.cumsum(counts)[:-1])]
    wanted = [grams_of(text, n) for text in TEXTS]
    assert list(map(len, parts)) == list(map(len, wanted))
    for one, other in combinations(range(len(TEXTS)), 2):
        assert len(parts[one] & parts[other]) == len(wanted[one] & wanted[other]), (TEXTS[one], TEXTS[other])


def test_shingles_do_not_depend_on_the_neighbours() -> None:
    """A text has the same shingles alone and among others."""
    texts = [normalise(text) for text in TEXTS]
    values, counts = shingle_sets(texts, 3)
    alone = [shingle_sets([text], 3)[0] for text in texts]
    assert np.array_equal(values, np.concatenate(alone)) and counts.tolist() == list(map(len, alone))


def test_units() -> None:
    """`a-bc 天` is 3 tokens: a, bc, 天; 5 by character, as every sign but the blank counts; 3 by word."""
    assert [len(tokenise(["a-bc 天"], unit).hash_T) for unit in ("auto", "char", "word")] == [3, 5, 3]
    assert [len(tokenise(["天气好"], unit).hash_T) for unit in ("auto", "char", "word")] == [3, 3, 1]


def test_short_texts_have_no_ngram_unless_whole() -> None:
    tokens = tokenise(["one two", "one two three"])
    assert ngrams(tokens, 3, whole_if_short=False)[1].tolist() == [2]
    assert ngrams(tokens, 3, whole_if_short=True)[1].tolist() == [0, 2]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    """Of 2048 values, two sets of similarity s share a part s, within 4 standard deviations sqrt(s(1-s)/2048)."""
    hasher = MinHasher(Bands(512, 4), seed=1)
    rng = np.random.default_rng(0)
    for size in (10, 100, 2000):
        for similarity in (0.2, 0.5, 0.8):
            common = round(2 * size * similarity / (1 + similarity))
            values = rng.choice(1 << 32, 2 * size - common, replace=False).astype(np.uint32)
            one, other = values[:size], values[size - common:]
            true = common / (2 * size - common)
            signatures = hasher.signatures(np.concatenate([one, other]), np.array([size, size]))
            shared = float((signatures[0] == signatures[1]).mean())
            assert abs(shared - true) < 4 * (true * (1 - true) / 2048) ** 0.5, (size, similarity)


def test_signatures_do_not_depend_on_the_block() -> None:
    """Texts of 1 to 3000 shingles have the signatures they have alone; a text without shingles has the largest."""
    rng = np.random.default_rng(2)
    counts = np.array([0, 1, 3, 3000, 7, 40, 40, 41, 0, 500])
    values = rng.integers(0, 1 << 32, int(counts.sum()), np.uint32)
    hasher = MinHasher(Bands(16, 4), seed=3)
    together = hasher.signatures(values, counts)
    parts = np.split(values, np.cumsum(counts)[:-1])
    for signature, part in zip(together, parts, strict=True):
        assert np.array_equal(signature, hasher.signatures(part, np.array([len(part)]))[0])
    assert (together[0] == 0xFFFFFFFF).all()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_reach_the_recall_and_no_more_selective_ones_do(threshold: float) -> None:
    """128 values at 0.8: 18 bands of 7 give 1-(1-0.8^7)^18 = 0.985; 16 of 8 give 0.947 < 0.95."""
    chosen = choose_bands(threshold, 128, 0.95)
    assert chosen.num_perm <= 128 and chosen.chance(threshold) >= 0.95
    more = Bands(128 // (chosen.rows + 1), chosen.rows + 1) if chosen.rows < 128 else None
    assert more is None or more.chance(threshold) < 0.95
    assert choose_bands(0.8, 128, 0.95) == Bands(18, 7)


def test_groups_of_strangers_lose_no_pair() -> None:
    """Rows 0..9 share a band key; only 3 and 7 are alike, and neither is the first of the group."""
    sets = [np.arange(start * 10, start * 10 + 5, dtype=np.uint32) for start in range(10)]
    sets[7] = sets[3]
    stored = ShingleSets(np.concatenate(sets), np.full(10, 5))
    found = UnionFind(10)
    join_similar(np.zeros(10, np.uint64), np.arange(10), found, stored, 0.8)
    assert [cluster.tolist() for cluster in members(found.roots())] == [[3, 7]]


def test_chains_of_copies_are_followed() -> None:
    """Rows 0, 1, 2 with one key: 0-1 and 1-2 share 9 of 11 n-grams (0.82), 0-2 only 8 of 12 (0.67)."""
    sets = [np.arange(start, start + 10, dtype=np.uint32) for start in range(3)]
    stored = ShingleSets(np.concatenate(sets), np.full(3, 10))
    found = UnionFind(3)
    join_similar(np.zeros(3, np.uint64), np.arange(3), found, stored, 0.8)
    assert found.roots().tolist() == [0, 0, 0]


def test_true_similarity() -> None:
    """{1,2,3} and {2,3,4,5}: 2 common of 5; a set and itself: 1; nothing and anything: 0."""
    stored = ShingleSets(np.array([1, 2, 3, 2, 3, 4, 5], np.uint32), np.array([3, 4, 0]))
    found = stored.jaccard(np.array([0, 0, 2, 2]), np.array([1, 0, 1, 2]))
    assert found.tolist() == [0.4, 1.0, 0.0, 0.0]


def test_rules_of_what_stays() -> None:
    """Cluster {0, 2, 3} with lengths 5, 9, 9: first 0, last 3, longest 2."""
    roots, lengths = np.array([0, 1, 0, 0]), np.array([5, 1, 9, 9])
    for rule, kept in (("first", 0), ("last", 3), ("longest", 2)):
        assert choose_kept(roots, lengths, rule)[0].tolist() == [kept, 1, kept, kept]


def planted(number: int, seed: int, language: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Originals of 30 to 90 tokens, and for each a copy with up to a third of its tokens replaced in one stretch."""
    rng = random.Random(seed)
    vocabulary = ([chr(code) for code in range(0x4E00, 0x5800)] if language == "zh"
                  else ["".join(rng.choices("abcdefghij", k=5)) for _ in range(3000)])
    texts, pairs = [], []
    for _ in range(number):
        words = rng.choices(vocabulary, k=rng.randint(30, 90))
        copy = list(words)
        length = rng.randint(0, len(words) // 3)
        start = rng.randint(0, len(words) - length)
        copy[start:start + length] = rng.choices(vocabulary, k=length)
        pairs.append((len(texts), len(texts) + 1))
        texts += ["".join(words), "".join(copy)] if language == "zh" else [" ".join(words), " ".join(copy)]
    return texts, pairs


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_planted_duplicates(language: str, threshold: float, tmp_path: Path,
                            capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 copies of similarity 0.4 to 1, 70 to 900 of them above the threshold: precision is 1, and recall high.

    A pair right at the threshold is found with chance 0.95, one above it with more: three in
    a hundred missed of all pairs above the threshold would be far out of line.
    """
    texts, pairs = planted(1000, 7, language)
    write(tmp_path / "in.jsonl", [{"text": text, "n": number} for number, text in enumerate(texts)])
    assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"),
                 f"--threshold={threshold}", "--num_workers=1"]) == 0
    capsys.readouterr()
    kept = {row["n"] for row in read(tmp_path / "out.jsonl")}
    sets = [grams_of(text, 3) for text in texts]
    alike = {pair[1]: len(sets[pair[0]] & sets[pair[1]]) / len(sets[pair[0]] | sets[pair[1]]) for pair in pairs}
    dropped = set(range(len(texts))) - kept
    wanted = {row for row, similarity in alike.items() if similarity >= threshold}
    precision, recall = len(dropped & wanted) / len(dropped), len(dropped & wanted) / len(wanted)
    with capsys.disabled():
        print(f"\n{language} threshold {threshold}: {len(wanted)} planted, precision {precision:.4f}, "
              f"recall {recall:.4f}")
    assert len(wanted) > 70
    assert precision == 1.0 and recall >= 0.97
    entries = [one for one in read(tmp_path / "_out.ledger.jsonl") if "action" in one]
    for entry in entries:
        assert entry["similarity"] == pytest.approx(alike[entry["row"] - 1], abs=1e-4)
        assert entry["kept"].endswith(f":{entry['row'] - 1}")


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_processes_and_chunks_change_nothing(tmp_path: Path) -> None:
    """One process and two spawned ones write the same files."""
    texts, _ = planted(1500, 1, "en")
    write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    for workers in ("1", "2"):
        assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / f"{workers}.jsonl"),
                     "--num_workers", workers]) == 0
    for name in ("{}.jsonl", "_{}.ledger.jsonl"):
        assert (tmp_path / name.format(1)).read_bytes() == (tmp_path / name.format(2)).read_bytes()


def test_equal_texts_go_first_and_only_with_exact_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "Ａ small  house by the sea"}, {"text": "a small house\nby the sea"},
            {"text": "a small house by the sea."}, {"text": ""}, {"text": "  "}]
    write(tmp_path / "in.jsonl", rows)
    assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "o.jsonl"), "--exact_only"]) == 0
    assert read(tmp_path / "o.jsonl") == [rows[0], rows[2], rows[3]]
    assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "o.jsonl"), "--overwrite",
                 "--keep=longest"]) == 0
    assert read(tmp_path / "o.jsonl") == [rows[2], rows[3]]
    assert "1 equal text, 2 near duplicate" in capsys.readouterr().out


def test_only_some_columns_are_compared(tmp_path: Path) -> None:
    rows = [{"instruction": "same question here", "output": text} for text in ("one answer", "quite another thing")]
    write(tmp_path / "in.jsonl", rows)
    assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "a.jsonl")]) == 0
    assert main(["data", "dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "b.jsonl"), "--only", "instruction"]) == 0
    assert (len(read(tmp_path / "a.jsonl")), len(read(tmp_path / "b.jsonl"))) == (2, 1)


@pytest.mark.parametrize(("words", "part"), [
    ([], "usage"), (["in.jsonl"], "output is needed"), (["in.jsonl", "o.jsonl", "--treshold", "1"], '"threshold"'),
    (["in.jsonl", "o.jsonl", "--threshold", "80"], "less than or equal to 1"),
    (["in.jsonl", "o.jsonl", "--keep", "best"], "'first', 'last' or 'longest'"),
    (["gone.jsonl", "o.jsonl"], "no file or folder"), (["void", "o.jsonl"], "no data file in this folder"),
    (["empty.jsonl", "o.jsonl"], "no rows"), (["broken.jsonl", "o.jsonl"], "broken.jsonl:2"),
    (["in.jsonl", "o.csv"], ".jsonl"), (["in.jsonl", "in.jsonl"], "one of the inputs"),
    (["in.jsonl", "o.jsonl", "--threshold"], "needs a value")])
def test_mistakes(words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one sentence, and nothing written."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"text": "a"}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "void").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["data", "dedup", *words]) == 2
    said = capsys.readouterr().err
    assert part in said and "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before
