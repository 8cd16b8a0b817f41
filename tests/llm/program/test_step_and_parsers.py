"""Steps see what they declare and nothing else; parsers never guess."""

import pytest
from pydantic import BaseModel

from privlm.errors import UsageError
from privlm.llm.program import ParseError, Step, choice, json_object, number, regex, stripped
from privlm.llm.types import Message

pytestmark = pytest.mark.torch_free


def test_a_template_may_not_read_what_is_not_declared():
    with pytest.raises(UsageError, match="step 'think': variable 'answer' is not declared"):
        Step("think", "{{ question }} {{ answer }}", ("question",))
    with pytest.raises(UsageError, match="step 'judge': variable 'secret'"):
        Step("judge", "{{ question }}", ("question",), continuation="{% if secret %}yes{% endif %}")


@pytest.mark.parametrize("name", ["range", "dict", "lipsum", "cycler", "namespace", "joiner"])
def test_jinja_puts_nothing_of_its_own_into_a_prompt(name):
    with pytest.raises(UsageError, match=name):
        Step("think", "{{ " + name + " }}", ())


def test_variables_must_be_the_declared_ones():
    step = Step("think", "Q: {{ question }}\n", ("question",))
    assert step.prompt({"question": "{{ 7 * 7 }} <b>"}) == "Q: {{ 7 * 7 }} <b>\n"
    with pytest.raises(UsageError, match="step 'think': variable 'canary' is not declared"):
        step.prompt({"question": "?", "canary": "c4n4ry"})
    with pytest.raises(UsageError, match="step 'think': no value for its input 'question'"):
        step.prompt({})


def test_the_kind_follows_from_what_is_given():
    assert Step("a", "", ()).kind == "generate"
    score = Step("b", "{{ p }}", ("p", "q"), continuation=" {{ q }}")
    assert score.kind == "score"
    (request,) = score.score_requests({"p": "Snow.", "q": "White?"})
    assert (request.context, request.continuation) == ("Snow.", " White?")
    choose = Step("c", "{{ p }}", ("p",), options=(" yes", " no"))
    assert choose.kind == "choose"
    assert [request.continuation for request in choose.score_requests({"p": "?"})] == [" yes", " no"]


def test_a_chat_step_is_a_turn_and_is_asked_again_in_turns():
    step = Step("a", "{{ q }}", ("q",), chat=True, system="Be brief.")
    prompt = step.prompt({"q": "Why?"})
    assert prompt == (Message("system", "Be brief."), Message("user", "Why?"))
    again = step.reask(prompt, "Hm.", "no number")
    assert again[2] == Message("assistant", "Hm.")
    assert "no number" in again[3].content


def test_choice_takes_one_option_as_a_word():
    parse = choice("yes", "no")
    assert parse(" Yes, of course.") == "yes"
    assert parse("NO") == "no"
    for ambiguous in ("nobody knows", "yes and no", "", "yesterday"):
        with pytest.raises(ParseError):
            parse(ambiguous)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("No.", "no"),
        ("no", "no"),
        ("\n\n**Yes.**", "yes"),
        ("Yes, it does.", "yes"),
        ("No; it is the reverse.", "no"),
        ("Yes (it does).", "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("Yes, although the mechanism is unknown.", "yes"),
        ("The answer is yes.", "yes"),
        ("So the final answer: no", "no"),
        *((text, None) for text in (
            "No idea.", "Not sure.", "I don't know.", "No, I don't know.", "No. I cannot say.", "None of them.",
            "No one can tell.", "Nobody knows", "No-one knows.", "Yes and no.", "Yes, and no.", "Yes or no", "Yes/No",
            "Yes? No.", "No. Yes.", "No... yes.", "No! I mean yes!", "Yes, probably.", "Yes, it depends.", "No doubt.",
            "No, neither.", "No. 1 cause", "The answer is not yes.", "The answer is unknown. No", "Yes but no", "",
        )),
    ],
)  # fmt: skip
def test_an_answer_of_one_word_is_the_word_and_an_end(output, value):
    parse = choice("yes", "no")
    if value is not None:
        assert parse(output) == value
        return
    with pytest.raises(ParseError, match="name exactly one of yes, no"):
        parse(output)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("A", "A"), ("(B)", "B"), ("b.", "B"), ("B. Smoke follows fire", "B"), ("The correct answer is (A).", "A"),
        ("Option B", "B"), ("B, since a cause comes first", "B"),
        *((text, None) for text in (
            "A or B", "Either A or B", "A and B", "A, B", "A/B", "Not A", "Neither", "None of A and B",
            "I think a cause is here", "A cause is here", "A, but B is possible", "The answer is not A.",
        )),
    ],
)  # fmt: skip
def test_an_article_is_no_letter_and_two_letters_are_none(output, value):
    parse = choice("A", "B")
    if value is not None:
        assert parse(output) == value
        return
    with pytest.raises(ParseError):
        parse(output)


def test_number_takes_the_only_one():
    assert number("about -1,234.5 metres") == -1234.5
    assert number("2e3") == 2000
    assert number("\u22125 degrees") == -5  # a minus sign, not a hyphen
    assert number("It is 7.") == 7
    for ambiguous in ("none", "2 or 3", "x2", "1.2.3", "5 million", "less than 5", "at least 5", "not 5", "> 5", "- 5",
                      "1e999"):  # fmt: skip
        with pytest.raises(ParseError, match="exactly one"):
            number(ambiguous)


def test_regex_needs_a_group():
    assert regex(r"answer is (yes|no)")("So the answer is NO.") == "NO"
    with pytest.raises(ParseError):
        regex(r"answer is (yes|no)")("maybe")
    with pytest.raises(ValueError, match="no group"):
        regex("answer")
    with pytest.raises(ParseError, match="empty"):
        stripped(" \n")


class Edge(BaseModel):
    cause: str
    strength: float


def test_json_is_checked_by_its_schema():
    parse = json_object(Edge)
    assert parse('Sure:\n```json\n{"cause": "rain", "strength": 0.5}\n``` done') == Edge(cause="rain", strength=0.5)
    assert parse('{"cause": "rain", "strength": 1} or {"strength": 1, "cause": "rain"}').strength == 1
    with pytest.raises(ParseError, match="2 JSON objects that differ"):
        parse('{"cause": "rain", "strength": 1} or {"cause": "sun", "strength": 1}')
    with pytest.raises(ParseError, match="not JSON: two fields"):
        parse('{"cause": "rain", "strength": 1, "strength": 2}')
    with pytest.raises(ParseError, match="not JSON: NaN is no number"):
        parse('{"cause": "rain", "strength": NaN}')
    with pytest.raises(ParseError, match="no JSON object"):
        parse("rain")
    with pytest.raises(ParseError, match="not JSON"):
        parse('{"cause": ')
    with pytest.raises(ParseError, match="strength: Input should be a valid number"):
        parse('{"cause": "rain", "strength": "very"}')
