"""C4's rules, each on a page that it is for."""

import pytest

from bigmodel_jax.data.cleaning.c4 import C4

LINES = [f"This is the line of words number {n}." for n in ("one", "two", "three")]
PAGE = "\n".join(LINES)


def cleaned(text, **fields):
    found, why = C4(**fields).clean({"text": text})
    return found[0]["text"] if found else why


@pytest.mark.parametrize(
    "line",
    [
        "A menu entry without a mark at its end",
        "It trails off into nothing at all...",
        "Too short here.",
        "Please enable Javascript to see this page.",
        "By reading this you accept our Privacy Policy.",
        "This site uses cookies to make it better.",
    ],
)
def test_a_line_that_a_rule_is_for_goes_and_the_others_stay(line):
    assert cleaned("\n".join([LINES[0], line, *LINES[1:]])) == PAGE


def test_lines_stay_by_their_marks():
    assert cleaned(PAGE) == PAGE
    quoted = 'He said to all of them: "It is so."'
    assert cleaned(f"{PAGE}\n{quoted}\nIs that so, my dear friend?\nIt is so, my dear friend!").count("\n") == 5


def test_citations_are_cut_out():
    marked = "This is[1] the line of words[citation needed] number one.[edit]"
    assert cleaned("\n".join([marked, *LINES[1:]])) == PAGE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{PAGE}\nLorem ipsum dolor sit amet et cetera.", "lorem ipsum"),
        (f"{PAGE}\nfunction() {{ return the value of it; }}", "curly bracket"),
        ("\n".join(LINES[:2]), "few sentences: 2 in the lines that stay, fewer than 3"),
    ],
)
def test_pages_that_go(text, why):
    assert cleaned(text) == why


def test_sentences_are_counted_not_lines():
    assert cleaned("One went to the sea. Two went home! Did three go?").startswith("One")


def test_bad_words_come_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("Fnord\n\nnumber nine\n")
    fields = {"bad_words": str(tmp_path / "words.txt")}
    assert cleaned(f"{PAGE} A fnord!", **fields) == "bad word: fnord"
    assert cleaned(f"{PAGE} Some fnords!", **fields) != "bad word: fnord"
    assert C4(**fields).reads() == [tmp_path / "words.txt"]
    with pytest.raises(ValueError, match=r"^bad_words = '[^\n]*gone\.txt': no such file$"):
        C4(bad_words=str(tmp_path / "gone.txt")).reads()
