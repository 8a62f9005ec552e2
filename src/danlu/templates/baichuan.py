"""Baichuan: one reserved token before the user, one before the assistant. Each answer ends with eos, in every round."""

from danlu.templates.named import declare

declare("baichuan", prefix="", user="<reserved_102>{content}", generation="<reserved_103>")
declare("baichuan2", prefix="", user="<reserved_106>{content}", generation="<reserved_107>")
