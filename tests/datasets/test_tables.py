"""Tables of people in every form that they come in: understood, or refused with what to do."""

import json

import pytest

from brainldm.datasets.tables import MAX_COLUMNS, read_table
from brainldm.runtime.errors import UserError


def table_of(tmp_path, text, described=None, name="people.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if described is not None:
        path.with_suffix(".json").write_text(json.dumps(described))
    return path


def column(tmp_path, name, cells, described=None):
    """The standard form of a single column of values."""
    text = "id\t" + name + "\n" + "".join(f"p{i}\t{cell}\n" for i, cell in enumerate(cells))
    return read_table(table_of(tmp_path, text, None if described is None else {name: described}, "people.tsv"))


@pytest.mark.parametrize(
    "text",
    [
        b"id,age,site\na1,63.5,Leeds\nb2,,\n",
        b"id;age;site\na1;63,5;Leeds\nb2;;\n",
        b"id\tage\tsite\na1\t63.5\tLeeds\nb2\tn/a\tn/a\n",
        b"\xef\xbb\xbfid,age,site\r\na1,63.5,Leeds\r\nb2,NA,NaN\r\n\r\n",
        b"id,age,site\ra1,63.5,Leeds\rb2,.,null\r",
        'id,"age",site\n"a1","63.5",Leeds\nb2, ,#N/A\n'.encode("utf-16"),
    ],
)
def test_separators_endings_and_encodings(tmp_path, text):
    table = read_table(table_of(tmp_path, text))
    assert table.rows == [
        {"id": "a1", "site": "Leeds", "age": "63.5"},
        {"id": "b2", "site": "n/a", "age": "n/a"},
    ]
    assert (table.id_column, table.session_column, table.problems) == ("id", None, {})


@pytest.mark.parametrize(
    "name",
    ["{f}", "{f}-0.0", "{f}-2.0", "f.{f}.2.0", "p{f}", "p{f}_i2", "participant.p{f}_i2", "n_{f}_2_0", "x{f}_2_0"],
)
def test_uk_biobank_fields_under_all_their_names(tmp_path, name):
    head = ",".join(["eid", *(name.format(f=f) for f in (31, 21003, 25004, 25009))])
    table = read_table(table_of(tmp_path, head + "\n1000012,0,63,35123.5,1512345\n1000023,1,70,41000,1400000\n"))
    assert table.rows[0] == {
        "eid": "1000012",
        "sex": "F",
        "age": "63",
        "ventricles_ml": "35.1235",
        "brain_ml": "1512.345",
    }
    assert table.rows[1]["sex"] == "M"
    assert table.id_column == "eid"
    assert any("0 is F, 1 is M, by UK Biobank field 31" in note for note in table.notes)


@pytest.mark.parametrize(
    "columns, taken",
    [
        (("21003-0.0", "21003-1.0", "21003-2.0", "21003-3.0"), "21003-2.0"),
        (("21003-3.0", "21003-1.0", "21003-0.0"), "21003-0.0"),
        (("p21003_i3", "p21003_i1"), "p21003_i1"),
        (("21003-2.0", "age"), "age"),
    ],
)
def test_the_imaging_visit_is_taken_and_said(tmp_path, columns, taken):
    cells = ",".join(str(40 + i) for i in range(len(columns)))
    table = read_table(table_of(tmp_path, f"eid,{','.join(columns)}\n7,{cells}\n"))
    assert table.rows[0]["age"] == str(40 + columns.index(taken))
    assert taken == "age" or any(f"age is column {taken}" in note for note in table.notes)


def test_age_at_recruitment_is_not_age_at_scan(tmp_path):
    table = read_table(table_of(tmp_path, "eid,21022-0.0\n7,55\n"))
    assert table.rows == [{"eid": "7", "21022-0.0": "55"}]


@pytest.mark.parametrize(
    "name, cells, described, expected",
    [
        ("sex", ["F", "m", "Female", " male", "n/a"], None, ["F", "M", "F", "M", "n/a"]),
        ("Gender", ["woman", "Man"], None, ["F", "M"]),
        ("sex", ["1", "2", "1.0"], {"Levels": {"1": "male", "2": "female"}}, ["M", "F", "M"]),
        ("sex", ["0", "1"], {"Levels": {"0": {"Description": "Female"}, "1": {"Description": "Male"}}}, ["F", "M"]),
        ("SEX_ID (1=m, 2=f)", ["1", "2"], None, ["M", "F"]),
        ("31-0.0", ["Female", "Male"], None, ["F", "M"]),
        ("sex", ["n/a", ""], None, ["n/a", "n/a"]),
    ],
)
def test_sex(tmp_path, name, cells, described, expected):
    assert [row["sex"] for row in column(tmp_path, name, cells, described).rows] == expected


@pytest.mark.parametrize("cells", [["1", "2"], ["0", "1"], ["", "2"], ["w", "h"]])
def test_sex_in_an_unknown_code_is_not_guessed(tmp_path, cells):
    with pytest.raises(UserError, match=r"people.tsv, p\d: sex is '.', which could mean anything.*Levels"):
        column(tmp_path, "sex", cells)


@pytest.mark.parametrize(
    "name, cells, described, said",
    [
        ("age", ["744", "802"], None, "median of 744.*months"),
        ("age_months", ["60", "70"], None, "is in months.*by 12"),
        ("Age (months)", ["60"], None, "is in months"),
        ("age", ["60"], {"Units": "months"}, "is in months"),
        ("age", ["60"], {"Units": "days"}, "is in days"),
        ("ventricles", ["30"], None, "volume without a unit.*ventricles_mm3.*Units"),
        ("Lateral Ventricular Volume", ["8491.9"], None, "without a unit"),
        ("brain volume", ["1500"], None, "without a unit.*brain_mm3"),
        ("brain_ml", ["1500000"], None, "median of 1.5e.06 mL if its unit is ml"),
        ("brain_mm3", ["1500"], None, "median of 1.5 mL if its unit is mm3"),
        ("25004-2.0", ["35"], None, "median of 0.035 mL"),
        ("brain_ml", ["1500"], {"Units": "mm^3"}, "ends in ml, but its Units are mm"),
        ("brain", ["1500"], {"Units": "voxels"}, "is in 'voxels'"),
    ],
)
def test_units_that_cannot_be_known_are_refused(tmp_path, name, cells, described, said):
    with pytest.raises(UserError, match=said) as caught:
        column(tmp_path, name, cells, described)
    assert "people.tsv" in str(caught.value)


@pytest.mark.parametrize(
    "name, cell, described, expected",
    [
        ("brain_ml", "1500.25", None, ("brain_ml", "1500.25")),
        ("Brain (mL)", "1500", None, ("brain_ml", "1500")),
        ("brain_volume_mm3", "1500000", None, ("brain_ml", "1500")),
        ("brain volume [cm³]", "1500", None, ("brain_ml", "1500")),
        ("ventricles", "35123.5", {"Units": "mm^3"}, ("ventricles_ml", "35.1235")),
        ("ventricles", "35.5", {"Units": "millilitres"}, ("ventricles_ml", "35.5")),
        ("Lateral Ventricular Volume", "8500", {"Units": "cubic millimetres"}, ("ventricles_ml", "8.5")),
        ("lateral_ventricles_cc", "8.5", None, ("ventricles_ml", "8.5")),
        ("AGE", "63,5", None, ("age", "63.5")),
        ("Age (years)", "63", None, ("age", "63")),
        ("age_at_scan", "63", {"Units": "years"}, ("age", "63")),
        ("ventricles_all_ml", "8.5", None, ("ventricles_all_ml", "8.5")),
    ],
)
def test_names_and_units_that_are_known(tmp_path, name, cell, described, expected):
    assert column(tmp_path, name, [cell], described).rows[0][expected[0]] == expected[1]


def test_one_odd_cell_is_a_problem_of_its_row(tmp_path):
    table = column(tmp_path, "age", ["60", "sixty", "850", "-3", "n/a"])
    assert sorted(table.problems) == [1, 2, 3]
    assert "'sixty', which is no age" in table.problems[1]
    assert column(tmp_path, "sex", ["F", "M", "3"]).problems == {2: "sex is '3', which is neither F nor M"}
    assert column(tmp_path, "brain_ml", ["1500", "0", "big"]).problems.keys() == {1, 2}


def test_descriptions_of_a_dataset_hold_for_its_other_tables(tmp_path):
    (tmp_path / "participants.json").write_text('{"ventricles": {"Units": "mm3"}}')
    assert column(tmp_path, "ventricles", ["30000"]).rows[0]["ventricles_ml"] == "30"


def test_two_columns_for_one_condition(tmp_path):
    with pytest.raises(UserError, match="sex_code, gender could each be sex. Name the right one sex"):
        read_table(table_of(tmp_path, "id,sex_code,gender\na,F,F\n"))
    assert read_table(table_of(tmp_path, "id,sex,gender\na,F,m\n")).rows == [{"id": "a", "gender": "m", "sex": "F"}]


def test_columns_that_are_not_asked_for_stay_as_they_are(tmp_path):
    path = table_of(tmp_path, "id,sex,age\na,2,60\n")
    assert read_table(path, wanted=("age",)).rows == [{"id": "a", "sex": "2", "age": "60"}]


def test_a_very_wide_table_keeps_what_means_something(tmp_path):
    names = ["eid", *(f"{n}-0.0" for n in range(50000, 50000 + MAX_COLUMNS)), "21003-2.0", "Scanner"]
    path = table_of(tmp_path, ",".join(names) + "\n" + ",".join(["7"] * (len(names) - 2)) + ",61,A\n")
    table = read_table(path, keep=("scanner",))
    assert table.rows == [{"eid": "7", "Scanner": "A", "age": "61"}]
    assert any("200 that mean nothing here" in note for note in table.notes)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no participants"),
        (b"id,age\n", "no participants"),
        (b"id,age\n1,2,3\n", "line 2: 3 fields, but 2 column names"),
        (b"id,age,age\n1,2,3\n", "age.*appear twice|appear twice.*age"),
        (b"id,age\n1,\xff\n", "UTF-8"),
        (b"id,age\n1,\x00\n", "NUL"),
        (b"PK\x03\x04spreadsheet", "Save it as CSV"),
        (b'id,age\n1,"' + b"x" * 200000 + b'"\n', "cannot be read as a table"),
    ],
)
def test_what_is_no_table(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as caught:
        read_table(table_of(tmp_path, content))
    assert "people.csv" in str(caught.value)


def test_an_absent_table_and_broken_descriptions(tmp_path):
    with pytest.raises(UserError, match="nowhere.csv: cannot be read"):
        read_table(tmp_path / "nowhere.csv")
    path = table_of(tmp_path, "id,age\na,60\n")
    path.with_suffix(".json").write_text("{age: years}")
    with pytest.raises(UserError, match="people.json: not valid JSON.*units of people.csv"):
        read_table(path)


def test_real_tables(shared):
    ixi = shared / "data/ixi_2mm"
    table = read_table(ixi / "IXI_demog_n10.csv")
    assert table.rows[0] == {"MRID": "IXI012-HH-1211", "age": "38.78", "sex": "M"}
    assert (table.id_column, len(table.rows)) == ("MRID", 10)
    with pytest.raises(UserError, match="Lateral Ventricular Volume is a volume without a unit"):
        read_table(ixi / "IXI_lateral_ventricle_volumes_n591.tsv")
    others = read_table(ixi / "IXI_lateral_ventricle_volumes_n591.tsv", wanted=("age", "sex"))
    assert others.rows[0]["sex"] == "F" and others.rows[0]["age"] == "35.8" and not others.problems
    oasis = read_table(shared / "data/oasis_mni_1mm/participants.tsv")
    assert oasis.rows[0]["brain_ml"] == "1405.811" and oasis.session_column == "session_id"
