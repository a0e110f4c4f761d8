"""The report page, made from what is on disk."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from flowfactory.atomic_files import write_atomically
from flowfactory.config.yaml import parse_yaml
from flowfactory.control_characters import own_lines
from flowfactory.errors import UserError
from flowfactory.policy.parts import PARTS
from flowfactory.runs import facts
from flowfactory.runs.charts import COLOURS, Points, Style, chart, scale_to_unit
from flowfactory.runs.directory import LARGEST_CONFIG, RunDirectory
from flowfactory.runs.doctor.hacked import hacking_warnings
from flowfactory.runs.doctor.supply import describe_dominance, dominant_reward
from flowfactory.runs.drift_section import alarms_of, drift_section
from flowfactory.runs.embedded_media import data_url
from flowfactory.runs.held_out_scores import best_sentence
from flowfactory.runs.score_format import format_score
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, parse_json, read_bytes

T = TypeVar("T")

DIAGNOSTICS = (
    *("loss", "kl", "clip_fraction", "clip_fraction/first_update", "ratio/max_deviation", "effective_sample_size"),
    "grad_norm",
    *(f"grad_norm/{part}" for part in PARTS),
    *("weights/update", "weights/moved", "velocity_norm"),
)
MOST_CHARTS, MOST_PAIRS, MOST_MEDIA = 200, 1000, 256 * 2**20
"""Of a section; of pictures; and characters of all pictures and videos of a page."""


def write_report(directory: RunDirectory, say: Say = lambda _: None, out: Path | None = None) -> Path:
    """The path of ``report.html``, or ``out``: one page without outside parts, made from what is on disk.

    Only from what lies in the directory, and is what a run writes: ``say`` hears of what is left out.
    OSError: the page cannot be written.
    """
    text = page(directory, directory.records(say), say)
    path = out or directory.report
    write_atomically(path, own_lines(text))  # without what a terminal obeys, which may print it, or a file cannot hold
    return path


def page(directory: RunDirectory, records: Sequence[Mapping[str, Any]], say: Say) -> str:
    """The report as HTML."""
    rewards = _series(records, "reward/", "/mean")
    held = _series(records, "eval/", "/mean")
    diagnostics = {name: points for name in DIAGNOSTICS if (points := _points(records, name))}
    config = _read(directory.config, LARGEST_CONFIG, lambda content: content.decode("utf-8", "replace"), "", say)
    alarms = alarms_of(records)
    sections = [
        _ending(facts.read_facts(directory.facts)),
        _best(directory, config, records),
        _warnings(records, _aggregate(config), len(alarms)),
        _scores(held),
        _combined_chart(rewards, held),
    ]
    sections += [_charts("Reward while training", rewards), _charts("Held-out score", held)]
    sections += [drift_section(records, alarms), _pictures(directory, records, say), _charts("Diagnostics", diagnostics)]
    absent: dict[str, str] = {}
    known = _read(directory.facts, facts.LARGEST, _versions, absent, say)
    versions = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(v)}" for k, v in known.items())
    name = html.escape(directory.path.name)
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<meta name=viewport content='width=device-width'>"
        f"<title>{name} · flowfactory</title><style>{STYLE}</style><main><h1>{name}</h1>{''.join(sections)}"
        f"<h2>Config</h2><pre>{html.escape(config)}</pre><h2>Versions</h2><table>{versions}</table></main></html>\n"
    )


POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What a browser lets the page do, whatever stands in it."""
STYLE = """
:root{color-scheme:light dark;--faint:#8884}
body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--faint)}
pre{overflow:auto;padding:1rem;background:#8881;border-radius:6px;font-size:13px}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}.big td{font-size:1.4rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(26rem,1fr));gap:1rem}figure{margin:0}
figcaption{font-size:13px}svg{width:100%;height:auto}
.warnings{border-left:4px solid #d97706;padding:.4rem 1rem .4rem 2rem;background:#d9770618}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem}
.pair{display:flex;gap:4px}.pair>*{width:50%;image-rendering:pixelated;border:1px solid var(--faint)}
"""


def _read(path: Path, limit: int, parse: Callable[[bytes], T], absent: T, say: Say) -> T:
    """What ``parse`` makes of a file of the run directory, at most ``limit`` bytes; ``absent`` where there is no such file."""
    try:
        return parse(read_bytes(path, limit, within=path.parent))
    except FileNotFoundError:
        return absent
    except (Refused, OSError) as error:
        say(f"warning: {path} {error if isinstance(error, Refused) else error.strerror}; left out")
        return absent


def _versions(content: bytes) -> dict[str, str]:
    """Of the distributions that run.json names. Refused: it is not as a run writes it."""
    match parse_json(content):
        case {"versions": dict(found)} if all(isinstance(version, str) for version in found.values()):
            return found
        case _:
            raise Refused("has no versions")


def _points(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(record["iteration"], record[name]) for record in records if name in record]


def _series(records: Sequence[Mapping[str, Any]], prefix: str, suffix: str) -> dict[str, Points]:
    named = (key for key in dict.fromkeys(chain.from_iterable(records)) if key.startswith(prefix) and key.endswith(suffix))
    series: dict[str, Points] = {name: [] for name in islice(named, MOST_CHARTS)}
    for record in records:
        for name in record.keys() & series.keys():
            series[name].append((record["iteration"], record[name]))
    return {name.removeprefix(prefix).removesuffix(suffix): points for name, points in series.items()}


def _scores(held: Mapping[str, Points]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(label)}<td>{format_score(points[0][1])}<td>{format_score(points[-1][1])}"
        f"<td>{format_score(points[-1][1] - points[0][1], sign='+')}"
        for label, points in held.items()
    )
    return f"<h2>Held-out score</h2><table class=big><tr><th><th>before<th>after<th>change{rows}</table>" if rows else ""


def _aggregate(config: str) -> str:
    """``advantages.aggregate`` of a resolved config, whose plugins need not be on this machine."""
    try:
        written = parse_yaml(config, "config.yaml")
    except UserError:
        return "sum"
    match written:
        case {"advantages": {"aggregate": str(aggregate)}}:
            return aggregate
        case _:
            return "sum"


def _best(directory: RunDirectory, config: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Which checkpoint is kept as the best, where the config has one kept."""
    try:
        written = parse_yaml(config, "config.yaml")
    except UserError:
        return ""
    told = best_sentence(directory, written, records)
    return f"<p>{html.escape(told)}</p>" if told else ""


def _ending(found: Mapping[str, Any]) -> str:
    """How the run ended, where it is not done."""
    told = facts.ending_sentence(found)
    return f"<p class=warnings>{html.escape(told)}</p>" if told else ""


def _warnings(records: Sequence[Mapping[str, Any]], aggregate: str, drifted: int) -> str:
    """What the run should have its reader look at first; nothing where the figures do not go together as those of a run do."""
    try:
        told = _told_warnings(records, aggregate, drifted)
    except (LookupError, ArithmeticError, ValueError):
        return ""
    rows = "".join(f"<li>{html.escape(sentence)}" for sentence in told)
    return f"<h2>Warnings</h2><ul class=warnings>{rows}</ul>" if rows else ""


def _told_warnings(records: Sequence[Mapping[str, Any]], aggregate: str, drifted: int) -> list[str]:
    told = list(hacking_warnings(records))
    if drifted:
        figures = f"{drifted} figures" if drifted > 1 else "a figure"
        told.append(f"{figures} of what is drawn left where training began while a training reward rose; see Drift below")
    found = [(record, label) for record in records if (label := dominant_reward(record))]
    for label in dict.fromkeys(label for _, label in found):
        mine = [record for record, which in found if which == label]
        first = "; ".join(describe_dominance(label, mine[0][f"advantage/{label}/share"], aggregate))
        told.append(f"in {len(mine)} iterations, {mine[0]['iteration']} the first of them, {first}")
    return told


def _combined_chart(rewards: Mapping[str, Points], held: Mapping[str, Points]) -> str:
    """Rewards and held-out scores in one chart, each on a scale of its own, so that one that falls as others rise is seen."""
    if not (rewards and any(len(points) > 1 for points in held.values())):
        return ""
    named = [(f"{label} in training", points, False) for label, points in rewards.items()]
    named += [(f"{label} held out", points, True) for label, points in held.items()]
    lines = [scale_to_unit(points) for _, points, _ in named]
    styles = [Style(COLOURS[i % len(COLOURS)], dashed) for i, (_, _, dashed) in enumerate(named)]
    legend = " · ".join(
        f"<span style='color:{style.colour}'>{'┅' if style.dashed else '━'}</span> {html.escape(name)}"
        for (name, _, _), style in zip(named, styles, strict=True)
    )
    drawn = chart(*lines, styles=styles, width=900, height=260)
    told = "each from its lowest (0) to its highest (1)"
    return f"<h2>Training and held-out together</h2><figure><figcaption>{legend}; {told}</figcaption>{drawn}</figure>"


def _charts(title: str, series: Mapping[str, Points]) -> str:
    figures = "".join(
        f"<figure><figcaption>{html.escape(name)}</figcaption>{chart(points)}</figure>" for name, points in series.items()
    )
    return f"<h2>{title}</h2><div class=charts>{figures}</div>" if figures else ""


def _pictures(directory: RunDirectory, records: Sequence[Mapping[str, Any]], say: Say) -> str:
    evaluated = [r["iteration"] for r in records if any(key.startswith("eval/") for key in r)]
    if len(evaluated) < 2:
        return ""
    before, after = directory.read_samples(evaluated[0], say), directory.read_samples(evaluated[-1], say)
    left = MOST_MEDIA
    figures = []
    for old, new in islice(zip(before, after, strict=False), MOST_PAIRS):
        pair = [_medium(item, directory.path, left, say) for item in (old, new)]
        left -= sum(map(len, pair))
        figures.append(
            f"<figure><div class=pair>{''.join(pair)}</div><figcaption>{html.escape(old['prompt'])}<br>"
            f"{_format_scores(old['scores'])} → {_format_scores(new['scores'])}</figcaption></figure>"
        )
    if not figures:
        return ""
    heading = f"Same prompt, same noise: after {evaluated[0]} and after {evaluated[-1]} iterations"
    more = min(len(before), len(after)) - len(figures)
    rest = f"<p>{more} more are in the folders of the run.</p>" if more > 0 else ""
    return f"<h2>{heading}</h2><div class=pictures>{''.join(figures)}</div>{rest}"


def _medium(item: Mapping[str, Any], within: Path, left: int, say: Say) -> str:
    """The picture or the video of a sample, decoded and encoded anew; a note where it is none, or has more than ``left``."""
    path, told = Path(item["path"]), html.escape(item["prompt"], quote=True)
    try:
        if left <= 0:
            raise Refused("is more than the page holds")
        url = data_url(path, within)
    except Refused as error:
        say(f"warning: {path} {error}; left out of the report")
        return f"<span>{html.escape(path.name)} is left out: it {html.escape(str(error))}</span>"
    if path.suffix == ".mp4":
        return f"<video controls loop muted playsinline aria-label='{told}' src='{url}'></video>"
    return f"<img alt='{told}' src='{url}'>"


def _format_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{html.escape(label)} {format_score(score, 2)}" for label, score in scores.items())
