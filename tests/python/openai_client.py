"""openai_client.py BASE_URL IMAGE: a conversation through the official client; the key is "secret"."""
import base64
import pathlib
import sys

import openai

base_url, image = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, api_key="secret", max_retries=0)
assert [model.id for model in client.models.list()] == ["tiny"]
url = "data:image/jpeg;base64," + base64.b64encode(pathlib.Path(image).read_bytes()).decode()
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]},
]
whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=24)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

stream = client.chat.completions.create(
    model="tiny", messages=messages, max_tokens=24, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert chunks[-1].usage == whole.usage

messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Are you sure?"}]
again = [client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=8, temperature=1, top_p=0.9,
                                        seed=3, stop=["xyz"]).choices[0].message.content for _ in range(2)]
assert again[0] == again[1]

for arguments, kind in [
    (dict(model="other", messages=messages), openai.NotFoundError),
    (dict(model="tiny", messages=[]), openai.BadRequestError),
    (dict(model="tiny", messages=messages, n=2), openai.BadRequestError),
    (dict(model="tiny", messages=messages, temperature=9), openai.BadRequestError),
]:
    try:
        client.chat.completions.create(**arguments)
    except kind as error:
        print(kind.__name__, error.code, error.message)
    else:
        raise AssertionError(f"no {kind.__name__} for {arguments}")
try:
    openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    print("AuthenticationError", error.code)
else:
    raise AssertionError("a wrong key was taken")
print("text:", text)
