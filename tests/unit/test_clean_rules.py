"""Each cleaning rule on texts whose verdict is known by hand."""

import time
from typing import Any

import pytest

from danlu.core.errors import ConfigError
from danlu.data.clean.filter import FILTERS, Verdict
from danlu.data.clean.filters.pii import is_bank_card, is_cn_id
from danlu.data.clean.filters.repetition import duplicate_ngram_chars
from danlu.data.clean.recipe import checked

PROSE = ("The committee met on Monday to talk about the new school, and it was clear that most of the parents have "
         "strong views. One of them said that a smaller building near the park would be better for young children. "
         "Others wanted to wait until the council had more money. In the end nobody could agree, so a second "
         "meeting will be held with an architect present next month.")
PROSE_ZH = ("委员会在周一开会讨论新学校的问题，大多数家长都有很明确的看法。有人说公园旁边的小楼更适合年幼的孩子，"
            "也有人想等到市里有更多的钱再说。最后谁也没有说服谁，下个月请一位建筑师来再开一次会。")


def judge(rule: str, text: str, **options: Any) -> Verdict:
    verdict: Verdict = checked(FILTERS[rule], options, rule, {}).judge(text)
    return verdict


@pytest.mark.parametrize("rule", sorted(set(FILTERS) - {"blocklist", "c4"}))
@pytest.mark.parametrize("text", [PROSE, PROSE_ZH], ids=["en", "zh"])
def test_no_rule_touches_plain_prose(rule: str, text: str) -> None:
    """Every rule with its defaults keeps a paragraph of English or Chinese prose."""
    assert judge(rule, text).action == "keep"


@pytest.mark.parametrize(("options", "text", "reason"), [
    ({"min_chars": 5}, "a b c\td", "characters below 5"),             # 4 without white space
    ({"min_chars": 4}, "a b c\td", ""),
    ({"max_chars": 3}, "abcd", "characters above 3"),
    ({"min_words": 5}, "今天hello", "words below 5"),                  # 2 signs and 1 word
    ({"min_words": 3}, "今天hello", ""),
    ({"max_line_chars": 4}, "abc\nabcde", "characters of a line above 4"),
])
def test_length(options: dict[str, Any], text: str, reason: str) -> None:
    assert judge("length", text, **options).reason == reason


@pytest.mark.parametrize(("keep", "text", "is_kept"), [
    ("zh", PROSE_ZH, True), ("en", PROSE_ZH, False), ("en", PROSE, True), ("zh", PROSE, False),
    ("zh,en", "我在用 Python 写代码", True), ("zh,en", "Привет, как у вас дела сегодня?", False),
    ("zh", "今日はとても良い天気ですね、散歩に行きましょう", False), ("zh,en", "안녕하세요 반갑습니다", False),
    ("zh,en", "12345 !!!", False),
])
def test_language_by_script(keep: str, text: str, is_kept: bool) -> None:
    assert (judge("language", text, keep=keep).action == "keep") == is_kept


@pytest.mark.parametrize(("options", "text", "reason"), [
    ({"max_symbols": 0.3}, "ab$$$", "share of symbols above 0.3"),     # 3 of 5
    ({"max_symbols": 0.6}, "ab$$$", ""),
    ({"max_digits": 0.5}, "a123", "share of digits above 0.5"),        # 3 of 4
    ({"max_spaces": 0.5}, "a   b  ", "share of white space above 0.5"),
    ({"min_letters": 0.8}, "ab1", "share of letters below 0.8"),
])
def test_shares_of_characters(options: dict[str, Any], text: str, reason: str) -> None:
    assert judge("characters", text, **options).reason == reason


def test_duplicate_lines() -> None:
    """Two of five lines occurred before: 0.4 > 0.3; their characters, 2 of 41, stay below the bound."""
    text = "x\ny\nx\ny\n" + "a long line that is not repeated here"
    assert judge("gopher_repetition", text).reason == "share of duplicate lines above 0.3"
    assert judge("gopher_repetition", text, max_duplicate_lines=0.4).action == "keep"


def test_duplicate_ngram_characters_count_each_word_once() -> None:
    """`a b c` recurs at 4 and again one word on as part of `b c d`: words 4, 5, 6 and 7 are covered, 1 letter each."""
    assert duplicate_ngram_chars(["a", "b", "c", "d", "a", "b", "c", "d"], 3) == 4
    assert duplicate_ngram_chars(["aa", "bb", "cc", "aa", "bb", "dd"], 2) == 4
    assert duplicate_ngram_chars(["a", "b", "c"], 2) == 0


@pytest.mark.parametrize("text", [
    " ".join(["buy our cheap shoes now online"] * 6), "好好好好学习天天向上" * 8, "spam " * 40])
def test_repeated_phrases_are_dropped(text: str) -> None:
    assert judge("gopher_repetition", text).action == "drop"


@pytest.mark.parametrize(("text", "reason"), [
    ("too short", "words below 50"),
    ("a b c d e f g h i j the of " * 5, "mean word length below 3"),
    ("# heading words # " * 30, "# per word above 0.1"),
    ("\n".join(["- item that is long enough for the list"] * 10), "share of bullet lines above 0.9"),
    ("\n".join(["the story goes on and on with more..."] * 10), "ellipses per word above 0.1"),
    ("1234 5678 the of " * 20, "share of words with a letter below 0.8"),
    ("zebra lion tiger panther elephant " * 12, "different stop words below 2"),
])
def test_gopher_quality(text: str, reason: str) -> None:
    assert judge("gopher_quality", text).reason == reason


def test_c4_takes_lines_out() -> None:
    """Menu, JavaScript and policy lines go; five sentences stay."""
    text = "Home | About\n" + "One fine day it rained. " * 5 + "\nPlease enable JavaScript to go on.\nShort one.\n"
    verdict = judge("c4", text)
    assert verdict.text == ("One fine day it rained. " * 5).strip()
    assert verdict.detail == "3 lines"
    assert judge("c4", "One fine day it rained.").reason == "fewer than 5 sentences"
    assert judge("c4", "Lorem ipsum dolor sit amet. " * 9).reason.startswith("filler")


@pytest.mark.parametrize(("text", "result"), [
    ("<p>Hello &amp; <b>you</b></p>", "Hello & you"),
    ("a<script>alert('x < y')</script>b<!-- note -->c", "abc"),
    ("one<br/>two", "one\ntwo"),
    ('<a href="x">link</a> &#20013;&#x6587;', "link 中文"),
])
def test_html(text: str, result: str) -> None:
    assert judge("html", text).text == result


@pytest.mark.parametrize("text", [
    "if a < b and c > d", "List<String> names = new ArrayList<>();", "`<b>bold</b>`", "```html\n<p>x</p>\n```",
    "x &y; R&D", "vector<int> v", "1 < 2"])
def test_html_leaves_code_and_comparisons(text: str) -> None:
    assert judge("html", text).action == "keep"


def test_boilerplate_lines() -> None:
    text = ("正文第一段。\n版权所有 某某公司\n点击查看更多\nReal sentence here.\nRead more >>\n"
            "This site uses cookies to help.\n©2020 Corp\n扫码关注我们")
    assert judge("boilerplate", text).text == "正文第一段。\nReal sentence here."
    prose = "扫码支付在中国流行。\n广告学是一门学问\nClick here and there it grew."
    assert judge("boilerplate", prose).action == "keep"
    assert judge("boilerplate", "See also: x", also=["see also.*"]).text == ""


@pytest.mark.parametrize(("text", "result"), [
    ("write to a.b+c@mail.example.co.uk.", "write to [EMAIL]."),
    ("身份证11010519491231002X。", "身份证[CN_ID]。"),                    # the example of GB 11643-1999
    ("电话：+86 138-1234-5678，", "电话：[CN_MOBILE]，"),
    ("tel 13812345678", "tel [CN_MOBILE]"), ("座机010-62345678", "座机[CN_LANDLINE]"),
    ("call (415) 555-2671 or +1 415-555-2671", "call [US_PHONE] or [US_PHONE]"),
    ("ssn 123-45-6789", "ssn [US_SSN]"), ("host 192.168.10.1 up", "host [IPV4] up"),
    ("card 4111 1111 1111 1111!", "card [BANK_CARD]!"),
    ("378282246310005 and 3782-822463-10005", "[BANK_CARD] and [BANK_CARD]"),
])
def test_personal_data(text: str, result: str) -> None:
    assert judge("pii", text).text == result


@pytest.mark.parametrize("text", [
    "110105194912310021", "4111 1111 1111 1112", "000-12-3456", "666-12-3456", "12812345678", "999.1.1.1", "127.0.0.1",
    "3.14159265358979", "v1.2.3", "order 20240131123456", "a@b", "11010519491331002X", "0x13812345678ab", "2024-01-31",
    "version 10.2.30.4.5", "1+1=2", "13812345678901234", "15 - 1 = -13812345678", "4 1111 1111 1111 111"])
def test_what_only_looks_like_personal_data(text: str) -> None:
    assert judge("pii", text).action == "keep"


def test_check_digits() -> None:
    """Changing one digit of a valid number breaks its check; both checks find every such error."""
    for number, check in (("11010519491231002X", is_cn_id), ("4111111111111111", is_bank_card)):
        assert check(number)
        wrong = [number[:at] + digit + number[at + 1:] for at in range(6) for digit in "0123456789"
                 if digit != number[at]]
        assert not any(map(check, wrong))


def test_rules_take_linear_time() -> None:
    """Long runs that almost match must not be scanned again from every place: 12 texts of
    400,000 characters, 7 rules: quadratic time would be hours."""
    start = time.perf_counter()
    for text in ("a" * 400_000, "1" * 400_000, "<" * 400_000, "1 " * 200_000, "<a " * 100_000, "@a." * 100_000,
                 "<script>" * 50_000, "<!--" * 100_000, " " * 400_000 + "x", "登录" + "|" * 400_000 + "x" * 9,
                 "`" * 400_000, "</script>" + "<style>" * 50_000):
        for rule in ("pii", "html", "c4", "boilerplate", "characters", "language"):
            judge(rule, text)
        judge("unicode", text, trim=True)
    assert time.perf_counter() - start < 15


@pytest.mark.parametrize(("options", "text", "result"), [
    ({}, "Ａｂｃ１２３，你好！", "Abc123，你好！"),
    ({"width": "half"}, "Ａｂｃ，你好！", "Abc,你好!"),
    ({"width": "full_marks"}, "你好,世界.再见", "你好，世界。再见"),
    ({"form": "NFKC", "width": "keep"}, "①ﬁ", "1fi"),
    ({}, "e\u0301", "é"),
    ({}, "a\u200bb\ufeffc\u0007d\r\ne\u00a0f", "abcd\ne f"),
    ({"trim": True}, "a  \n\n\n\n\nb", "a\n\n\nb"),
])
def test_unicode(options: dict[str, Any], text: str, result: str) -> None:
    verdict = judge("unicode", text, **options)
    assert verdict.text == result
    assert judge("unicode", result, **options).action == "keep", "a second time changes nothing"


def test_unicode_keeps_joiners() -> None:
    """A family emoji and a Devanagari conjunct are held together by joiners."""
    for text in ("👨‍👩‍👧", "क्‍ष"):
        assert judge("unicode", text).action == "keep"


@pytest.mark.parametrize(("text", "is_found"), [
    ("you ass", True), ("a class act", False), ("ASS!", True), ("他说ass了", True), ("出售枪支弹药", True),
    ("bad  word", True), ("badword", False)])
def test_blocklist_matches_whole_words(text: str, is_found: bool) -> None:
    assert (judge("blocklist", text, words=["ass", "枪支", "bad word"]).action == "drop") == is_found


def test_blocklist_masks_and_takes_lines() -> None:
    assert judge("blocklist", "a foo b", words="foo", action="mask").text == "a *** b"
    assert judge("blocklist", "x\na foo b\ny", words="foo", action="drop_line").text == "x\ny"
    assert judge("blocklist", "foo", words="foo", min_count=2).action == "keep"


@pytest.mark.parametrize(("rule", "options", "part"), [
    ("length", {"min_chars": "many"}, "min_chars"), ("length", {"min_char": 3}, 'did you mean "min_chars"?'),
    ("length", {"min_chars": 9, "max_chars": 3}, "min_chars 9 is above max_chars 3"),
    ("language", {"keep": ["fr"]}, "'zh' or 'en'"), ("language", {"keep": []}, "at least 1"),
    ("blocklist", {}, "words or files"), ("blocklist", {"files": "gone.txt"}, "gone.txt"),
    ("boilerplate", {"also": ["(x"]}, "(x"), ("unicode", {"width": "wide"}, "width")])
def test_wrong_options_are_named(rule: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        judge(rule, "x", **options)
    assert part in str(raised.value)
