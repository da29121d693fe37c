"""Reads a run folder back, finds it by what a person types, and says exactly what is broken in it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from bench.errors import ResultsError
from bench.model import TOKEN_LENGTH, HostFacts
from bench.records import SCHEMA, Record, RunInfo
from bench.store.migrations import upgraded

RUN, HOST, TRIALS, TIMINGS = "run.json", "host.json", "trials.jsonl", "startup.pyperf.json"

T = TypeVar("T")


class RunData(Struct, frozen=True):
    """All a run folder says. `warnings` are about the reading of it (a torn last line), not the run's own."""

    info: RunInfo
    host: HostFacts
    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()


class _Version(Struct):
    schema: int = 1  # host.json of the first version has none


_RECORDS = msgspec.json.Decoder(Record)
_AT_ONCE = 8 << 20  # bytes of trials.jsonl
_VERSION = msgspec.json.Decoder(_Version)


def read_info(path: Path) -> RunInfo:
    """run.json of the run folder `path`. Raises ResultsError if it is missing, broken or from a newer bench."""
    return _decode(path / RUN, _bytes_of(path / RUN), RunInfo)


def read_run(path: Path) -> RunData:
    """The whole run folder `path`. A torn last line (a crash) is left out with a warning.

    Raises ResultsError naming the file, and the line, that is missing, broken or from a newer bench.
    """
    info = read_info(path)
    host = _decode(path / HOST, _bytes_of(path / HOST), HostFacts)
    with _no_collection():
        records, warnings = _read_trials(path / TRIALS)
    return RunData(info, host, tuple(records), tuple(warnings))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Records hold no cycles; looking for some in a million of them takes longer than reading them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def list_runs(results: Path) -> list[Path]:
    """Run folders in `results`, oldest first (an id begins with its date); not one that is being made."""
    if not results.is_dir():
        return []
    return sorted(path for path in results.iterdir() if path.name[0] != "." and (path / RUN).is_file())


def find_run(results: Path, text: str) -> Path:
    """The run folder meant by `text`: an id, an unambiguous beginning of one, a token, "latest", or a path.

    Raises ResultsError that lists what there is.
    """
    runs = list_runs(results)
    if text == "latest" and runs:
        return runs[-1]
    found = _matches(runs, text)
    if len(found) == 1:
        return found[0]
    if not found and text and (Path(text) / RUN).is_file():
        return Path(text)
    if found:
        hint = "type more of the id, or its last six characters"
        raise ResultsError(f"{text!r} may mean any of {_names(found)}", hint=hint)
    raise ResultsError(f"there is no run {text!r} in {results}", hint=_what_there_is(runs))


def _matches(runs: list[Path], text: str) -> list[Path]:
    """Runs whose id is `text`, else whose token is, else whose id begins with it."""
    named = [run for run in runs if run.name == text]
    token = [run for run in runs if len(text) == TOKEN_LENGTH and run.name.endswith(f"-{text}")]
    return named or token or ([run for run in runs if run.name.startswith(text)] if text else [])


def _names(runs: list[Path]) -> str:
    """The newest ten ids, and how many more there are."""
    names = [run.name for run in reversed(runs)]
    more = f" and {len(names) - 10} older" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _what_there_is(runs: list[Path]) -> str:
    if not runs:
        return "it holds no run: `bench run density` makes one, --results DIR looks elsewhere"
    return f"there are {_names(runs)}; --results DIR looks elsewhere"


def _read_trials(path: Path) -> tuple[list[Record], list[str]]:
    """All records, and warnings about them."""
    records: list[Record] = []
    with _opened(path) as file:  # some at a time: the whole text beside its records would take twice the memory
        while lines := file.readlines(_AT_ONCE):
            if (found := _all_sound(lines)) is None:
                return records, list(_read_singly(path, itertools.chain(lines, file), records))
            records += found
    return records, []


def _all_sound(lines: list[bytes]) -> list[Record] | None:
    """Whole lines of this version; None if there is anything to be said of one of them."""
    try:
        found = _RECORDS.decode_lines(b"".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    sound = len(found) == len(lines) and all(record.schema == SCHEMA for record in found)  # it skips empty lines
    return found if sound else None


def _read_singly(path: Path, rest: Iterator[bytes], records: list[Record]) -> Iterator[str]:
    """Append the `rest` of the lines to `records`: old ones, broken ones, a torn one. Gives warnings."""
    for number, text in enumerate(rest, start=len(records) + 1):
        line = text.removesuffix(b"\n")
        try:
            records.append(_record(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _refuse_newer(path, line, number)
            more = next(rest, None)
            if isinstance(error, msgspec.ValidationError) or more is not None:  # a torn one is no JSON, and the last
                hint = "the file was changed by something else than bench: restore it, or delete that line"
                raise ResultsError(f"{path}:{number}: {error}", hint=hint) from error
            yield f"{path}:{number}: the last line is torn (the run crashed while writing it); left out"
        else:
            _check_schema(path, records[-1].schema, number)


def _record(line: bytes) -> Record:
    """One line, brought up to date. Raises DecodeError or UnicodeDecodeError."""
    try:
        record = _RECORDS.decode(line)
    except msgspec.ValidationError:
        if 1 <= _VERSION.decode(line).schema < SCHEMA:
            return _old_record(line)
        raise
    return _old_record(line) if 1 <= record.schema < SCHEMA else record


def _old_record(line: bytes) -> Record:
    record: Record = msgspec.convert(_upgraded(line), Record)
    return record


def _upgraded(data: bytes) -> dict[str, Any]:
    raw = msgspec.json.decode(data)
    return upgraded(raw, raw.get("schema", 1), SCHEMA)


def _refuse_newer(path: Path, line: bytes, number: int) -> None:
    """A line we cannot read may be a later version's new kind of record: then say that instead."""
    try:
        version = _VERSION.decode(line).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    _check_schema(path, version, number)


def _check_schema(path: Path, version: int, number: int | None = None) -> None:
    if 1 <= version <= SCHEMA:
        return
    where = f"{path}:{number}" if number else str(path)
    hint = "read it with the bench that wrote it, or a later one (`bench --version`)"
    raise ResultsError(f"{where}: schema version {version}; this bench reads 1 to {SCHEMA}", hint=hint)


def _decode(path: Path, data: bytes, kind: type[T]) -> T:
    """One JSON file as `kind`; the schema version is looked at first, as a newer file may not decode at all."""
    try:
        version = _VERSION.decode(data).schema
        _check_schema(path, version)
        if version < SCHEMA:
            return msgspec.convert(_upgraded(data), kind)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: {error}", hint="the file is damaged: the run can't be read without it") from error


def _bytes_of(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise ResultsError(f"{path}: is missing", hint="name a run folder, see `bench list`") from error
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}", hint="run as the user who owns it, or as root") from error
