"""Domains of the demo data: basketball and football. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

BASKETBALL = Domain(
    "basketball draft",
    forms("player/players|draft pick/draft picks|!draftee/draftees"),
    ("{y} basketball draft", "All-time roster of the {team}"),
    (
        text(
            "name",
            "Player|Name|Player name",
            v.person,
            "player|name",
            asks="Who is {e}",
        ),
        real(
            "number",
            "Pick #|Pick|Overall pick #|Pick (overall)",
            v.serial,
            "pick number|draft pick|!draft position",
            asks="Where in the draft was {e} taken|What number was {e} picked",
            mods="taken with pick number {v}|picked number {v}|!drafted at number {v}",
            over="picked later than number {v}",
            under="picked before number {v}",
        ),
        text(
            "category",
            "Position|Pos.|Pos|Position(s)",
            v.one_of("Guard|Forward|Center|Guard-Forward|Forward/Center|Point guard"),
            "position|playing position|!role on the court",
            asks="What position did {e} play|Where on the court did {e} play|!In what role did {e} line up",
            mods="who played {v}|in the {v} position|playing as a {v}|!used as a {v}",
        ),
        text(
            "place",
            "Nationality|Country|Nation",
            v.country,
            "nationality|country|home country|!homeland",
            asks="Which country is {e} from|What country does {e} come from|!Where does {e} hail from",
            mods="from {v}|who came from {v}|representing {v}|!hailing from {v}",
        ),
        text(
            "place",
            "School/Club Team|School|College/junior/club team|College",
            v.college,
            "school|college|school or club team|!alma mater",
            asks=(
                "Which school did {e} attend|What college did {e} play for|Where did {e} go to school|"
                "!Where did {e} study"
            ),
            mods="who attended {v}|who went to {v}|out of {v}|!educated at {v}",
        ),
        text(
            "place",
            "Team|NBA Team|Club|Drafted by",
            v.team,
            "team|club|!franchise",
            asks="Which team picked {e}|What team did {e} join|!Who drafted {e}",
            mods="picked by the {v}|who joined the {v}|drafted by {v}",
        ),
        real(
            "measure",
            "Height (cm)|Height in cm|Ht. (cm)",
            v.whole(170, 224),
            "height|height in cm",
            asks="How tall is {e}|How many centimetres tall was {e}",
            mods="who stood {v} cm tall|!measuring {v} cm",
            over="taller than {v} cm",
            under="shorter than {v} cm",
            top="tallest|greatest",
            bottom="shortest|smallest",
        ),
        real(
            "count",
            "Points|Points ({y})|Total points|Pts",
            v.whole(3, 2900),
            "points|points scored",
            asks="How many points did {e} score",
            mods="who scored {v} points",
            over="who scored more than {v} points",
            under="who scored fewer than {v} points|!held below {v} points",
        ),
        real(
            "count",
            "Rebounds|Reb.|Rebounds ({y})",
            v.whole(2, 1200),
            "rebounds",
            asks="How many rebounds did {e} get|!How many boards did {e} grab",
            mods="who grabbed {v} rebounds",
        ),
        real(
            "count",
            "Games|Games played|GP",
            v.whole(1, 420),
            "games|games played|!appearances",
            asks="How many games did {e} play",
            mods="who played {v} games",
            over="who played more than {v} games",
        ),
        text(
            "date",
            "Years for club|Years in Toronto|Years",
            v.code("199#–200#|198#–9#|200#–0#"),
            "years for the club|years with the team",
            asks="During which years did {e} play|What years was {e} with the team",
            mods="who played in {v}",
        ),
    ),
)

FOOTBALL = Domain(
    "football matches",
    forms("match/matches|game/games|!fixture/fixtures"),
    ("{y} {team} season", "{team} results"),
    (
        text(
            "date",
            "Date|Date of match|Date played",
            v.date,
            "date|day",
            asks="When was {e} played|On what date was {e}|!On which day did {e} take place",
            mods="on {v}|played on {v}",
        ),
        text(
            "place",
            "Opponent|Opponents|Opponent team|Versus",
            v.team,
            "opponent|opposing team|!rival",
            asks="Who was the opponent in {e}|Who did they play in {e}",
            mods="against {v}|against the {v}|!versus {v}",
        ),
        text(
            "code",
            "Score|Result|Final score|Score, final",
            v.score(0, 6),
            "score|result|final score|!scoreline",
            asks="How did {e} end|What was the final score of {e}",
            mods="that ended {v}|that finished {v}",
        ),
        text(
            "place",
            "Venue|Ground|Stadium|Location",
            v.town,
            "venue|ground|stadium|location",
            asks="Where was {e} played|Where did {e} take place|!Which place hosted {e}",
            mods="at {v}|played at {v}|held in {v}",
        ),
        text(
            "category",
            "Competition|Tournament|Comp.",
            v.one_of("Friendly|League Cup|FA Cup|Champions' Trophy|World Cup qualifier|League One"),
            "competition|tournament",
            asks="What competition was {e} part of",
            mods="in the {v} competition",
        ),
        real(
            "count",
            "Attendance|Crowd|Att.|Attendance (total)",
            v.wide(300, 90000),
            "spectators|people in attendance|fans",
            asks="How many people attended {e}|How many fans came to {e}|What was the attendance at {e}",
            mods="attended by {v} people|watched by {v} fans",
            over="attended by more than {v} people|with a crowd over {v}",
            under="attended by fewer than {v} people|with a crowd under {v}",
        ),
        text(
            "person",
            "Scorer(s)|Goalscorer|Scorer|Top scorer",
            v.person,
            "scorer|goalscorer",
            asks="Who scored in {e}|!Who found the net in {e}",
            mods="in which {v} scored|with a goal by {v}",
        ),
        text(
            "person",
            "Referee|Match referee|Ref.",
            v.person,
            "referee|!official in charge",
            asks="Who refereed {e}|Who was in charge of {e}",
            mods="refereed by {v}|!officiated by {v}",
        ),
        real(
            "number",
            "Week|Game #|Round|Match no.",
            v.serial,
            "round number|week|game number",
        ),
        text(
            "code",
            "Record|Record (W–L)|W–L",
            v.score(0, 18, "{}-{}"),
            "record|win-loss record",
            asks="What was the record after {e}",
            mods="that left a record of {v}",
        ),
        text(
            "category",
            "H / A|Home/Away|H/A",
            v.one_of("H|A|N"),
            "home or away value|H/A code",
        ),
    ),
)

DOMAINS = (BASKETBALL, FOOTBALL)
