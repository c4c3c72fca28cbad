"""Tables of every format: the same rows give the same texts, and faults have their places."""

import csv
import io
import json
import pathlib
import types

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from adalink_jax.data import tables
from adalink_jax.data.examples import Meaning, meant
from adalink_jax.errors import UserError

ROWS = [
    {"id": 1, "text": "a fine film", "label": "good", "stars": 4.5, "seen": True},
    {"id": 2, "text": 'he said "no",\nthen left', "label": "bad", "stars": 1.0, "seen": False},
    {"id": 3, "text": "tab\there; and a | bar", "label": "good", "stars": 0.1, "seen": True},
    {"id": 4, "text": "línea \u2028 ünï", "label": "bad", "stars": 3.0, "seen": False},
]


def write_cells(path: pathlib.Path, rows, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_folder(path: pathlib.Path, rows, parts: int = 1, features=()) -> None:
    """As `save_to_disk` of Hugging Face's datasets; the package itself is asked below."""
    path.mkdir(parents=True)
    files = [{"filename": f"data-{i:05}-of-{parts:05}.arrow"} for i in range(parts)]
    table = pyarrow.Table.from_pylist(rows)
    size = -(-len(rows) // parts)
    for i, entry in enumerate(files):
        with pyarrow.OSFile(str(path / entry["filename"]), "wb") as sink:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.slice(i * size, size))
    (path / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (path / "dataset_info.json").write_text(json.dumps({"features": dict(features)}))


def write(path: pathlib.Path, rows) -> pathlib.Path:
    """Writes rows in the format of a name."""
    if path.suffix in (".csv", ".tsv"):
        write_cells(path, rows, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_folder(path, rows, parts=2)
    return path


NAMES = ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a")


def texts(path, **more) -> dict[str, list]:
    rows = tables.read(str(path), **more)
    return {name: list(values) for name, values in rows.columns.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_are_the_same_texts(tmp_path, name):
    found = texts(write(tmp_path / name, ROWS))
    assert found == {column: [str(row[column]) for row in ROWS] for column in ROWS[0]}


WORD = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t"),
    min_size=1,
    max_size=9,
).filter(lambda text: text.strip() == text and '"' not in text and not {"\n", "\t"} <= {*text})


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"text": WORD, "label": WORD}), min_size=1, max_size=5))
def test_any_texts_are_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        found = tables.read(str(write(folder / name, rows)))
        assert list(zip(*(found.columns[c] for c in ("text", "label")), strict=True)) == [
            (row["text"], row["label"]) for row in rows
        ]


def test_places_are_lines_of_text_and_rows_of_tables(tmp_path):
    cells = tables.read(str(write(tmp_path / "a.csv", ROWS)))
    assert [cells.at([row]) for row in range(4)] == ["a.csv:2", "a.csv:3", "a.csv:5", "a.csv:6"]
    assert "(1 rows with a line break in a cell, the first in line 3)" in cells.form
    assert cells.at([0, 2]) == "a.csv, lines 2, 5"
    rows = tables.read(str(write(tmp_path / "a.parquet", ROWS)))
    assert rows.at([1]) == "a.parquet, row 2" and rows.at([0, 1]) == "a.parquet, rows 1, 2"
    many = tables.Rows({}, "a.tsv", "line", range(2, 12))
    assert many.at(range(10)) == "a.tsv, lines 2, 3, 4, 5, 6 and 5 more"


@pytest.mark.parametrize(
    ("content", "columns", "form"),
    [
        ("text;label\na, b;good\n", {"text": ["a, b"], "label": ["good"]}, "between semicolons"),
        (
            "\ufefftext,label\r\na,good\r\n\r\n",
            {"text": ["a"], "label": ["good"]},
            "between commas",
        ),
        ("Text|Label\na|good\n", {"Text": ["a"], "Label": ["good"]}, "between bars"),
        (
            "a,good\nb,good\n",
            {"1": ["a", "b"], "2": ["good", "good"]},
            "'good' of line 1 stands in",
        ),
        ("a,4.5\nb,3\n", {"1": ["a", "b"], "2": ["4.5", "3"]}, "'4.5' of line 1 is a number"),
        ("review,verdict\na,good\n", {"review": ["a"], "verdict": ["good"]}, "columns review"),
        # The cells of a header that is known may stand below it.
        ("text,label\ntext,label\na,label\n", {"text": ["text", "a"], "label": ["label"] * 2}, ""),
    ],
)
def test_delimiter_and_header_are_found_and_said(tmp_path, content, columns, form):
    (tmp_path / "a.csv").write_bytes(content.encode())
    assert texts(tmp_path / "a.csv") == columns
    assert form in tables.read(str(tmp_path / "a.csv")).form


def test_what_is_found_can_be_said_otherwise(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("hello,bonjour\nbread,pain\n")
    assert texts(path) == {"hello": ["bread"], "bonjour": ["pain"]}
    named = texts(path, header=("en", "fr"))
    assert named == {"en": ["hello", "bread"], "fr": ["bonjour", "pain"]}
    assert texts(path, delimiter=";") == {"hello,bonjour": ["bread,pain"]}
    path.write_text("a,1\nb,2\n")
    assert texts(path, known=("a",)) == {"a": ["b"], "1": ["2"]}


def test_quotation_marks_of_glue_are_text(tmp_path, caplog):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"No" he said\tgood\nan open " mark\tbad\n"and one more\tgood\n')
    rows = tables.read(str(path))
    assert list(rows.columns["text"]) == ['"No" he said', 'an open " mark', '"and one more']
    assert "quotation marks are text" in rows.form
    assert [rows.at([i]) for i in range(3)] == ["a.tsv:2", "a.tsv:3", "a.tsv:4"]
    # Between two marks that open cells, whole lines would be lost.
    path.write_text('text\tlabel\n"no" and\tgood\n"open\tbad\na mark"\tgood\n')
    assert texts(path)["label"] == ["good", "bad", "good"]
    path.write_text('text\tlabel\n"open\tbad\na mark"\tgood\n')
    assert texts(path)["label"] == ["bad", "good"]
    path.write_text('text\tlabel\n"a ""b"""\tgood\n')
    assert texts(path)["text"] == ['a "b"']
    assert texts(path, quotes=False)["text"] == ['"a ""b"""']


BAD = types.MappingProxyType(
    {
        "a.csv": {
            b"": "a.csv: no rows",
            b"text,label\n": "a.csv: no rows below its header",
            b"text,label\na,good\nb, c,bad\n": "a.csv:3: 3 cells, where line 1 has 2; a cell that "
            "holds commas needs quotation marks",
            b"text,label\na,good\n\xff,bad\n": "a.csv:3: not UTF-8 text",
            "text,label\na,good\n".encode("utf-16"): "a.csv:1: not UTF-8 text, but UTF-16: save it",
            b"text,label\na\0,good\n": "a.csv:2: holds a zero byte",
            b'text,label\na,good\n"b,bad\nc,bad\n': "a.csv:3: a quotation mark opens a cell",
            b"text,text\na,b\n": "a.csv:1: two columns are named 'text'",
        },
        "a.jsonl": {
            b"": "a.jsonl: no rows",
            b'{"text": "a"}\n\n{"text": "b"\n': "a.jsonl:3: not JSON: Expecting ',' delimiter",
            b'{"text": "a"}\n["b"]\n': "a.jsonl:2: expected an object such as",
        },
        "a.json": {b'[{"text": "a"}, 3]': "a.json, row 2: expected an object"},
        "a.parquet": {b"PAR1": "a.parquet: not a Parquet file"},
        "a.xlsx": {b"": "a table's name ends in .csv, .tsv"},
    }
)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [(name, content, line) for name, some in BAD.items() for content, line in some.items()],
)
def test_faults_of_a_file_are_one_line_with_the_place(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        tables.read(str(tmp_path / name))
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_gets_the_nearest(tmp_path):
    write(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(UserError, match=r"review.csv: no such file; did you mean 'reviews.csv'\?"):
        tables.read(str(tmp_path / "review.csv"))


def test_a_header_is_no_example(tmp_path):
    (tmp_path / "a.csv").write_text("sentence,label\na,good\n")
    with pytest.raises(UserError, match="a.csv:1: this is a header line.*leave Table.header out"):
        tables.read(str(tmp_path / "a.csv"), header=("text", "verdict"))
    with pytest.raises(UserError, match="a.csv:1: 2 cells, but Table.header names 3"):
        tables.read(str(tmp_path / "a.csv"), header=("id", "text", "verdict"))


def test_folders_of_datasets_have_splits_and_names_of_classes(tmp_path):
    folder, classes = tmp_path / "films", {"_type": "ClassLabel", "names": ["bad", "good"]}
    rows = [{"text": row["text"], "label": int(row["label"] == "good")} for row in ROWS]
    for split in ("train", "dev"):
        write_folder(folder / split, rows, parts=3, features={"label": classes})
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    assert tables.splits(str(folder)) == ("train", "dev")
    assert tables.splits(str(folder / "dev")) == tables.splits("a.csv") == ()
    read = tables.read(str(folder), "dev")
    assert read.classes == {"label": ("bad", "good")} and read.name == "films/dev"
    assert list(read.columns["label"]) == ["1", "0", "1", "0"]
    with pytest.raises(UserError, match="no split 'test'; it has train, dev"):
        tables.read(str(folder), "test")
    with pytest.raises(UserError, match="give one of its folders, train, dev"):
        tables.read(str(folder))
    (folder / "dev/data-00001-of-00003.arrow").write_bytes(b"ARROW")
    with pytest.raises(UserError, match="data-00001-of-00003.arrow: cannot be read, or is damaged"):
        tables.read(str(folder), "dev")
    (folder / "dev/state.json").write_text('{"_indices_data_files": [{"filename": "a"}]}')
    with pytest.raises(UserError, match="a selection of rows; save its flatten_indices"):
        tables.read(str(folder), "dev")
    (folder / "dev/state.json").unlink()
    with pytest.raises(UserError, match="a folder without state.json"):
        tables.read(str(folder), "dev")


def test_numbers_of_four_bytes_are_as_short_as_they_were_written(tmp_path):
    table = pyarrow.table({"text": ["a", "b"], "score": pyarrow.array([0.1, None], "float32")})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet")["score"] == ["0.1", None]


def test_datasets_itself_writes_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict(train=table, dev=table).save_to_disk(tmp_path / "films")
    table.to_parquet(tmp_path / "a.parquet")
    for path, split in (("films", "dev"), ("a.parquet", None)):
        read = tables.read(str(tmp_path / path), split)
        assert read.classes == {"label": ("bad", "good")}
        assert list(read.columns["text"]) == ["a", "b"]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_altered_files_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("altered")
    name = data.draw(st.sampled_from(NAMES))
    path = write(folder / name, ROWS)
    path = path if path.is_file() else data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        rows = tables.read(str(folder / name))
        meant(rows, Meaning(("text",), "label"))
    except UserError as error:
        assert "\n" not in str(error)


def test_cells_may_be_long(tmp_path):
    text = "word " * 20_000
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["text", "label"], [text, "good"]])
    (tmp_path / "a.csv").write_text(buffer.getvalue())
    assert texts(tmp_path / "a.csv")["text"] == [text]


def test_a_key_twice_in_an_object_is_refused_as_a_column_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "text": "c"}\n')
    with pytest.raises(UserError, match="^a.jsonl:2: 'text' stands in one object twice"):
        tables.read(str(tmp_path / "a.jsonl"))


def test_a_number_is_not_what_only_python_takes_for_one():
    found = [tables.number(text) for text in ("1_37", "1e3", " 7 ", "nan")]
    assert found == [None, 1000.0, 7.0, None]


def test_two_columns_of_one_name_are_refused_in_parquet_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["a", "b"]), pyarrow.array(["c", "d"])]
    parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet: 'text' is the name of two columns"):
        tables.read(str(tmp_path / "a.parquet"))
