"""Domains of the demo data: museums and train stations. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

MUSEUMS = Domain(
    "museums",
    forms("museum/museums|gallery/galleries|!collection/collections"),
    ("List of museums in {country}", "Museums in {town}"),
    (
        text(
            "name",
            "Name|Museum|Museum name",
            v.composed(
                "{town} Museum|{town} Gallery|{town} Maritime Museum|{town} House|{given} {surname} Museum|"
                "{town} Art Museum|{stem}gate Science Centre"
            ),
            "name|museum",
        ),
        text(
            "place",
            "City|Town|Town/City|City, town",
            v.town,
            "city|town",
            asks="Where is {e}|In which town is {e}|!Where can one visit {e}",
            mods="in {v}|located in {v}|!found in {v}",
        ),
        text(
            "place",
            "County|Region|District",
            v.composed("{stem}shire|{stem}fordshire|East {stem}land"),
            "county|region|district",
            asks="In what county is {e}",
            mods="in the county of {v}",
        ),
        text(
            "category",
            "Type|Focus|Museum type",
            v.one_of("Art|Natural history|Military|Maritime|Folk|Children's|Railway|Science"),
            "type|focus",
            asks="What type of museum is {e}|What does {e} focus on",
            mods="of the {v} type|devoted to {v}",
        ),
        real(
            "year",
            "Established|Opened|Year opened|Founded",
            v.whole(1760, 2019),
            "year of opening|founding year|year established",
            asks=(
                "When was {e} founded|When did {e} open|What year was {e} established|"
                "!How long ago did {e} start, that is in what year"
            ),
            mods="founded in {v}|that opened in {v}|established in {v}",
            over="founded after {v}|that opened after {v}",
            under="founded before {v}",
            top="latest|most recent",
            bottom="earliest|first",
        ),
        real(
            "count",
            "Visitors ({y})|Annual visitors|Visitors",
            v.wide(900, 4000000),
            "visitors|visitors a year|!guests",
            asks="How many visitors did {e} have|How many people visited {e}",
            mods="visited by {v} people",
            over="visited by more than {v} people",
            under="visited by fewer than {v} people",
        ),
        text(
            "person",
            "Director|Curator|Head curator",
            v.person,
            "director|curator",
            asks="Who runs {e}|Who is in charge of {e}",
            mods="run by {v}|headed by {v}",
        ),
        real(
            "measure",
            "Admission (€)|Admission|Ticket price",
            v.decimal(0, 29, 2),
            "admission|ticket price|!entrance fee",
            asks="How much does it cost to visit {e}|What does a ticket to {e} cost",
            over="that cost more than {v} to enter",
            under="that cost less than {v} to enter",
        ),
        real(
            "count",
            "Objects|Items (total)|No. of items",
            v.wide(150, 900000),
            "items|objects",
            asks="How many items does {e} hold",
            mods="that held {v} items",
        ),
        text(
            "category",
            "Closed on|Closed|Day closed",
            v.one_of("Monday|Tuesday|Wednesday|never|Sunday|January"),
            "closing day|day it is closed",
            asks="When is {e} closed",
            mods="closed on {v}",
        ),
    ),
)

STATIONS = Domain(
    "train stations",
    forms("station/stations|train station/train stations|!rail stop/rail stops"),
    ("{town} metro stations", "Railway stations in {country}"),
    (
        text(
            "name",
            "Station|Station name|Name",
            v.composed("{town} Central|{town} Junction|{town} Road|{town}|{town} Parkway|{surname} Street"),
            "station|name",
        ),
        text(
            "category",
            "Line|Line(s)|Route",
            v.one_of("Red Line|Blue Line|Circle|Coast Line|Airport Express|Valley Line|Line 4"),
            "line|route",
            asks="Which line is {e} on|What line serves {e}",
            mods="on the {v}|served by the {v}",
        ),
        real(
            "count",
            "Platforms|No. of platforms|Platforms (total)",
            v.whole(1, 15),
            "platforms|!tracks to board from",
            asks="How many platforms does {e} have|How many platforms are at {e}",
            mods="with {v} platforms",
        ),
        real(
            "year",
            "Opened|Year opened|Opening (year)",
            v.whole(1838, 2020),
            "year of opening|opening year",
            asks="When did {e} open|In which year was {e} opened|!When did the first train stop at {e}",
            mods="that opened in {v}|opened in {v}",
            over="that opened after {v}",
            under="that opened before {v}|older than {v}",
            top="latest|most recent",
            bottom="earliest|first",
        ),
        text(
            "place",
            "City / neighborhood|Municipality|Town, District",
            v.town,
            "neighborhood|municipality|town",
            asks="In what town is {e}|Where is {e}",
            mods="in {v}|located in {v}",
        ),
        real(
            "count",
            "Daily riders|Ridership ({y})|Passengers/day",
            v.wide(40, 200000),
            "riders|daily riders|passengers a day",
            asks="How many riders does {e} have|How many people use {e}",
            mods="used by {v} people",
            over="used by more than {v} people",
            under="used by fewer than {v} people",
        ),
        text(
            "code",
            "Code|Station code|Stn. code",
            v.code("@@@|@@@#|@##"),
            "station code|code",
            asks="What is the code of {e}",
            mods="with code {v}|abbreviated {v}",
        ),
        real(
            "number",
            "Zone|Fare zone|Zone #",
            v.whole(1, 9),
            "zone|fare zone",
            asks="Which zone is {e} in",
            mods="in zone {v}",
            over="beyond zone {v}",
        ),
        real(
            "measure",
            "Distance (km)|km|Dist. from terminus (km)",
            v.decimal(0, 190, 1),
            "distance|distance in km",
            asks="How far away is {e}|How many kilometres out is {e}",
            over="farther out than {v} km",
            under="closer than {v} km",
            top="longest|greatest",
            bottom="shortest",
        ),
        text(
            "category",
            "Park and ride?|Parking|Parking?",
            v.one_of("Yes|No|Planned|Weekdays only"),
            "parking status|park and ride",
            asks="Is there parking at {e}",
        ),
        text(
            "person",
            "Architect|Designed by|Architect(s)",
            v.person,
            "architect|designer",
            asks="Who designed {e}|!Who drew the plans for {e}",
            mods="designed by {v}",
        ),
        text(
            "place",
            "Operator|Operated by|Operator(s)",
            v.company,
            "operator",
            asks="Who operates {e}|Which company runs {e}",
            mods="operated by {v}|run by {v}",
        ),
    ),
)

DOMAINS = (MUSEUMS, STATIONS)
