"""Signs that training on own answers goes wrong, read from each step's numbers. Knows nothing of tensors or models.

A kind of alarm speaks once, and again only after its cause has been away for CALM steps in a row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

KL_FACTOR = 5.0  # times the target; a controller or a fixed coefficient that holds keeps near it
ENTROPY_SHARE = 0.2  # of the entropy at the start
STILL_STEPS = 3  # steps without any variance of the reward
STILL = 1e-8  # a standard deviation under this is none
GROWTH = 1.5  # mean length of the newer half of the window over that of the older half
CORRELATION = 0.8  # of length and reward over the window
NEAR_CAP, FAR_FROM_CAP = 0.9, 0.75  # shares of the longest answer allowed: reached, and at the start
TRUNCATED = 0.5  # share of the answers that end at the limit of length
START_STEPS = 3  # whose mean is the start
WINDOW = 20  # steps over which a rise is looked for
CALM = 5  # steps without a cause until an alarm may speak again

Check = Callable[[Mapping[str, float]], str]


class Alarms:
    """What has been seen of a run, and which alarms have spoken.

    kl_target  sum over an answer's tokens, in nats, that the run means to stay at
    cap        tokens that an answer may have; None when nothing bounds it
    """

    def __init__(self, *, kl_target: float = 6.0, cap: int | None = None, kl_factor: float = KL_FACTOR,
                 entropy_share: float = ENTROPY_SHARE, truncated: float = TRUNCATED, window: int = WINDOW) -> None:
        self._kl_limit, self._cap = kl_factor * kl_target, cap
        self._kl_text = f"{kl_factor:g} times its target of {kl_target:g}"
        self._entropy_share, self._truncated, self._window = entropy_share, truncated, window
        self._seen: dict[str, list[float]] = {"kl": [], "length": [], "reward": []}
        self._start: dict[str, list[float]] = {"entropy": [], "length": []}
        self._still = 0.0
        self._calm: dict[str, float] = {}
        self._checks: dict[str, Check] = {
            "kl": self._kl, "entropy": self._entropy, "variance": self._variance, "length": self._length,
            "truncated": self._share}

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return what is to be warned of after this step; mostly nothing.

        metrics  means over the step's answers: reward, reward_std (over the batch), kl (sum over an answer's tokens),
                 entropy (nats a token), length (tokens), truncated (share that the limit ended); any may be absent
        """
        texts = {kind: check(metrics) for kind, check in self._checks.items()}
        self._remember(metrics)
        return [f"step {step}: {text}" for kind, text in texts.items() if self._speaks(kind, bool(text))]

    def state(self) -> dict[str, float]:
        """Return all that has been seen as named numbers, for a checkpoint."""
        saved = {"still": self._still}
        saved |= {f"calm/{kind}": steps for kind, steps in self._calm.items()}
        for what, series in (("seen", self._seen), ("start", self._start)):
            saved |= {f"{what}/{name}/{at}": value
                      for name, values in series.items() for at, value in enumerate(values)}
        return saved

    def load_state(self, saved: Mapping[str, float]) -> None:
        """Take back what `state` returned."""
        self._still = saved.get("still", 0.0)
        self._calm = {key.removeprefix("calm/"): value for key, value in saved.items() if key.startswith("calm/")}
        for what, series in (("seen", self._seen), ("start", self._start)):
            for name, values in series.items():
                count = sum(key.startswith(f"{what}/{name}/") for key in saved)
                values[:] = [saved[f"{what}/{name}/{at}"] for at in range(count)]

    def _speaks(self, kind: str, has_cause: bool) -> bool:
        if has_cause:
            is_new = kind not in self._calm
            self._calm[kind] = 0.0
            return is_new
        if kind in self._calm:
            self._calm[kind] += 1
            if self._calm[kind] >= CALM:
                del self._calm[kind]
        return False

    def _remember(self, metrics: Mapping[str, float]) -> None:
        for name, values in self._seen.items():
            if name in metrics:
                values.append(metrics[name])
                del values[:-self._window]
        for name, values in self._start.items():
            if name in metrics and len(values) < START_STEPS:
                values.append(metrics[name])

    def _kl(self, metrics: Mapping[str, float]) -> str:
        before, now = self._seen["kl"], metrics.get("kl", 0.0)
        if not before or not now > max(self._kl_limit, fmean(before)):
            return ""
        return (f"the KL of an answer is {now:.3g}, over {self._kl_text} and rising: the policy runs away from the "
                "reference; lower learning_rate or weigh the KL more")

    def _entropy(self, metrics: Mapping[str, float]) -> str:
        start, now = self._start["entropy"], metrics.get("entropy", math.inf)
        if len(start) < START_STEPS or not now < self._entropy_share * fmean(start):
            return ""
        return (f"the entropy is {now:.3g} nats a token, {fmean(start):.3g} at the start: the answers become all "
                "alike; lower learning_rate, or raise temperature")

    def _variance(self, metrics: Mapping[str, float]) -> str:
        self._still = self._still + 1 if metrics.get("reward_std", 1.0) < STILL else 0.0
        if self._still < STILL_STEPS:
            return ""
        return (f"all answers have had the same reward for {self._still:.0f} steps, {metrics.get('reward', 0):.3g} "
                "now: there is nothing to learn from; look at the reward source and at the answers in rollouts.jsonl")

    def _length(self, metrics: Mapping[str, float]) -> str:
        now, start = metrics.get("length", 0.0), self._start["length"]
        began = fmean(start) if len(start) == START_STEPS else math.inf
        if self._cap and began < FAR_FROM_CAP * self._cap and now >= NEAR_CAP * self._cap:
            return (f"the answers have {now:.4g} tokens on average, {began:.4g} at the start, and reach the limit "
                    f"of {self._cap}: the reward may pay for length; look at the answers in rollouts.jsonl")
        lengths, rewards = ([*self._seen[name], metrics.get(name, 0.0)][-self._window:]
                            for name in ("length", "reward"))
        if len(lengths) < self._window or len(rewards) < self._window:
            return ""
        half = self._window // 2
        old, new = fmean(lengths[:half]), fmean(lengths[-half:])
        together = correlation(lengths, rewards)
        if not (new > GROWTH * old and together > CORRELATION):
            return ""
        return (f"the answers grow with the reward, from {old:.4g} to {new:.4g} tokens in {self._window} steps "
                f"(correlation {together:.2f}): the reward may pay for length; look at the answers in rollouts.jsonl")

    def _share(self, metrics: Mapping[str, float]) -> str:
        share = metrics.get("truncated", 0.0)
        if not share > self._truncated:
            return ""
        return (f"{100 * share:.0f} % of the answers end at the limit of length, without a stop token: their rewards "
                "are those of cut texts; raise max_new_tokens, or missing_eos_penalty")


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Pearson's correlation of two series; 0 where one of them does not vary or is not finite."""
    means = fmean(first), fmean(second)
    pairs = [(one - means[0], two - means[1]) for one, two in zip(first, second, strict=True)]
    spread = math.sqrt(sum(one * one for one, _ in pairs) * sum(two * two for _, two in pairs))
    return sum(one * two for one, two in pairs) / spread if spread > 0 else 0.0
