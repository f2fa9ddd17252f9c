"""The simulated traffic can change from day to day: its click rate, and its campaigns."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from model.data.synthetic.traffic import Behavior, Requests, Traffic
from model.data.synthetic.traffic_events import show
from model.data.synthetic.traffic_files import simulated_answers
from model.data.synthetic.traffic_truth import Truth

START_S = 1_796_083_200.0  # 2026-12-01
STILL = Behavior(drift_std=0.0, user_std=0.0)


def day_of(traffic: Traffic, day: int, number: int = 3000) -> Requests:
    return traffic.requests(traffic.times(number, day), first=day * number)


def test_without_the_new_settings_nothing_changes_but_the_categories() -> None:
    requests = day_of(Traffic(1, START_S, STILL), 20)
    assert np.abs(requests.logit - requests.log_logit).max() < 1e-9
    assert not requests.generation.any()


def test_the_base_rate_walks_and_all_ads_share_it() -> None:
    traffic = Traffic(1, START_S, replace(STILL, base_rate_std=0.1))
    effects = []
    for day in range(40):
        requests = day_of(traffic, day, 50)
        effect = requests.logit - requests.log_logit
        assert np.ptp(effect) < 1e-9
        effects.append(effect.mean())
    assert abs(effects[0]) < 1e-9
    assert 0.06 < np.std(np.diff(effects)) < 0.14


def test_new_campaigns_replace_old_ones_and_have_effects_of_their_own() -> None:
    traffic = Traffic(1, START_S, replace(STILL, new_campaigns=0.1, campaign_std=0.5))
    assert not day_of(traffic, 0).generation.any()
    requests = day_of(traffic, 7)
    is_new = requests.generation > 0
    assert 0.3 < is_new.mean() < 0.75  # 1 - 0.9**7 is 0.52
    effect = requests.logit - requests.log_logit
    assert np.abs(effect[~is_new]).max() < 1e-9
    campaign, generation = requests.codes["campaign"][is_new], requests.generation[is_new]
    frame = pl.DataFrame({"campaign": campaign, "generation": generation, "effect": effect[is_new]})
    by_campaign = frame.group_by("campaign", "generation").agg(pl.col("effect").mean(), std=pl.col("effect").std())
    assert by_campaign["std"].max() < 1e-9  # type: ignore[operator]
    assert 0.35 < by_campaign["effect"].std() < 0.65  # type: ignore[operator]
    assert by_campaign["campaign"].is_unique().all()  # the campaigns that a new one has replaced have ended


def test_the_same_campaign_continues_until_it_is_replaced() -> None:
    traffic = Traffic(1, START_S, replace(STILL, new_campaigns=0.1, campaign_std=0.5))
    seen: dict[int, tuple[int, float]] = {}
    replaced = kept = 0
    for day in range(5):
        requests = day_of(traffic, day)
        effect = requests.logit - requests.log_logit
        for campaign in range(100):
            here = requests.codes["campaign"] == campaign
            now = int(requests.generation[here].max()), round(float(effect[here].max()), 9)
            if campaign in seen and seen[campaign][0] == now[0]:
                assert seen[campaign] == now
                kept += 1
            elif campaign in seen:
                assert now[0] == seen[campaign][0] + 1
                replaced += 1
            seen[campaign] = now
    assert replaced == pytest.approx(40, abs=20)
    assert kept > 300


def test_clients_send_the_names_of_new_campaigns_and_the_truth_has_them() -> None:
    traffic = Traffic(1, START_S, Behavior(new_campaigns=0.2))
    requests = day_of(traffic, 3, 200)
    answers = simulated_answers(1, requests, 1.0)
    truth = Truth()
    truth.add(requests, answers, *show(traffic, requests, answers))
    shown, features = truth.impressions(), requests.features()
    for row in shown.iter_rows(named=True):
        ad = features[row["request"] - int(requests.number[0])][row["candidate"]]
        assert (row["ad"], row["campaign"], row["candidate_id"]) == (ad["ad"], ad["campaign"], ad["ad"])
    assert shown["campaign"].str.contains(r"^campaign-\d+-[23]$").any()
    assert shown["campaign"].str.contains(r"^campaign-\d+$").any()
    assert requests.at(5).features() == features[5:6]
