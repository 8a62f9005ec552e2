"""MiniCPM: <用户> and <AI> (1 and 2), ChatML behind bos (3 and 4)."""

from danlu.templates.chatml import CHATML
from danlu.templates.named import declare

declare(("cpm", "minicpm"), user="<用户>{content}", generation="<AI>")
declare(("cpm3", "cpm4", "minicpm3"), **{**CHATML, "prefix": "{bos}"})
