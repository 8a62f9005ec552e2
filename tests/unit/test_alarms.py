"""Alarms of training on own answers, on series made by hand: each kind fires, keeps still, and recovers."""

from collections.abc import Mapping, Sequence

from danlu.stages.alarms import CALM, STILL_STEPS, Alarms, correlation


def told(alarms: Alarms, rows: Sequence[Mapping[str, float]]) -> dict[int, str]:
    """What is said at which step, from 1."""
    found = {step: alarms.see(step, row) for step, row in enumerate(rows, 1)}
    return {step: " ".join(texts) for step, texts in found.items() if texts}


def series(**values: Sequence[float]) -> list[dict[str, float]]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def test_kl_runs_away_once_and_again_after_recovery() -> None:
    """5 x 6 = 30: 31 is the first beyond it; 5 calm steps end the alarm, 60 begins another."""
    rows = series(kl=[1, 10, 25, 31, 45, 80, *[5] * CALM, 60, 70])
    found = told(Alarms(kl_target=6.0), rows)
    assert list(found) == [4, 12]
    assert found[4].startswith("step 4: the KL of an answer is 31, over 5 times its target of 6 and rising")


def test_kl_high_but_falling_says_nothing() -> None:
    """At each step it is under the mean of what came before."""
    assert told(Alarms(kl_target=6.0), series(kl=[90, 80, 70, 60, 50, 40])) == {}


def test_kl_short_dips_do_not_repeat_the_alarm() -> None:
    rows = series(kl=[1, 40, 5, 41, 5, 5, 42, 5])
    assert list(told(Alarms(kl_target=6.0), rows)) == [2]


def test_entropy_collapses_under_a_share_of_its_start() -> None:
    """The start is (2.2 + 2.0 + 1.8) / 3 = 2; a fifth of it is 0.4."""
    found = told(Alarms(), series(entropy=[2.2, 2.0, 1.8, 1.0, 0.41, 0.39, 0.2, *[1.0] * CALM, 0.1]))
    assert list(found) == [6, 13]
    assert "0.39 nats a token, 2 at the start" in found[6]


def test_low_entropy_from_the_start_is_no_collapse() -> None:
    assert told(Alarms(), series(entropy=[0.05, 0.05, 0.05, 0.05, 0.02])) == {}


def test_rewards_all_alike_for_some_steps() -> None:
    stds = [0.5, *[0.0] * (STILL_STEPS - 1), 0.1, *[0.0] * STILL_STEPS]
    found = told(Alarms(), series(reward_std=stds, reward=[1.0] * len(stds)))
    assert list(found) == [len(stds)]
    assert f"same reward for {STILL_STEPS} steps, 1 now" in found[len(stds)]


def test_length_grows_with_the_reward() -> None:
    """Lengths 10, 12, ... 48: the halves of 20 steps have means 19 and 39, a growth of 2.05; the reward is linear."""
    lengths = [10.0 + 2 * step for step in range(20)]
    found = told(Alarms(), series(length=lengths, reward=[0.1 * one for one in lengths]))
    assert list(found) == [20]
    assert "from 19 to 39 tokens in 20 steps (correlation 1.00)" in found[20]


def test_length_that_grows_without_the_reward_says_nothing() -> None:
    lengths = [10.0 + 2 * step for step in range(20)]
    assert told(Alarms(), series(length=lengths, reward=[0.0, 1.0] * 10)) == {}
    assert told(Alarms(), series(length=lengths, reward=[-one for one in lengths])) == {}


def test_reward_that_grows_with_steady_length_says_nothing() -> None:
    assert told(Alarms(), series(length=[20.0 + step / 10 for step in range(30)], reward=range(30))) == {}


def test_length_reaches_the_cap() -> None:
    """The start is 20, under 75 of 100; 90 of 100 is the cap reached."""
    found = told(Alarms(cap=100), series(length=[20, 20, 20, 60, 89, 90, 95]))
    assert list(found) == [6]
    assert "90 tokens on average, 20 at the start, and reach the limit of 100" in found[6]
    assert told(Alarms(cap=100), series(length=[95] * 8)) == {}, "answers of the longest length from the start"


def test_share_of_truncated_answers() -> None:
    found = told(Alarms(), series(truncated=[0.5, 0.51, 0.9, *[0.2] * CALM, 0.8]))
    assert list(found) == [2, 9]
    assert "51 % of the answers end at the limit of length" in found[2]


def test_a_healthy_run_says_nothing() -> None:
    steps = range(60)
    rows = [{"reward": 0.02 * s, "reward_std": 0.3, "kl": min(6.0, 0.2 * s), "entropy": 2.0 - s / 100,
             "length": 30 + s % 3, "truncated": 0.05} for s in steps]
    assert told(Alarms(cap=128), rows) == {}
    assert told(Alarms(cap=128), [{} for _ in steps]) == {}, "numbers may be absent"


def test_taken_up_from_a_checkpoint_says_the_same() -> None:
    """At every step a new object takes the state, as text would keep it, and says what one object says."""
    lengths = [10.0 + 2 * step for step in range(30)]
    rows = series(kl=[1, 2, 3, *[50 + s for s in range(12)], *[1] * 8, *[90 + s for s in range(7)]],
                  entropy=[2, 2, 2, *[0.1] * 27], reward_std=[0.0] * 30, length=lengths,
                  reward=lengths, truncated=[0.0, *[0.9] * 29])
    whole = told(Alarms(cap=60), rows)
    resumed, alarms = {}, Alarms(cap=60)
    for step, row in enumerate(rows, 1):
        texts = alarms.see(step, row)
        if texts:
            resumed[step] = " ".join(texts)
        saved = alarms.state()
        assert all(isinstance(value, float | int) for value in saved.values())
        alarms = Alarms(cap=60)
        alarms.load_state(saved)
        assert alarms.state() == saved
    assert resumed == whole and len(whole) > 4


def test_correlation_by_hand() -> None:
    """(-1, 0, 1) . (-1, 1, 0) = 1, over sqrt(2 * 2) = 2: a half."""
    assert correlation([1, 2, 3], [1, 3, 2]) == 0.5
    assert correlation([1, 1, 1], [1, 2, 3]) == 0.0
