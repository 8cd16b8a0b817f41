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


def test_number_takes_the_only_one():
    assert number("about -1,234.5 metres") == -1234.5
    assert number("2e3") == 2000
    for ambiguous in ("none", "2 or 3", "x2"):
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
    with pytest.raises(ParseError, match="no JSON object"):
        parse("rain")
    with pytest.raises(ParseError, match="not JSON"):
        parse('{"cause": ')
    with pytest.raises(ParseError, match="strength: Input should be a valid number"):
        parse('{"cause": "rain", "strength": "very"}')
