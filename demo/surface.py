"""Surface forms for pre-training: many ways to write a schema, a question and a query.

None of them is sqlora's own text format (`table: …` / `columns: …` / `Q:` / `A: SELECT …` with bare names): that one is
what the adapter has to teach. `is_target_format` finds it, and the corpus refuses a document that holds it. Ordinary
SQL with quoted names is written under CREATE TABLE scripts only, so that it is not what the base answers elsewhere.
"""

from __future__ import annotations

import json
import re
from random import Random

from examples import AGGREGATES, Item

_TARGET = re.compile(r"(?im)^\s*(table: |columns: |Q: |A: ?)|\bSELECT\s+[^\"`\[\n]+\s+FROM\s+[^\"`\[\n]")
OPERATORS = ("=", ">", "<")


def is_target_format(text: str) -> bool:
    """Whether a text holds a line of sqlora's prompt or a SELECT with a bare column and a bare table name."""
    return _TARGET.search(text) is not None


def schema_text(rng: Random, item: Item) -> str:
    """The table's id and columns in one of twelve fixed forms or in a made-up one."""
    return rng.choice(_SCHEMAS)(rng, item)


def _quote(rng: Random, quotes: str, text: str) -> str:
    return {"": text, '"': f'"{text}"', "`": f"`{text}`", "[": f"[{text}]", "'": f"'{text}'", "<": f"<{text}>"}[quotes]


def _create_table(rng: Random, item: Item) -> str:
    mark = rng.choice(('"', "`", "["))
    kinds = rng.choice(({"text": "TEXT", "real": "REAL"}, {"text": "VARCHAR(255)", "real": "NUMERIC"}))
    separator = rng.choice((",\n  ", ", "))
    lines = separator.join(f"{_quote(rng, mark, n)} {kinds[t]}" for n, t in zip(item.header, item.types))
    start, end = ("\n  ", "\n") if separator[-3:] == "\n  " else ("", "")
    return f"CREATE TABLE {_quote(rng, mark, item.table_id)} ({start}{lines}{end});"


def _cells(rng: Random, item: Item) -> list[str]:
    return [item.pool.value(rng, kind)[:24] for kind in item.types]


def _markdown(rng: Random, item: Item) -> str:
    rows = [item.header, ["---"] * len(item.header)] + [_cells(rng, item) for _ in range(rng.randrange(0, 2))]
    return f"## {item.table_id}\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _csv(rng: Random, item: Item) -> str:
    return f"{item.table_id}.csv\n" + ",".join(json.dumps(name, ensure_ascii=False) for name in item.header)


def _json_schema(rng: Random, item: Item) -> str:
    value: dict[str, object] = {"id": item.table_id, "header": item.header}
    if rng.random() < 0.4:
        value["types"] = item.types
    return json.dumps(value, ensure_ascii=False)


def _bullets(rng: Random, item: Item) -> str:
    mark = rng.choice(("- ", "* ", "+ ", "{}. ", "{}) "))
    lines = (mark.format(number) + name for number, name in enumerate(item.header, 1))
    return rng.choice(("{}", "{}:", "relation {}", "[{}]")).format(item.table_id) + "\n" + "\n".join(lines)


def _prose(rng: Random, item: Item) -> str:
    names = ", ".join(item.header[:-1]) + " and " + item.header[-1] if len(item.header) > 1 else item.header[0]
    return rng.choice(("{} has the columns {}.", "The table {} lists {}.", "In {} you find {}.")).format(
        item.table_id, names
    )


def _yaml(rng: Random, item: Item) -> str:
    return f"relation: {item.table_id}\nfields:\n" + "\n".join(
        f"  - {name}" + (f" ({kind})" if rng.random() < 0.3 else "") for name, kind in zip(item.header, item.types)
    )


def _call(rng: Random, item: Item) -> str:
    return f"{item.table_id}({', '.join(item.header)})"


_RELATION = (
    "relation",
    "source",
    "dataset",
    "sheet",
    "tbl",
    "entity",
    "T",
    "name",
    "id",
    "data",
    "file",
    "from",
    "Dataset",
    "SOURCE",
    "use",
    "view",
    "grid",
    "list",
)
_FIELDS = (
    "fields",
    "attributes",
    "cols",
    "keys",
    "variables",
    "header",
    "has",
    "with",
    "attrs",
    "Fields",
    "COLS",
    "labels",
    "names",
    "heads",
    "schema",
    "contains",
)


def _made_up_schema(rng: Random, item: Item) -> str:
    colon = rng.choice((": ", "=", " = ", " ", " -> ", ":"))
    mark = rng.choice(("", "", "", '"', "`", "[", "'"))
    columns = rng.choice((", ", ", ", ", ", " | ", "; ", " / ", ",", " • ")).join(
        _quote(rng, mark, name) for name in item.header
    )
    first = rng.choice(_RELATION) + colon + item.table_id
    second = rng.choice(_FIELDS) + colon + columns
    parts = [first, second] if rng.random() < 0.8 else [second, first]
    return rng.choice(("\n", "\n", "\n", "; ", " ", " :: ")).join(parts)


_SCHEMAS = (
    _create_table,
    _create_table,
    _markdown,
    _csv,
    _json_schema,
    _bullets,
    _prose,
    _yaml,
    _call,
    *[_made_up_schema] * 8,
)


def query_text(rng: Random, item: Item, form: int | None = None) -> str:
    """The query in one of the fixed forms or in a made-up language; `form` fixes which and its random choices."""
    style = Random(rng.randrange(1 << 30) if form is None else form)
    return style.choice(_QUERIES)(style, item)


def sql_script(rng: Random, item: Item) -> tuple[str, str]:
    """A CREATE TABLE statement, and the query in SQL that quotes names in the same manner."""
    return _create_table(rng, item), _sql(rng, item)


def _literal(item: Item, cond: tuple[int, int, str], quote: str) -> str:
    column, _, value = cond
    if item.types[column] == "real":
        return value
    return quote + value + {"[": "]"}.get(quote, quote)


def _sql(style: Random, item: Item) -> str:
    mark = style.choice(('"', "`", "["))
    lower = style.random() < 0.3
    words = [w.lower() if lower else w for w in ("SELECT", "FROM", "WHERE", "AND")]
    name = _quote(style, mark, item.header[item.sel])
    if item.agg:
        name = f"{AGGREGATES[item.agg].lower() if lower else AGGREGATES[item.agg]}({name})"
    text = f"{words[0]} {name} {words[1]} {_quote(style, mark, item.table_id)}"
    for number, cond in enumerate(item.conds):
        value = _literal(item, (cond[0], cond[1], cond[2].replace("'", "''")), "'")
        text += f" {words[3] if number else words[2]} {_quote(style, mark, item.header[cond[0]])} "
        text += f"{OPERATORS[cond[1]]} {value}"
    return text + style.choice((";", ""))


def _json_query(style: Random, item: Item) -> str:
    value: dict[str, object] = {"select": item.header[item.sel]}
    if item.agg or style.random() < 0.5:
        value["agg"] = AGGREGATES[item.agg].lower() or None
    where = [[item.header[c], OPERATORS[op], v] for c, op, v in item.conds]
    if style.random() < 0.7:
        value = {"in": item.table_id, **value} if style.random() < 0.5 else {**value, "in": item.table_id}
    return json.dumps({**value, "where": where}, ensure_ascii=False)


def _pandas(style: Random, item: Item) -> str:
    tests = " & ".join(
        f"(df[{json.dumps(item.header[c], ensure_ascii=False)}] {('==', '>', '<')[op]} "
        f"{_literal(item, (c, op, v), chr(34))})"
        for c, op, v in item.conds
    )
    call = {0: "", 1: ".max()", 2: ".min()", 3: ".count()", 4: ".sum()", 5: ".mean()"}[item.agg]
    return (
        f'df = load("{item.table_id}"); '
        + (f"df[{tests}]" if tests else "df")
        + f"[{json.dumps(item.header[item.sel], ensure_ascii=False)}]{call}"
    )


def _lisp(style: Random, item: Item) -> str:
    where = "".join(
        f' ({OPERATORS[op]} "{item.header[c]}" {_literal(item, (c, op, v), chr(34))})' for c, op, v in item.conds
    )
    return f'({AGGREGATES[item.agg].lower() or "get"} "{item.header[item.sel]}" (rows {item.table_id}{where}))'


def _key_values(style: Random, item: Item) -> str:
    mark = style.choice((": ", "=", " = "))
    lines = [("pick", item.header[item.sel]), ("fold", AGGREGATES[item.agg].lower() or "none"), ("of", item.table_id)]
    lines += [("test", f"{item.header[c]} {OPERATORS[op]} {v}") for c, op, v in item.conds]
    if style.random() < 0.4:
        lines.reverse()
    return style.choice(("\n", "; ")).join(key + mark + value for key, value in lines)


_GET = (
    "get",
    "pick",
    "find",
    "return",
    "fetch",
    "show",
    "take",
    "project",
    "GET",
    "Return",
    "PICK",
    "select",
    "SELECT",
    "read",
    "what",
    "want",
    "output",
    "col",
    "LIST",
    "choose",
    "!",
    "yield",
)
_FROM = ("from", "of", "in", "@", "FROM", "IN", "over", "at", "OF", "on", "table", "using", "out of", "<-")
_WHERE = (
    "where",
    "if",
    "when",
    "with",
    "filter",
    "such that",
    "|",
    "WHERE",
    "WHEN",
    "having",
    "IF",
    "for",
    "?",
    "given",
)
_AND = (" and ", " & ", " && ", ", ", "; ", " AND ", " + ", " also ", " | ")
_OPS = (
    ("=", ">", "<"),
    ("=", ">", "<"),
    ("==", ">", "<"),
    ("is", "over", "under"),
    ("eq", "gt", "lt"),
    ("equals", "above", "below"),
    (":", ">", "<"),
    ("IS", "MORE THAN", "LESS THAN"),
)
_FOLDS = ("{a} {n}", "{a} {n}", "{a}({n})", "{n} {a}", "{n}.{a}", "{a} of {n}", "{a}:{n}", "{a} {n}")
_NAMES = (
    AGGREGATES,
    AGGREGATES,
    tuple(name.lower() for name in AGGREGATES),
    ("", "highest", "lowest", "number", "total", "mean"),
    ("", "top", "bottom", "how many", "sum", "avg"),
)


def _made_up_query(style: Random, item: Item) -> str:
    mark = style.choice(("", "", "", "", '"', "`", "[", "<"))
    value_mark = style.choice(("'", "'", "'", '"', "", "`"))
    get, source, where = style.choice(_GET), style.choice(_FROM), style.choice(_WHERE)
    order = style.choice(((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))
    if get.lower() == "select" and source.lower() == "from":
        source = "out of"  # SELECT … FROM … is kept for scripts
    joiner, ops = style.choice(_AND), style.choice(_OPS)
    name = _quote(style, mark, item.header[item.sel])
    fold, names = style.choice(_FOLDS), style.choice(_NAMES)
    if item.agg:
        name = fold.replace("{a}", names[item.agg]).replace("{n}", name)
    tests = joiner.join(
        f"{_quote(style, mark, item.header[c])} {ops[op]} {_literal(item, (c, op, v), value_mark)}"
        for c, op, v in item.conds
    )
    if style.random() < 0.15:
        where = where + ":"
    id_mark = mark if style.random() < 0.5 or mark == '"' else ""
    clauses = (
        f"{get} {name}",
        f"{source} {_quote(style, id_mark, item.table_id)}",
        f"{where} {tests}" if tests else "",
    )
    separator = style.choice((" ", " ", " ", " ", "\n", " | ", "; "))
    return separator.join(clauses[number] for number in order if clauses[number])


_QUERIES = (_json_query, _pandas, _lisp, _key_values, *[_made_up_query] * 13)
