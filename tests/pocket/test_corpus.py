"""pocket/corpus.py: which side a document is on, and the texts cut from either side."""

from __future__ import annotations

from planish.pocket.corpus import LEFT_OUT, Document, fingerprint, sample_text


def test_the_split_depends_on_the_name_alone() -> None:
    assert Document("secrets.py", "").heldout and Document("secrets.py", "changed").heldout
    assert not Document("argparse.py", "").heldout


def test_about_a_twentieth_is_held_out() -> None:
    count = sum(Document(f"package/module_{i}.py", "").heldout for i in range(10_000))
    assert 450 < count < 550


def test_tests_tables_and_site_packages_are_left_out() -> None:
    out = ("site-packages/x.py", "test/x.py", "a/tests/x.py", "encodings/cp437.py", "idlelib/x.py")
    kept = ("unittest/case.py", "encodings/utf_8.py", "doctest.py", "configparser.py")
    assert all(LEFT_OUT.search(name) for name in out)
    assert not any(LEFT_OUT.search(name) for name in kept)


def test_the_fingerprint_knows_names_texts_and_order() -> None:
    a, b = Document("a", "one"), Document("b", "two")
    prints = {fingerprint(d) for d in ([a, b], [b, a], [a], [Document("a", "oneb\0two")])}
    assert len(prints) == 4


def test_a_sample_mixes_prose_and_code_and_cuts_long_documents() -> None:
    code = [Document(f"module_{i}.py", "c" * 500) for i in range(40)]
    prose = [Document(f"topic/{i}", "p" * 900) for i in range(40)]
    text = sample_text([*code, *prose], 10_000, prose_share=0.3, most_per_file=400)
    assert 10_000 <= len(text) <= 10_010
    assert max(map(len, text.split("\n\n"))) == 400
    assert 0.25 < text.count("p") / len(text) < 0.35


def test_a_sample_without_prose_is_all_code() -> None:
    assert sample_text([Document("a.py", "abc")], 100) == "abc\n\n"
