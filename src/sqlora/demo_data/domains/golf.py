"""Domains of the demo data: golf tournaments. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

GOLF = Domain(
    "golf tournaments",
    forms("tournament/tournaments|event/events|!championship/championships"),
    ("{y} golf season", "{y} Women's golf tour"),
    (
        text(
            "name",
            "Tournament|Event|Tournament name",
            v.title,
            "tournament|event|name",
        ),
        text(
            "date",
            "Date|Dates|Week of",
            v.day,
            "date",
            asks="When was {e}|On what date was {e} held",
            mods="on {v}|held on {v}|that started on {v}",
        ),
        text(
            "place",
            "Location|Course, City|City, State",
            v.town_and_state,
            "location|city and state|place",
            asks="Where was {e} held|Where did {e} take place",
            mods="in {v}|held in {v}|that took place in {v}",
        ),
        text(
            "person",
            "Winner|Champion|Winner (titles)",
            v.person,
            "winner|champion|!victor",
            asks="Who won {e}|Who came first in {e}|!Who took the title at {e}",
            mods="won by {v}|that {v} won",
        ),
        text(
            "person",
            "Runner-up|Runner(s)-up|2nd place",
            v.person,
            "runner-up|second place",
            asks="Who came second in {e}|Who was runner-up in {e}",
            mods="in which {v} came second",
        ),
        text(
            "code",
            "Score|Winning score|Score (to par)",
            v.code("2## (–#)|2## (–1#)|27#|28#"),
            "score|winning score",
            asks="What did the winner of {e} score",
            mods="won with a score of {v}",
        ),
        real(
            "measure",
            "1st Prize ($)|Winner's share ($)|First prize",
            v.whole(20000, 990000, 500),
            "first prize|winner's share|prize money",
            asks="How much did the winner of {e} get|How much was the first prize at {e}",
            mods="that paid {v} dollars",
            over="that paid more than {v} dollars",
            under="that paid less than ${v}",
            top="highest|largest|biggest",
            bottom="lowest|smallest",
        ),
        real(
            "measure",
            "Purse ($)|Purse|Total purse (US$)",
            v.whole(150000, 9000000, 25000),
            "purse|total purse",
            asks="What was the purse at {e}",
            over="with a purse over {v}",
            top="largest|biggest",
            bottom="smallest",
        ),
        text(
            "code",
            "Margin|Margin of victory|Won by",
            v.one_of("1 stroke|2 strokes|3 strokes|5 strokes|Playoff|7 strokes"),
            "margin|margin of victory",
            asks="By how much was {e} won",
            mods="decided by {v}",
        ),
        text(
            "place",
            "Country|Host country|Nation",
            v.country,
            "country|host country",
            asks="In which country was {e}",
            mods="hosted by {v}",
        ),
        real(
            "number",
            "Week #|No.|Order",
            v.serial,
            "week number|order number",
        ),
    ),
)

DOMAINS = (GOLF,)
