"""HTML and boilerplate taken out of text. Only names of real tags are tags, so `a < b` and `List<int>` stay."""

import html
import re

from pydantic import Field, field_validator

from danlu.core.key_types import CommaList
from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, change

NAME = (
    "blockquote|figcaption|colgroup|fieldset|frameset|noscript|optgroup|textarea|address|article|caption|"
    "details|picture|section|summary|button|canvas|center|figure|footer|header|iframe|legend|object|optio"
    "n|select|source|strike|strong|aside|audio|embed|frame|input|label|param|small|style|table|tbody|tfoo"
    "t|thead|title|track|video|abbr|area|base|body|cite|code|font|form|head|html|link|main|mark|meta|samp"
    "|span|bdi|bdo|big|col|del|dfn|div|img|ins|kbd|map|nav|pre|sub|sup|svg|var|wbr|br|dd|dl|dt|em|h1|h2|h"
    "3|h4|h5|h6|hr|li|ol|td|th|tr|tt|ul|a|b|i|p|q|s|u")
DOCTYPE = re.compile("<!DOCTYPE[^<>]*>", re.IGNORECASE)
OPENING = re.compile(r"<!--|<(script|style|noscript|svg|head)(?=[\s>/])[^<>]*>", re.IGNORECASE)
CLOSING = {"": re.compile("-->")} | {
    name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style", "noscript", "svg", "head")}
BREAK = re.compile(r"</?(?:br|p|div|li|tr|h[1-6]|ul|ol|table|section|article|blockquote|pre|hr)(?:\s[^<>]*)?/?>",
                   re.IGNORECASE)
TAG = re.compile(rf"</?(?:{NAME})(?:\s[^<>]*)?/?>", re.IGNORECASE)
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")


@FILTERS.register("html")
class Html(Filter):
    """Takes tags, scripts, styles and comments out, and writes entities (`&amp;`) as the signs they mean."""

    edits = True

    keep_code: bool = Field(True, description="Leave what stands between back-ticks as it is.")
    entities: bool = Field(True, description="Write entities as the signs they mean.")

    def judge(self, text: str) -> Verdict:
        if "<" not in text and "&" not in text:
            return KEEP
        parts = CODE.split(text) if self.keep_code else [text]
        result = "".join(part if index % 2 else self._plain(part) for index, part in enumerate(parts))
        if result == text:
            return KEEP
        return change(result, "HTML", f"{len(TAG.findall(text))} tags, {len(text) - len(result)} characters")

    def _plain(self, text: str) -> str:
        bare = TAG.sub("", BREAK.sub("\n", _without_unseen(DOCTYPE.sub("", text))))
        if bare != text:
            bare = BLANK_LINES.sub("\n\n", bare).strip("\n") if TAG.search(text) else bare
        return ENTITY.sub(lambda match: html.unescape(match[0]), bare) if self.entities else bare


def _without_unseen(text: str) -> str:
    """Return the text without comments, scripts, styles and the like; what is never closed stays."""
    parts, start, place = [], 0, 0
    unclosed: set[str] = set()
    while (opening := OPENING.search(text, place)) is not None:
        name = (opening[1] or "").lower()
        closing = None if name in unclosed else CLOSING[name].search(text, opening.end())
        place = opening.end() if closing is None else closing.end()
        if closing is None:
            # Nothing after here closes it either: looking again would take quadratic time.
            unclosed.add(name)
            continue
        parts.append(text[start:opening.start()])
        start = place
    return "".join([*parts, text[start:]])


BOILERPLATE = re.compile("|".join((
    r"(?:we|this (?:web)?site)(?: may)? uses? cookies\b.*", r"accept (?:all )?cookies.*",
    r"(?:privacy policy|terms of (?:use|service)|cookie policy)(?:\s*[|·,&]\s*.*)?",
    r"(?:copyright|©|\(c\)).{0,80}(?:all rights reserved.?|\d{4}.{0,60})", r"all rights reserved\.?",
    r"(?:click|tap) here(?: to .{0,60})?\.?", r"(?:read|learn|show|see|view) more\W*", r"sign (?:in|up)\W*",
    r"log ?in\W*", r"share (?:this|on) .{0,40}", r"(?:please )?enable javascript.*", r"skip to (?:main )?content",
    r"subscribe to (?:our|the) .{0,60}", r"follow us on .{0,60}", r"advertisement\W*",
    r"(?:本文)?(?:未经(?:授权|许可|允许)).{0,30}(?:转载|使用|复制).{0,20}", r"转载请(?:注明|联系).{0,40}",
    r"(?:版权所有|著作权归).{0,60}", r"[(（\[【]?(?:责任)?编辑[:：].{0,20}",
    r"(?:点击|阅读|查看|展开)(?:查看|阅读)?(?:更多|全文|原文|详情).{0,10}",
    r"(?:扫码|扫一扫|长按(?:识别)?二维码)(?:关注|添加|加入|进群|下载|阅读|查看|咨询|领取).{0,30}",
    r"(?:欢迎)?关注(?:我们的?)?(?:微信)?公众号.{0,30}",
    r"(?:上一篇|下一篇|返回(?:首页|顶部)|相关阅读|热门推荐)[:：]?.{0,60}",
    r"(?:京|沪|粤|浙|苏|鲁|川)ICP备.{0,40}", r"(?:免责声明|广告)[:：]?.{0,4}",
    r"(?:登录|注册|分享到?|收藏|点赞|举报)(?:[ |/·]+[^\s|/·]{1,6})*",
)), re.IGNORECASE)


@FILTERS.register("boilerplate")
class Boilerplate(Filter):
    """Takes out lines that are furniture of web pages in English or Chinese: cookies, log-in, copyright, read more."""

    edits = True

    also: CommaList = Field((), description="Further regular expressions; a line that one matches whole goes.")

    @field_validator("also")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern} is no regular expression: {error}") from None
        return patterns

    def judge(self, text: str) -> Verdict:
        lines = text.split("\n")
        further = [re.compile(pattern, re.IGNORECASE) for pattern in self.also]
        kept = [line for line in lines if not _is_furniture(line.strip(), further)]
        if len(kept) == len(lines):
            return KEEP
        return change("\n".join(kept).strip("\n"), "boilerplate", f"{len(lines) - len(kept)} lines")


def _is_furniture(line: str, further: list[re.Pattern[str]]) -> bool:
    return bool(line) and (BOILERPLATE.fullmatch(line) is not None
                           or any(pattern.fullmatch(line) for pattern in further))
