"""openai_client.py BASE_URL IMAGE: conversations through the official client, whole and streamed, blocking and asynchronous; the key is "secret"."""
import asyncio
import base64
import pathlib
import sys

import openai

base_url, image = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, api_key="secret", max_retries=0)
create = client.chat.completions.create
assert [model.id for model in client.models.list()] == ["tiny"]
assert client.models.retrieve("tiny").id == "tiny"
url = "data:image/jpeg;base64," + base64.b64encode(pathlib.Path(image).read_bytes()).decode()
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]},
]

# Whole.
whole = create(model="tiny", messages=messages, max_tokens=24)
text = whole.choices[0].message.content
assert text and whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.object == "chat.completion" and whole.model == "tiny" and whole.id.startswith("chatcmpl-") and whole.created > 0
assert 0 < whole.usage.completion_tokens <= 24
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
without_picture = create(model="tiny", messages=[{"role": "user", "content": "What is this?"}], max_tokens=1)
assert whole.usage.prompt_tokens > without_picture.usage.prompt_tokens + 3, "a picture's features count"
assert without_picture.usage.completion_tokens == 1 and without_picture.choices[0].finish_reason == "length"

# Streamed: the same text and counts, piece by piece.
chunks = list(create(model="tiny", messages=messages, max_tokens=24, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert chunks[-1].usage == whole.usage and all(chunk.usage is None for chunk in chunks[:-1])
assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [whole.choices[0].finish_reason]
assert not any(chunk.usage for chunk in create(model="tiny", messages=messages, max_tokens=2, stream=True))

# A stop text cuts the answer before it, streamed as well.
stop = text[len(text) // 2:][:4]
stopped = create(model="tiny", messages=messages, max_tokens=24, stop=stop)
assert stopped.choices[0].message.content == text.split(stop)[0] and stopped.choices[0].finish_reason == "stop", stopped
pieces = create(model="tiny", messages=messages, max_tokens=24, stop=["never", stop], stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == text.split(stop)[0]

# Messages as the client returns and dumps them; system and developer messages; pictures between texts.
for earlier in (whole.choices[0].message, whole.choices[0].message.model_dump()):
    assert create(model="tiny", messages=messages + [earlier, {"role": "user", "content": "Are you sure?"}], max_tokens=4).usage
developers = [{"role": "system", "content": "You are a"}, {"role": "developer", "content": "helpful assistant."}]
assert create(model="tiny", messages=developers + messages[1:], max_tokens=4, reasoning_effort="none", modalities=["text"], top_logprobs=0,
              extra_body={"min_p": 0, "top_k": -1, "chat_template_kwargs": {}}).usage
part, say = {"type": "image_url", "image_url": {"url": url}}, lambda words: {"type": "text", "text": words}
between = create(model="tiny", messages=[{"role": "user", "content": [say("This:"), part, say("What is it?")]}], max_tokens=24)
marked = create(model="tiny", messages=[{"role": "user", "content": [say("This:\n<image>\nWhat is it?"), part]}], max_tokens=24)
assert between.choices[0].message.content == marked.choices[0].message.content and between.usage == marked.usage

# Several turns, drawn: the seed decides.
messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Are you sure?"}]
drawn = [create(model="tiny", messages=messages, max_completion_tokens=16, temperature=1, top_p=0.9, seed=seed).choices[0].message.content
         for seed in (3, 3, 4, 5)]
assert drawn[0] == drawn[1] and len(set(drawn)) > 1, drawn


async def together():
    """Several at once through the asynchronous client, each as when alone."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="secret", max_retries=2) as asynchronous:
        ask = lambda: asynchronous.chat.completions.create(model="tiny", messages=messages[:2], max_tokens=24)
        return [answer.choices[0].message.content for answer in await asyncio.gather(*(ask() for _ in range(6)))]


assert asyncio.run(together()) == [text] * 6

# Leaving a stream early is no harm.
with create(model="tiny", messages=messages, max_tokens=200, stream=True) as stream:
    next(iter(stream))

picture = lambda address: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]
for arguments, kind, param in [
    (dict(model="other", messages=messages), openai.NotFoundError, "model"),
    (dict(model="tiny", messages=[]), openai.BadRequestError, "messages"),
    (dict(model="tiny", messages=messages, n=2), openai.BadRequestError, "n"),
    (dict(model="tiny", messages=messages, temperature=9), openai.BadRequestError, "temperature"),
    (dict(model="tiny", messages=messages, stop=["a"] * 5), openai.BadRequestError, "stop"),
    (dict(model="tiny", messages=picture("data:image/png;base64,aGVsbG8=")), openai.BadRequestError, "messages[0].content[0].image_url.url"),
    (dict(model="tiny", messages=picture("http://example.com/a.png")), openai.PermissionDeniedError, "messages[0].content[0].image_url.url"),
    (dict(model="tiny", messages=messages, response_format={"type": "json_object"}), openai.BadRequestError, "response_format"),
]:
    for stream in (False, True):
        try:
            create(**arguments, stream=stream)
        except kind as error:
            assert error.code and error.message and error.param == param, (error.code, error.param, param)
        else:
            raise AssertionError(f"no {kind.__name__} for {arguments}")
    print(kind.__name__, param)
for call in (lambda: client.responses.create(model="tiny", input="Hi"), lambda: client.completions.create(model="tiny", prompt="Hi"),
             lambda: client.embeddings.create(model="tiny", input="Hi")):
    try:
        call()
    except openai.NotFoundError as error:
        assert "/v1/chat/completions" in error.message, error.message
    else:
        raise AssertionError("an address that is not served was answered")
try:
    openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    print("AuthenticationError", error.code)
else:
    raise AssertionError("a wrong key was taken")
print("text:", text)
