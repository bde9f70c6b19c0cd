"""All domains of the demo data."""

from __future__ import annotations

from sqlora.demo_data.domains import (
    ball_games,
    business,
    contests,
    food,
    golf,
    institutions,
    nature,
    places,
    screen,
    sea_and_sky,
    transport,
    works,
)
from sqlora.demo_data.schema import Domain

ALL_DOMAINS: tuple[Domain, ...] = (
    *ball_games.DOMAINS,
    *business.DOMAINS,
    *contests.DOMAINS,
    *food.DOMAINS,
    *golf.DOMAINS,
    *institutions.DOMAINS,
    *nature.DOMAINS,
    *places.DOMAINS,
    *screen.DOMAINS,
    *sea_and_sky.DOMAINS,
    *transport.DOMAINS,
    *works.DOMAINS,
)
SHARED_DOMAINS = tuple(domain for domain in ALL_DOMAINS if not domain.held_out)
HELD_OUT_DOMAINS = tuple(domain for domain in ALL_DOMAINS if domain.held_out)
