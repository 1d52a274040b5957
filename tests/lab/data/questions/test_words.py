import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.data.questions.words import SPECIAL, encode, tokenise, vocabulary_of

WORDS = st.text("abcdxyz019", min_size=1, max_size=4)
QUESTIONS = st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What color is the shape?", ["what", "color", "is", "the", "shape"]),
        ("What's on the dog's back -- a hat?", ["what's", "on", "the", "dog's", "back", "a", "hat"]),
        ("Isn\N{RIGHT SINGLE QUOTATION MARK}t it 3.5%?", ["isn't", "it", "3", "5"]),
        ("'quoted' words'", ["quoted", "words"]),
        ("Caf\u00e9 / cafe\u0301; \uff12 pi\u00f1as_y", ["caf\u00e9", "caf\u00e9", "2", "pi\u00f1as", "y"]),
        ("<pad> <unknown>", ["pad", "unknown"]),
        (" ?!\n", []),
    ],
)
def test_words_of_a_text(text, words):
    assert list(tokenise(text)) == words


@given(st.text())
def test_a_word_has_no_space_and_is_none_of_the_special_ones(text):
    for word in tokenise(text):
        assert word
        assert word == word.strip("'")
        assert not set(word) & set(" \t\n?<>_")


@given(st.lists(WORDS, max_size=8))
def test_words_with_spaces_between_are_found_again(words):
    assert list(tokenise(" ".join(words).upper())) == words


@given(QUESTIONS, st.integers(1, 3))
def test_a_vocabulary_has_each_frequent_word_once_the_most_frequent_first(questions, least):
    vocabulary = vocabulary_of(questions, least)
    assert vocabulary[:2] == SPECIAL
    words = [word for question in questions for word in question]
    known = vocabulary[2:]
    assert set(known) == {word for word in words if words.count(word) >= least}
    assert list(known) == sorted(set(known), key=lambda word: (-words.count(word), word))


@given(QUESTIONS, st.integers(1, 3), st.integers(1, 8))
def test_numbers_say_the_words_again(questions, least, longest):
    vocabulary = vocabulary_of(questions, least)
    rows = encode(questions, vocabulary, longest)
    assert rows.shape == (len(questions), longest)
    for question, row in zip(questions, rows.tolist()):
        read = [word if word in vocabulary else "<unknown>" for word in question[:longest]]
        assert [vocabulary[number] for number in row] == read + ["<pad>"] * (longest - len(read))
