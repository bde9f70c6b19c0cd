"""Domains of the demo data: elections and universities. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

ELECTIONS = Domain(
    "elections",
    forms("candidate/candidates|politician/politicians|!contender/contenders"),
    ("{y} elections in {country}", "{town} council election, {y}"),
    (
        text(
            "name",
            "Candidate|Candidate(s)|Name|Incumbent",
            v.person,
            "candidate|name",
        ),
        text(
            "category",
            "Party|Political party|Party (affiliation)",
            v.one_of(
                "Liberal|Conservative|Labour|Green|Independent|Farmers' Union|People's Party|Social Democrats|Centre"
            ),
            "party|political party|affiliation",
            asks="What party does {e} belong to|Which party did {e} run for|!Under which banner did {e} run",
            mods="of the {v} party|who ran for {v}|who belonged to the {v} party|!standing for {v}",
        ),
        text(
            "place",
            "District|Constituency|District/Riding",
            v.composed("{town}|{town}|{town} East|{town} {n}|{town}–Centre"),
            "district|constituency|!seat",
            asks="Where did {e} run|Which district did {e} run in|!Which seat did {e} contest",
            mods="who ran in {v}|from the district of {v}",
        ),
        real(
            "count",
            "Votes|Votes (total)|# of votes|Popular vote",
            v.wide(60, 900000),
            "votes|ballots",
            asks="How many votes did {e} get|How many people voted for {e}|!How many ballots were cast for {e}",
            mods="who got {v} votes",
            over="who got more than {v} votes|who received over {v} votes",
            under="who got fewer than {v} votes|who received under {v} votes",
        ),
        real(
            "measure",
            "% of vote|Percentage|Vote share (%)|%",
            v.decimal(0, 79, 2),
            "percentage|percent of the vote|vote share",
            asks="What percentage did {e} get|What share of the vote went to {e}",
            mods="who got {v} percent|who received {v}% of the vote",
            over="who got more than {v} percent",
            under="who polled below {v}%",
        ),
        text(
            "category",
            "Result|Status|Outcome",
            v.one_of("Elected|Re-elected|Defeated|Lost, runoff|Withdrew|Retired"),
            "result|outcome",
            asks="What was the result for {e}|How did {e} do",
            mods="with the outcome {v}",
        ),
        real(
            "year",
            "First elected|First elected (year)|Elected since",
            v.whole(1946, 2020),
            "year first elected|first election year",
            asks="When was {e} first elected|What year did {e} first win",
            mods="first elected in {v}",
            over="first elected after {v}",
            under="first elected before {v}",
            top="latest|most recent",
            bottom="earliest",
        ),
        text(
            "person",
            "Opponent|Main opponent|Runner-up",
            v.person,
            "opponent|main opponent",
            asks="Who ran against {e}|Who was up against {e}",
            mods="who faced {v}|who ran against {v}|!challenged by {v}",
        ),
        real(
            "measure",
            "Spending ($)|Campaign spending|Expenditures",
            v.whole(900, 990000, 10),
            "spending|campaign spending",
            asks="How much did {e} spend",
            mods="who spent {v} dollars",
            over="who spent more than {v}",
            under="who spent less than {v}",
        ),
        text(
            "place",
            "Residence|Hometown|Home town",
            v.town,
            "residence|hometown",
            asks="Where does {e} live",
            mods="living in {v}|who lived in {v}",
        ),
        text(
            "category",
            "Occupation|Profession|Job",
            v.one_of("Lawyer|Farmer|Teacher|Nurse|Engineer|Journalist|Retired colonel"),
            "occupation|profession|job",
            asks="What does {e} do for a living|What is the job of {e}",
            mods="with {v} as occupation",
        ),
    ),
)

UNIVERSITIES = Domain(
    "universities",
    forms("school/schools|institution/institutions|!campus/campuses"),
    ("{team} conference members", "Schools in {town}"),
    (
        text(
            "name",
            "Institution|School|School name",
            v.college,
            "institution|school|name",
        ),
        text(
            "place",
            "Location|City, State|Location (city)",
            v.town_and_state,
            "location|city and state",
            asks="Where is {e} located|Where is {e}",
            mods="in {v}|located in {v}|!situated in {v}",
        ),
        real(
            "year",
            "Founded|Est.|Year founded",
            v.whole(1790, 2001),
            "founding year|year of foundation",
            asks="When was {e} founded|What year was {e} established|!When did {e} first open its doors",
            mods="founded in {v}|established in {v}",
            over="founded after {v}",
            under="founded before {v}|older than {v}",
            top="latest|most recent",
            bottom="earliest",
        ),
        text(
            "category",
            "Type|Affiliation|Type/Affiliation",
            v.one_of("Public|Private|Private/Catholic|Private (Methodist)|Community|Land-grant"),
            "type|affiliation",
            asks="What type of school is {e}|Is {e} public or private",
            mods="of the type {v}|classed as {v}",
        ),
        real(
            "count",
            "Enrollment|Enrollment ({y})|Students",
            v.wide(150, 60000),
            "students|enrolled students",
            asks=(
                "How many students does {e} have|How many students attend {e}|What is the enrollment of {e}|"
                "!How many people study at {e}"
            ),
            mods="with {v} students|attended by {v} students",
            over="with an enrollment over {v}|with more than {v} students",
            under="with an enrollment under {v}|with fewer than {v} students",
        ),
        text(
            "category",
            "Nickname|Team nickname|Mascot",
            v.composed("{mascot}"),
            "nickname|mascot|team name",
            asks=(
                "What is the nickname of {e}|What are the teams of {e} called|!What do they call the athletes of {e}"
            ),
            mods="nicknamed the {v}|known as the {v}|!that called its teams the {v}",
        ),
        text(
            "date",
            "Joined|Year joined|Joined (year)",
            v.code("19##|200#|19##–00"),
            "joining date|year joined",
            asks="When did {e} join|What year did {e} join",
            mods="that joined in {v}",
        ),
        text(
            "category",
            "Colors|School colors|Colours",
            v.one_of("Red & white|Blue and gold|Black/silver|Green, white|Maroon|Orange & brown"),
            "colors|school colors",
            asks="What are the colors of {e}",
            mods="with the colors {v}",
        ),
        text(
            "person",
            "President|Head coach|Dean",
            v.person,
            "head|person in charge",
            asks="Who heads {e}",
            mods="headed by {v}|led by {v}",
        ),
        text(
            "category",
            "Conference|Primary conference|Division",
            v.one_of("Big Valley|Coastal 8|Northern Athletic|Sun-Lakes|Heartland|Mid-East"),
            "conference",
            asks="What conference is {e} in|Which conference does {e} play in",
            mods="in the {v} conference|that played in the {v} conference",
        ),
        real(
            "measure",
            "Endowment ($m)|Endowment|Endowment (millions)",
            v.decimal(1, 900, 1),
            "endowment",
            asks="How large is the endowment of {e}",
            over="endowed with more than {v} million",
            under="endowed with less than {v} million",
        ),
    ),
)

DOMAINS = (ELECTIONS, UNIVERSITIES)
